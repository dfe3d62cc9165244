"""Short videos for the tests of reading and writing, and ffmpegs that lack something."""

import subprocess
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


def stub_ffmpeg(path: Path, case: str) -> Path:
    """An ffmpeg like the real one except for `case`, an arm of a shell's ``case`` over its command line."""
    path.write_text(f'#!/bin/sh\ncase " $* " in {case} esac\nexec "{imageio_ffmpeg.get_ffmpeg_exe()}" "$@"\n')
    path.chmod(0o755)
    return path
