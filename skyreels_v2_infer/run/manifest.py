"""What made a video, written beside it and into it, from which it can be made again (`--replay`)."""

from __future__ import annotations

import glob
import json
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from skyreels_v2_infer import __version__, embedded
from skyreels_v2_infer.errors import InputError, first_line

FORMAT = 1
# Settings that change where and how a video is made, but not what is in it.
WITHOUT_EFFECT = {"outdir", "device", "dry_run", "resume", "offload", "use_usp", "cfg_parallel", "ulysses_degree"}
WITHOUT_EFFECT |= {"ring_degree", "video_fps", "video_frames", "no_preview", "keep_parts", "replay"}
# The prompt is written as it came out of these.
LEFT_OUT = WITHOUT_EFFECT | {"prompt_enhancer", "prompt_enhancer_model"}


def settings_of(settings) -> dict:
    """Flags and values that make the same video, as JSON has them; paths are absolute, the prompt is as it was used."""
    values = {name: value for name, value in asdict(settings).items() if name not in LEFT_OUT and value is not None}
    if "story" in values:
        del values["prompt"]
        scenes = [{k: v for k, v in scene.items() if v is not None} for scene in values["story"]]
        values["story"] = json.dumps(scenes)
    values["model_id"] = model = embedded.name_of(settings.model_id)
    if model != embedded.NAME and Path(model).is_dir():
        values["model_id"] = Path(model)
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}


def flags_of(settings: dict) -> list[str]:
    """The same as a command line."""
    flags = []
    for name, value in settings.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            flags.append(f"--{name}={text}")
    return flags


def versions() -> dict[str, str]:
    """Of everything that the frames depend on."""
    import imageio_ffmpeg

    found = {"skyreels_v2_infer": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["ffmpeg"] = imageio_ffmpeg.get_ffmpeg_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def peak_memory() -> dict[str, float]:
    """The most that this process has had so far, in GiB: of the host, and of the GPU if one is in use."""
    found = {}
    with suppress(ImportError):  # not on Windows
        import resource

        scale = 2**30 if sys.platform == "darwin" else 2**20
        found["host"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 3)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return found


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def text_of(manifest: dict) -> str:
    return json.dumps(manifest, indent=1)  # all ASCII: a path may hold what is no UTF-8


def read(path: Path) -> dict:
    """The manifest in a file: a video, or the JSON beside one.

    Raises:
        InputError: there is none that can be used.
    """
    try:
        text = path.read_text("utf-8") if path.suffix.lower() == ".json" else comment_of(path)
        manifest = json.loads(text)
        if manifest["format"] != FORMAT or not isinstance(manifest["settings"], dict):
            raise ValueError("of another version")
        if not isinstance(manifest.get("inputs", {}), dict) or not isinstance(manifest["script"], str):
            raise ValueError("changed by hand")
        for name, value in manifest["settings"].items():
            if not isinstance(value, str | int | float | list) or name == "help":
                raise ValueError(f"{name} cannot be {value}")
    except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
        legal = f"must be a video that this program made, or the .json beside one ({first_line(error, 80)})"
        raise InputError("replay", path, legal) from None
    return manifest


def changed_since(path: Path, settings, identity: dict) -> Iterator[str]:
    """A line for each file that the video in `path` was made of and that is another one now.

    Args:
        identity: of the run, with fingerprints of files and weights.
    """
    written, now = read(path), settings_of(settings)
    for name, was in written.get("inputs", {}).items():
        if name in now and now[name] == written["settings"].get(name) and identity[name] != was:
            yield f"--replay {path}: {now[name]} is not the file that it was"
    if now["model_id"] == written["settings"].get("model_id") and identity["model_id"] != written.get("weights"):
        yield f"--replay {path}: the weights of {now['model_id']} are not what they were"


def comment_of(video: Path) -> str:
    """The comment in a video's metadata.

    Raises:
        ValueError: it has none.
    """
    import imageio_ffmpeg

    if not video.is_file():
        raise ValueError("no such file")
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", f"file:{video}", "-f", "ffmetadata", "-"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    # A line break in a value is a backslash before it, as is every other character with a meaning.
    found = re.search(rb"^comment=((?:\\.|[^\\\n])*)$", done.stdout, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError("it has no comment")
    return re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL).decode()


def as_ffmetadata(comment: str) -> str:
    """A file of metadata as ffmpeg reads it."""
    return ";FFMETADATA1\ncomment=" + re.sub(r"([=;#\\\n])", r"\\\1", comment) + "\n"


def finished(outdir: Path, stem: str, asked: str, seed: int | None) -> Path | None:
    """A video that is there already: made by the same command, of the same files and weights. None: there is none.

    Args:
        stem: what its name begins with.
        asked: hash of what was asked for, whatever the seed.
        seed: None: any fits.
    """
    for path in sorted(outdir.glob(f"{glob.escape(stem)}*.json")):
        try:
            found = read(path)
        except InputError:
            continue
        video = path.with_suffix(".mp4")
        if found.get("asked") == asked and seed in (None, found["settings"].get("seed")) and video.is_file():
            return video
    return None
