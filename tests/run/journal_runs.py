"""Small runs for the tests of the journal: grey frames, no model."""

from pathlib import Path

import numpy as np
from script_runs import FORCING

from skyreels_v2_infer.media import preview
from skyreels_v2_infer.run.journal import Journal
from skyreels_v2_infer.run.record import RunInfo
from skyreels_v2_infer.run.resume import resume_run

IDENTITY = {"script": FORCING, "prompt": "a swan", "seed": 7, "shift": 8.0, "model_id": {"weights": "12-ab"}}
SETTLED = {"prompt": "a swan, written out", "device": "cpu", "dtype": "float32"}


def frames(count: int, start: int = 0) -> np.ndarray:
    """Frames whose grey tells their number."""
    return np.stack([np.full((32, 32, 3), 3 * (start + i) % 250, np.uint8) for i in range(count)])


def about(count: int) -> dict:
    return {"frames": count, "seconds": {"sampling": 1.5}, "brightness": 0.5, "saturation": 0.25, "seam": 0.0}


def add_piece(run: Journal, count: int, start: int, history: bool = True) -> None:
    run.keep_latents(np.full(4, start, np.float32))
    made = frames(count, start)
    with run.segment(32, 32, 24) as writer:
        writer.write(made)
    ends = preview.pair(made[0], made[-1])
    run.done(writer.path, np.full(3, start + count, np.float32) if history else None, about(count), ends)


def info(identity: dict = IDENTITY, keys: tuple[str, ...] = ("a", "b", "c"), keep: bool = False) -> RunInfo:
    return RunInfo(f"a-swan_{identity['seed']}", SETTLED, identity, 24, tuple(keys), keep)


def begin(
    folder: Path, identity: dict = IDENTITY, keys: tuple[str, ...] = ("a", "b", "c"), keep: bool = False
) -> Journal:
    return Journal.begin(folder, info(identity, keys, keep))


def resume(folder: Path, identity: dict = IDENTITY, keep: bool = False) -> Journal | None:
    stem = f"{identity['prompt'].replace(' ', '-')}_{'' if identity['seed'] is None else identity['seed']}"
    return resume_run(folder, stem, identity, keep)


def finish(run: Journal) -> Path:
    firsts = [sum(piece["frames"] for piece in run.pieces[:i]) for i in range(len(run.pieces))]
    total = sum(piece["frames"] for piece in run.pieces)
    return run.finish({"all": "é=;#\n"}, {"lasting": "é=;#\\\n"}, lambda ends: preview.sheet(ends, firsts, total))
