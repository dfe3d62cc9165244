"""Short videos for the tests of reading and writing, and ffmpegs that lack something."""

import re
import subprocess
from fractions import Fraction
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from scenes import scene

from skyreels_v2_infer.media.write import VideoWriter

FPS = 24


def clip(frames: int, height: int = 64, width: int = 96) -> np.ndarray:
    """uint8 ``[frames, height, width, 3]``."""
    return np.stack([scene(height, width, t) for t in range(frames)])


def write(folder: Path, frames: np.ndarray, stem: str = "clip") -> Path:
    with VideoWriter(folder, stem, *frames.shape[1:3], FPS) as writer:
        writer.write(frames)
    return writer.path


def ffmpeg(*arguments: object) -> None:
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def listed(path: Path, *output: object) -> str:
    """What ffmpeg writes to stdout."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", path, *output, "-"]
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout


def ffmpeg_says(*arguments: object) -> str:
    """What ffmpeg writes to stderr."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-hide_banner", *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, errors="replace").stderr


def packets(path: Path, stream: str = "v:0") -> tuple[Fraction, list[tuple[int, int, int]]]:
    """(seconds of a tick; when each packet of a stream is decoded, when it is shown, and for how long, in ticks)."""
    found = listed(path, "-map", f"0:{stream}", "-c", "copy", "-f", "framecrc")
    rows = [line.split(",") for line in found.splitlines() if not line.startswith("#")]
    tick = Fraction(re.search("#tb 0: ([0-9/]+)", found)[1])
    return tick, [tuple(map(int, row[1:4])) for row in rows]


def stub_ffmpeg(path: Path, case: str) -> Path:
    """An ffmpeg like the real one except for `case`, an arm of a shell's ``case`` over its command line."""
    path.write_text(f'#!/bin/sh\ncase " $* " in {case} esac\nexec "{imageio_ffmpeg.get_ffmpeg_exe()}" "$@"\n')
    path.chmod(0o755)
    return path
