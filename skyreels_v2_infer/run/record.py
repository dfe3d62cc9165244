"""run.json: the identity of a run and its finished pieces, read from a folder that others may write to.

Its content is not trusted: every name must be one that the run itself would choose, so that no path leads out of the
folder; every value must have the expected type and a plausible size. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import zlib
from dataclasses import asdict, dataclass, field
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.run.files import open_regular, write_whole

FORMAT = 2  # of a run's files
NAME, LOCK, JOINED, SOUND = "run.json", "lock", "joined.mp4", "sound.mp4"
SUFFIX = ".parts"  # of a run's folder
# Fields of a piece that the manifest repeats.
MEASURED = ("frames", "seconds", "brightness", "saturation", "seam")
DTYPES = ("float32", "bfloat16", "float16")
MOST_BYTES = 2**26  # of a run.json; a run of 10,000 windows takes about 4 MB
MOST_NESTED = 16  # levels of lists and dicts; a story takes four
MOST_FRAMES = 2**31
MOST_FPS = 1000


class DamagedError(InputError):
    """A file of a run is missing or not as it was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__("resume", None, f"{path} is damaged ({reason}); delete {path.parent} to start over")


@dataclass(frozen=True)
class RunInfo:
    """Identity and choices of a run; fixed when it begins.

    Attributes:
        stem: file name of the video without extension.
        identity: settings and fingerprints of files that determine the frames, as JSON holds them, with ``prompt`` and
            ``seed`` among them; two runs of the same identity make the same video.
        settled: prompt, device, dtype and threads as the run uses them.
        fps: frames per second.
        keys: one per piece; two runs with the same key make the same piece and the same pieces before it.
        keep: whether the folder stays when the video is finished, so that other runs can reuse its pieces.
    """

    stem: str
    settled: dict
    identity: dict
    fps: float
    keys: tuple[str, ...]
    keep: bool = False

    @property
    def folder_stem(self) -> str:
        """Name of the run's folder, without suffix and without the number that distinguishes equal runs."""
        return f"{self.stem}-{self.digest}"

    @property
    def digest(self) -> str:
        """12 hexadecimal digits of a hash of the identity."""
        return digest_of(self.identity)


@dataclass
class Record:
    """The content of run.json.

    Attributes:
        info: what the run makes.
        pieces: per finished piece a dict: ``name`` of the segment, ``checksum``, ``ends_checksum``, and `MEASURED`.
        output: file name of the video, recorded just before the video is published; None before that.
    """

    info: RunInfo
    pieces: list[dict] = field(default_factory=list)
    output: str | None = None


def digest_of(identity: dict) -> str:
    """12 hexadecimal digits of a hash of the identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


# Names in a run's folder; `number` counts pieces from 0


def segment_name(number: int) -> str:
    return f"segment-{number:04d}.mp4"


def ends_name(number: int) -> str:
    return f"ends-{number:04d}.png"


def history_name(number: int) -> str:
    return f"history-{number:04d}.npy"


def latents_name(number: int) -> str:
    return f"latents-{number:04d}.npy"


# Writing and reading


def write_record(folder: Path, record: Record) -> None:
    """Replaces the run.json of a folder.

    Raises:
        ValueError: `read_record` would reject the record; a bug of the caller.
        OSError: it cannot be written.
    """
    content = {"format": FORMAT, **asdict(record.info), "pieces": record.pieces, "output": record.output}
    text = json.dumps({"checksum": text_checksum(content), **content}, indent=1).encode()
    parse(json.loads(text), folder.name)
    write_whole(folder / NAME, lambda file: file.write(text))


def read_record(folder: Path) -> Record:
    """The record in a run's folder.

    Raises:
        FileNotFoundError, PermissionError: there is none, or it belongs to another user.
        DamagedError: it is not what `write_record` wrote for this folder.
    """
    path = folder / NAME
    try:
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size > MOST_BYTES:
                raise ValueError(f"larger than {MOST_BYTES} bytes")
            return parse(json.loads(file.read(MOST_BYTES)), folder.name)
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:
        raise DamagedError(path, first_line(error)) from None
    except RecursionError:
        raise DamagedError(path, "nested too deeply") from None


def text_checksum(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def parse(content: object, folder_name: str) -> Record:
    """The record in the content of a run.json; ValueError if that is not one for a folder of this name."""
    require(isinstance(content, dict), "not an object")
    require_plain(content)
    fields = set(RunInfo.__dataclass_fields__)
    wanted = fields | {"checksum", "format", "pieces", "output"}
    require(content.get("format") == FORMAT, "written by another version")
    require(content.keys() == wanted, f"must have exactly {', '.join(sorted(wanted))}")
    require(content.pop("checksum") == text_checksum(content), "checksum")
    info = parse_info({name: content[name] for name in fields})
    number = folder_name.removeprefix(info.folder_stem).removesuffix(SUFFIX)
    require(f"{info.folder_stem}{number}{SUFFIX}" == folder_name, "stem and identity are those of another folder")
    require(re.fullmatch("(-[0-9]+)?", number), "stem and identity are those of another folder")
    pieces, output = content["pieces"], content["output"]
    require(isinstance(pieces, list) and len(pieces) <= len(info.keys), "pieces: must be a list, one item per key")
    for i, piece in enumerate(pieces):
        require_piece(piece, i)
    require(output is None or is_video_name(output, info.stem), "output: must be a name that the run would choose")
    return Record(info, pieces, output)


def parse_info(found: dict) -> RunInfo:
    """The `RunInfo` in its fields as JSON holds them; ValueError if one is invalid."""
    stem, identity, settled = found["stem"], found["identity"], found["settled"]
    keys, fps = found["keys"], found["fps"]
    require(isinstance(stem, str) and re.fullmatch(r"[^/\\\0]+", stem), "stem: must be a plain file name")
    require(isinstance(identity, dict) and isinstance(identity.get("prompt"), str), "identity: must have a prompt")
    require(is_whole(identity.get("seed"), 2**63), "identity: must have a seed")
    require(isinstance(settled, dict), "settled: must be an object")
    for name in ("prompt", "device", "dtype"):
        require(isinstance(settled.get(name), str), f"settled: {name} must be a text")
    require(settled["dtype"] in DTYPES, f"settled: dtype must be one of {', '.join(DTYPES)}")
    require(isinstance(keys, list) and keys and all(isinstance(key, str) for key in keys), "keys: must be texts")
    require(is_number(fps) and 1 <= fps <= MOST_FPS, f"fps: must be a number from 1 to {MOST_FPS}")
    require(isinstance(found["keep"], bool), "keep: must be true or false")
    return RunInfo(**found | {"keys": tuple(keys)})


def require_piece(piece: object, number: int) -> None:
    """Raises ValueError unless this is the valid record of the piece with this number."""
    name = f"piece {number}"
    require(isinstance(piece, dict), f"{name}: must be an object")
    require(piece.get("name") == segment_name(number), f"{name}: name must be {segment_name(number)}")
    for key in ("checksum", "ends_checksum"):
        require(is_whole(piece.get(key), 2**32), f"{name}: {key} must be a CRC-32")
    require(set(MEASURED) <= piece.keys(), f"{name}: must have {', '.join(MEASURED)}")
    require(is_whole(piece["frames"], MOST_FRAMES) and piece["frames"] > 0, f"{name}: frames must be from 1")
    require(isinstance(piece["seconds"], dict), f"{name}: seconds must be an object")
    values = [*piece["seconds"].values(), *(piece[key] for key in MEASURED if key not in ("frames", "seconds"))]
    require(all(is_number(value) for value in values), f"{name}: {', '.join(MEASURED)} must be numbers")


def is_video_name(name: object, stem: str) -> bool:
    """Whether `media`'s publish would choose this file name for a video of this stem."""
    return isinstance(name, str) and re.fullmatch(rf"{re.escape(stem)}(-[1-9][0-9]*)?\.mp4", name) is not None


def is_whole(value: object, limit: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < limit


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def require_plain(value: object, depth: int = 0) -> None:
    """Raises ValueError for data that is nested too deeply, and for numbers that no setting has."""
    require(depth <= MOST_NESTED, "nested too deeply")
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            require_plain(item, depth + 1)
    elif isinstance(value, int):
        require(abs(value) < 2**64, "a number is too large")
    elif isinstance(value, float):
        require(math.isfinite(value), "a number is not finite")


def require(holds: object, reason: str) -> None:
    """Raises ValueError(reason) unless `holds`."""
    if not holds:
        raise ValueError(reason)
