"""Videos that are pictures: a folder of them, a pattern of names, or an animated one.

They are read by the rules of pictures (profiles, orientation, transparency) and become a lossless video at the rate of
the result, which is then read like any other.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import Ffmpeg
from skyreels_v2_infer.media.images import ANIMATED, fit, image_size, opened_image, read_image
from skyreels_v2_infer.media.input_options import DEFAULT, InputOptions, fitting
from skyreels_v2_infer.media.picture_colour import in_rgb
from skyreels_v2_infer.media.rates import rate_text

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".avif", ".heic", ".heif", ".tif", ".tiff", ".bmp", ".jxl", ".ppm")
MOST_PICTURES = 1_000_000
MOST_FRAMES = 100_000  # of an animation, whose durations may be anything
_NUMBER = re.compile(r"%(0[1-9])?d")
_SHORTEST, _INSTEAD = 0.01, 0.1  # seconds: frames that state less than the first last the second, as in browsers


def is_pictures(path: Path | str) -> bool:
    """Whether a path means pictures rather than the file of a video."""
    if os.path.isfile(path):
        return _is_animated(path)
    return os.path.isdir(path) or bool(_NUMBER.search(Path(path).name)) or glob.has_magic(Path(path).name)


def _is_animated(path: Path | str) -> bool:
    """Whether a file begins like a picture that may be animated; GIF, which ffmpeg reads, is not among them."""
    try:
        with open(path, "rb") as file:
            head = file.read(32)
    except OSError:
        return False
    return (
        head.startswith((b"\x89PNG\r\n\x1a\n", b"\0\0\0\x0cJXL "))
        or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")
        or head[4:12] in (b"ftypavis", b"ftypavif")
    )


def list_pictures(path: Path | str, name: str = "video_path") -> list[Path]:
    """The pictures of a folder, of a glob, or of a pattern such as ``frames/%04d.png``, in order.

    Names are sorted with their numbers as numbers. A pattern begins at its lowest number.

    Raises:
        InputError: for the flag `name`: there are none, a number is missing, or the folder cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            found = [one for one in path.iterdir() if not one.name.startswith(".")]
            other = next((one.name for one in found if one.suffix.lower() not in SUFFIXES or not one.is_file()), None)
            if other is not None or not found:
                has = "is empty" if other is None else f"has {other}"
                raise InputError(name, path, f"must be a file, or a folder of pictures and nothing else, but it {has}")
        elif match := _NUMBER.search(path.name):
            return _numbered(path, match, name)
        else:
            found = [one for one in map(Path, glob.glob(os.path.join(glob.escape(str(path.parent)), path.name)))]
            found = [one for one in found if one.is_file()]
    except OSError as error:
        raise InputError(name, path, f"cannot be read ({error.strerror})") from None
    if not found:
        raise InputError(name, path, "matches no file")
    return sorted(found[: MOST_PICTURES + 1], key=_natural)[:MOST_PICTURES]


def _numbered(path: Path, match: re.Match, name: str) -> list[Path]:
    digits = rf"(\d{{{int(match[1])},}})" if match[1] else r"(\d+)"
    pattern = re.compile(re.escape(path.name[: match.start()]) + digits + re.escape(path.name[match.end() :]))
    numbers = sorted(
        int(found[1])
        for one in path.parent.iterdir()
        if (found := pattern.fullmatch(one.name)) and path.name.replace(match[0], match[0] % int(found[1])) == one.name
    )
    if not numbers:
        raise InputError(name, path, "matches no file")
    files = [path.with_name(path.name.replace(match[0], match[0] % number)) for number in numbers]
    for before, after in itertools.pairwise(numbers):
        if after != before + 1:
            raise InputError(name, path, f"number {before + 1} is missing")
    return files


def _natural(path: Path) -> list:
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]


def pictures_size(path: Path | str, name: str = "video_path") -> tuple[int, int]:
    """(height, width) of the first picture."""
    return image_size(path if os.path.isfile(path) else list_pictures(path, name)[0], name)


def as_video(
    path: Path | str,
    height: int,
    width: int,
    fps: float,
    out: Path,
    options: InputOptions = DEFAULT,
    check: Callable[[], object] = lambda: None,
    name: str = "video_path",
) -> list[str]:
    """Writes pictures as a lossless video -> what was changed about them, in words.

    Args:
        fps: of the video. An animation is read at this rate by its durations; a sequence of
            pictures has one for each frame.
        out: the file, Matroska.

    Raises:
        InputError: for the flag `name`: a picture is missing or damaged, or a file is no animation.
        OSError: ffmpeg or the disk failed.
    """
    notes: list[str] = []
    if os.path.isfile(path):
        frames = _animation(path, height, width, fps, options, notes, name)
    else:
        frames = _sequence(list_pictures(path, name), height, width, options, notes, name)
    arguments = [
        "-y",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{width}x{height}",
        "-r",
        rate_text(fps),
        "-i",
        "-",
    ]
    arguments += ["-c:v", "ffv1", "-pix_fmt", "gbrp", "-f", "matroska", f"file:{out}"]
    with Ffmpeg(arguments, stdin=subprocess.PIPE, out=out) as ffmpeg:
        for frame in frames:
            check()
            try:
                ffmpeg.send(frame.data)
            except OSError:
                break
        ffmpeg.close_input()
        if not ffmpeg.succeeded():
            raise OSError(f"cannot write {out}: {ffmpeg.reason()}")
    return notes


def _sequence(
    files: Sequence[Path], height: int, width: int, options: InputOptions, notes: list[str], name: str
) -> Iterator:
    """The pictures, fitted, uint8 ``[height, width, 3]``."""
    notes.append(f"{len(files)} pictures, one for each frame")
    for number, file in enumerate(files):
        yield read_image(file, height, width, name, options, notes if number == 0 else None)


def _animation(
    path: Path | str, height: int, width: int, fps: float, options: InputOptions, notes: list[str], name: str
) -> Iterator:
    """The frames of an animated picture at a rate by their durations, fitted, uint8 ``[height, width, 3]``."""
    with opened_image(path, name) as image:
        count = getattr(image, "n_frames", 1)
        if image.format not in ANIMATED or count < 2:
            raise ValueError("it has one frame only, which --image takes")
        seconds, shown = 0.0, 0
        for number in range(count):
            image.seek(number)
            image.load()
            stated = image.info.get("duration", 0) / 1000
            seconds += stated if stated >= _SHORTEST else _INSTEAD
            if seconds * fps > MOST_FRAMES:
                raise ValueError(f"it is longer than {MOST_FRAMES} frames")
            frame = None
            while shown < max(round(seconds * fps), 1 if number == 0 else 0):
                if frame is None:
                    picture = in_rgb(image, options.background, notes if number == 0 else None)
                    frame = fit(picture, height, width, options)
                yield frame
                shown += 1
        notes.append(f"animation of {count} frames in {seconds:.4g} s read at {fps:g} fps")
        if said := fitting(image.height, image.width, height, width, options.fit):
            notes.append(said)
