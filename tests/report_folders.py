"""Folders of videos with manifests as runs write them, for the report page."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.write import VideoWriter

HEIGHT, WIDTH = 48, 80


def manifest(prompt: str = "a red circle", pieces: tuple[int, ...] = (9,), **settings) -> dict:
    """A manifest with the fields that the page shows."""
    written = {"model_id": "tiny", "prompt": prompt, "height": HEIGHT, "width": WIDTH, "num_frames": sum(pieces)}
    written |= {"fps": 8, "seed": 3, "guidance_scale": 2.0, "lora": []} | settings
    figures = {"seconds": {"sampling": 1.0, "decoding": 0.5}, "brightness": 0.25, "saturation": 0.1, "seam": 0.0}
    return {
        "format": 1,
        "script": "generate_video_df.py",
        "settings": written,
        "machine": {"device": "cpu", "threads": 1},
        "versions": {"skyreels_v2_infer": "0.1.0", "torch": "2.13.0"},
        "pieces": [figures | {"frames": frames} for frames in pieces],
        "seconds": {"loading": 1.25, "total": 4.5},
        "peak_memory_gib": {"host": 0.5},
        "details": {"attention": "default", "compiled": False},
    }


def add(folder: Path, name: str, about: dict | str, video: bytes = b"") -> Path:
    """Writes a video and its manifest (as text: not JSON, perhaps)."""
    path = folder / f"{name}.mp4"
    path.write_bytes(video)
    path.with_suffix(".json").write_text(about if isinstance(about, str) else json.dumps(about))
    return path


def clip(folder: Path, frames: int, fps: int, height: int = HEIGHT, width: int = WIDTH) -> bytes:
    """An mp4 as a run writes it, of a square that moves over a graded ground."""
    picture = np.full((frames, height, width, 3), 60, np.uint8)
    picture[..., 2] += np.linspace(0, 120, width).astype(np.uint8)
    for number in range(frames):
        left = round((width - 16) * number / max(1, frames - 1))
        picture[number, height // 3 : height // 3 + 16, left : left + 16] = (240, 200, 40)
    with VideoWriter(folder, "clip", height, width, fps) as writer:
        writer.write(picture)
    content = writer.path.read_bytes()
    writer.path.unlink()
    return content


def add_preview(path: Path, about: dict) -> None:
    """Writes the preview of a video, grey where its windows begin."""
    counts = [piece["frames"] for piece in about["pieces"]]
    firsts = [sum(counts[:place]) for place in range(len(counts))]
    shape = (about["settings"]["height"], about["settings"]["width"], 3)
    ends = preview.pair(np.full(shape, 120, np.uint8), np.full(shape, 20, np.uint8))
    preview.sheet(lambda _: ends, firsts, sum(counts)).save(path.with_suffix(".png"))


def data_of(page: Path) -> dict:
    """The JSON data in a page."""
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.DOTALL)[1]
    return json.loads(text)
