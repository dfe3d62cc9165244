"""The files of a run that is not finished yet, from which it goes on after it was stopped, however that came.

A run makes its video in pieces, one for a prefix and one for each window. Its folder, beside where the video will be,
holds

- ``run.json``: what the run is (settings, files, seed), by which it is found again, and the pieces that are done, each
  with the size and the checksum of its segment; a piece counts once it stands here, so this file is replaced last;
- ``segment-0000.mp4``, ...: the pieces, each a video that plays;
- ``history-0001.npz``: the newest frames before the piece of that number, for the window to go on from;
- ``latents-0001.npz``: a window that is denoised but not decoded yet;
- ``ends-0000.png``, ...: the first and the last frame of each piece, small, for the preview.

Every file is written under another name first, and a lock keeps other processes away. Nothing here knows torch.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.manifest import as_ffmetadata, text_of
from skyreels_v2_infer.video_io import VideoWriter, join_videos, publish

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FORMAT = 1  # of these files
SUFFIX = ".parts"
SHOWN = 60  # characters of a setting in a message


class DamagedError(InputError):
    """A file of a run that is not as it was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__("resume", None, f"{path} is damaged ({reason}); remove {path.parent} to begin anew")


def digest_of(identity: dict) -> str:
    """What tells a run from others, short enough for a folder's name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def fingerprint(path: Path) -> str:
    """Size and checksum of a file's ends: fast, and different for files that differ in any likely way."""
    size, part = path.stat().st_size, 2**20
    with path.open("rb") as file:
        head = file.read(part)
        file.seek(max(0, size - part))
        return f"{size}-{zlib.crc32(file.read(part), zlib.crc32(head)):08x}"


def checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            value = zlib.crc32(block, value)
    return value


def write_whole(path: Path, write) -> None:
    """`write(file)` into a file that has its name only once it is on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def write_json(path: Path, content: dict) -> None:
    write_whole(path, lambda file: file.write(json.dumps(content, indent=1, ensure_ascii=False).encode()))


def read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ValueError("of another version")
    except (OSError, ValueError) as error:
        raise DamagedError(path, str(error)) from None
    return content


class Journal:
    """One run's folder; made by `begin` or `resume`, and locked until `close`.

    Attributes:
        folder: where the files are.
        stem: of the video's name.
        identity: what tells the run from others. prompt: as it is used, perhaps written out.
        pieces: for each piece that is done its segment's name, size and checksum, and what `done` was told about it.
    """

    def __init__(self, folder: Path, lock: int, run: dict):
        self.folder, self._lock, self._run = folder, lock, run
        self.stem, self.identity, self.prompt = run["stem"], run["identity"], run["prompt"]
        self.pieces: list[dict] = run["pieces"]

    # Beginning, finding and leaving

    @classmethod
    def begin(cls, outdir: Path, stem: str, identity: dict, prompt: str, fps: float) -> Journal:
        """A new run, beside any others.

        Args:
            outdir: where the video will be.
            stem: of its name.
            identity: what tells the run from others, as JSON has it; ``prompt`` and ``seed`` are in it.
            prompt: as it is used, perhaps written out.
            fps: frames per second.
        """
        name = f"{stem}-{digest_of(identity)}"
        run = {"format": FORMAT, "stem": stem, "prompt": prompt, "identity": identity}
        run |= {"fps": fps, "pieces": [], "output": None}
        for number in itertools.count(1):
            folder = outdir / f"{name}{f'-{number}' if number > 1 else ''}{SUFFIX}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            lock = take_lock(folder)
            if lock is None:  # somebody tidies up, see `resume`
                continue
            journal = cls(folder, lock, run)
            try:
                journal._write()
            except BaseException:
                journal.discard()
                raise
            return journal
        raise AssertionError("unreachable")

    @classmethod
    def resume(cls, outdir: Path, identity: dict) -> Journal | None:
        """The interrupted run of this identity; None: there is none of this prompt and seed.

        A seed that is None in the identity fits any.

        Raises:
            InputError: those of this prompt and seed differ otherwise; names in what. Or the run is still going on, or
                damaged.
        """
        different = []
        for folder in sorted(outdir.glob(f"*{SUFFIX}")):
            if not (folder / "run.json").exists():
                lock = take_lock(folder)
                if lock is not None:  # stopped before it began
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(lock)
                continue
            run = read_json(folder / "run.json")
            found = run["identity"]
            compared = [name for name in identity if name != "seed" or identity[name] is not None]
            changed = [name for name in compared if found.get(name) != identity[name]]
            if changed:
                if not {"prompt", "seed"} & set(changed):
                    different.append((folder, changed, found))
                continue
            lock = take_lock(folder)
            if lock is None:
                raise InputError("resume", None, f"{folder} is being worked on by another process")
            try:
                return cls._opened(folder, lock, run)
            except BaseException:
                os.close(lock)
                raise
        if different:
            folder, changed, found = min(different, key=lambda item: len(item[1]))
            names = "; ".join(
                f"--{name} was {str(found.get(name))[:SHOWN]}, now is {str(identity[name])[:SHOWN]}" for name in changed
            )
            raise InputError("resume", None, f"the interrupted run in {folder} has other settings: {names}")
        return None

    @classmethod
    def _opened(cls, folder: Path, lock: int, run: dict) -> Journal:
        journal = cls(folder, lock, run)
        if journal._named() is not None:
            return journal
        for piece in journal.pieces:
            path = folder / piece["name"]
            if not path.exists() or (path.stat().st_size, checksum(path)) != (piece["bytes"], piece["checksum"]):
                raise DamagedError(path, "not what was written")
        # Anything else was being written, or was about to be removed.
        known = {"run.json", "lock", journal._latents.name, journal._history.name, journal._joined.name}
        known |= {piece["name"] for piece in journal.pieces}
        known |= {journal._ends(number).name for number in range(len(journal.pieces))}
        for path in folder.iterdir():
            if path.name not in known:
                path.unlink()
        return journal

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is here that a resumed run need not make again."""
        return bool(self.pieces) or self._latents.exists()

    def close(self) -> None:
        """Lets go of the folder; without anything worth keeping it is removed."""
        if self._lock is None:
            return
        if not self.worth_keeping:
            self.discard()
            return
        os.close(self._lock)
        self._lock = None

    def discard(self) -> None:
        # What tells of the run goes last: until then a run that is taken up again knows that the video has its name.
        for path in sorted(self.folder.iterdir(), key=lambda path: path.name == "run.json"):
            if path.name != "lock":
                path.unlink()
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)
        self._lock = None

    # The piece at hand

    @property
    def _latents(self) -> Path:
        return self.folder / f"latents-{len(self.pieces):04d}.npz"

    @property
    def _history(self) -> Path:
        return self.folder / f"history-{len(self.pieces):04d}.npz"

    def state(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(latents of the window at hand if it is denoised, newest frames before it); each None if there are none."""
        return read_array(self._latents), read_array(self._history)

    def keep_latents(self, latents: np.ndarray) -> None:
        write_array(self._latents, latents)

    @contextmanager
    def segment(self, height: int, width: int, fps: float) -> Iterator[VideoWriter]:
        """What takes the frames of the piece at hand."""
        stem = f"segment-{len(self.pieces):04d}"
        (self.folder / f"{stem}.mp4").unlink(missing_ok=True)
        with VideoWriter(self.folder, stem, height, width, fps) as writer:
            yield writer

    def _ends(self, number: int) -> Path:
        return self.folder / f"ends-{number:04d}.png"

    def ends(self, number: int) -> Image.Image:
        """What `done` was given for a piece."""
        from PIL import Image

        with Image.open(self._ends(number)) as picture:
            return picture.convert("RGB")

    def done(self, writer: VideoWriter, history: np.ndarray | None, about: dict, ends: Image.Image) -> None:
        """The piece at hand is finished.

        Args:
            writer: of its segment.
            history: the newest frames for the next one; None: none will ask.
            about: what the manifest says of it.
            ends: its first and last frame, see `preview.pair`.
        """
        at_hand = (self._latents, self._history)
        path = writer.path
        piece = {"name": path.name, "bytes": path.stat().st_size, "checksum": checksum(path), **about}
        write_whole(self._ends(len(self.pieces)), lambda file: ends.save(file, format="PNG"))
        self.pieces.append(piece)
        try:
            if history is not None:
                write_array(self._history, history)
            self._write()
        except BaseException:
            self.pieces.pop()
            raise
        for path in at_hand:
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        write_json(self.folder / "run.json", self._run)

    # The end

    def finish(
        self, manifest: dict, lasting: dict, preview: Callable[[Callable[[int], Image.Image]], Image.Image] | None
    ) -> Path:
        """Joins the segments, without coding them anew, under the first free name ``stem.mp4``; removes the folder.

        Args:
            manifest: goes beside the video, as JSON.
            lasting: what of it goes into the video.
            preview: makes of `ends` the picture that goes beside the video; None: none is wanted.
        """
        path = self._named()
        if path is None:
            write_whole(self._metadata, lambda file: file.write(as_ffmetadata(text_of(lasting)).encode()))
            names = [self.folder / piece["name"] for piece in self.pieces]
            join_videos(names, self._joined, self._run["fps"], self._metadata)
            path = publish(self._joined, self.folder.parent, self.stem, self._announce, (".json", ".png"))
        if not path.with_suffix(".json").exists():
            write_whole(path.with_suffix(".json"), lambda file: file.write(text_of(manifest).encode()))
        if preview is not None and not path.with_suffix(".png").exists():
            page = preview(self.ends)
            write_whole(path.with_suffix(".png"), lambda file: page.save(file, format="PNG"))
        self.discard()
        return path

    @property
    def _metadata(self) -> Path:
        return self.folder / "metadata.txt"

    @property
    def _joined(self) -> Path:
        return self.folder / "joined.mp4"

    def _announce(self, name: str) -> None:
        self._run["output"] = name
        self._write()

    def _named(self) -> Path | None:
        """The finished video, if the run was stopped after it got its name."""
        if self._run["output"] is None:
            return None
        path = self.folder.parent / self._run["output"]
        if path.exists() and (not self._joined.exists() or path.samefile(self._joined)):
            return path
        return None


def take_lock(folder: Path) -> int | None:
    """An open file that locks the folder until it is closed, at the latest by the process's end; None: it is locked."""
    handle = os.open(folder / "lock", os.O_CREAT | os.O_RDWR)
    try:
        import fcntl
    except ImportError:  # no such locks on Windows
        return handle
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def write_array(path: Path, array: np.ndarray) -> None:
    import numpy as np

    write_whole(path, lambda file: np.savez(file, array=array))


def read_array(path: Path) -> np.ndarray | None:
    import numpy as np

    if not path.exists():
        return None
    try:
        with np.load(path) as file:  # a zip archive, whose checksums are compared while it is read
            return file["array"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DamagedError(path, str(error)) from None
