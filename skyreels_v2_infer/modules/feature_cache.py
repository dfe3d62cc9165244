"""TeaCache: steps whose timestep differs little from the last ones reuse what the transformer's blocks then added.

Liu et al. 2024, "Timestep Embedding Tells: It's Time to Cache for Video Diffusion Model". The relative change of the
timestep embedding, rescaled by a polynomial that is fitted to a model, foretells how much the blocks' output changes;
once the foretold changes add up to a threshold, the blocks run again.

As a command it fits the polynomial to a checkpoint: ``python -m skyreels_v2_infer.modules.feature_cache --help``.
B batch, F latent frames, S tokens of a frame, D model width.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.files import write_whole

if TYPE_CHECKING:  # the coefficients are looked up before torch is needed
    import torch

RETAINED = 5  # first steps that are always computed with `use_ret_steps`
PIXELS_720P = 640 * 1100  # between 544 x 960 and 720 x 1280
DEGREE = 4  # of all polynomials
FILE = "teacache.json"  # in a checkpoint's folder: {"coefficients": [...], "ret_steps_coefficients": [...]}

# By width for text, by the size of the video for images; highest degree first. Published for Wan 2.1, built alike.
COEFFICIENTS = {
    ("t2v", 1536): (2.39676752e03, -1.31110545e03, 2.01331979e02, -8.29855975e00, 1.37887774e-01),
    ("t2v", 5120): (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
    ("i2v", "540P"): (-3.02331670e02, 2.23948934e02, -5.25463970e01, 5.87348440e00, -2.01973289e-01),
    ("i2v", "720P"): (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
}
RET_STEPS_COEFFICIENTS = {
    ("t2v", 1536): (-5.21862437e04, 9.23041404e03, -5.28275948e02, 1.36987616e01, -4.99875664e-02),
    ("t2v", 5120): (-3.03318725e05, 4.90537029e04, -2.65530556e03, 5.87365115e01, -3.15583525e-01),
    ("i2v", "540P"): (2.57151496e05, -3.54229917e04, 1.40286849e03, -1.35890334e01, 1.32517977e-01),
    ("i2v", "720P"): (8.10705460e03, 2.13393892e03, -3.72934672e02, 1.66203073e01, -4.17769401e-02),
}
LABELS = {("t2v", 1536): "T2V and DF 1.3B", ("t2v", 5120): "T2V and DF 14B", ("i2v", "540P"): "I2V at 540P"}
LABELS |= {("i2v", "720P"): "I2V at 720P"}
PUBLISHED_WIDTHS = (1536, 5120)


@dataclass(frozen=True)
class TeaCache:
    """Settings; `branch` makes what carries state.

    Attributes:
        threshold: sum of foretold relative changes at which the blocks run again; 0: in every step.
        coefficients: of the polynomial, highest degree first.
        use_ret_steps: measures the change on the projected embedding, and always computes the first 5 steps instead of
            the first and the last.
    """

    threshold: float
    coefficients: tuple[float, ...]
    use_ret_steps: bool = False

    def branch(self, steps: int) -> FeatureCache:
        """For one window and one branch of guidance: `steps` calls of the model."""
        return FeatureCache(self, steps)


class FeatureCache:
    """Decides step by step whether the blocks run, and remembers what they added; to be called around the blocks.

    Attributes:
        computed: for each step so far, whether the blocks ran.
    """

    def __init__(self, settings: TeaCache, steps: int):
        self.settings, self.steps = settings, steps
        self.computed: list[bool] = []
        self._sum = 0.0
        self._signal: torch.Tensor | None = None
        self._added: torch.Tensor | None = None

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        """tokens ``[B, F, S, D]``; time ``[B, F or 1, D]`` and modulation ``[B, F or 1, 6, D]``, of whole frames."""
        signal = modulation if self.settings.use_ret_steps else time
        if self._must_run(signal, tokens.shape):
            self._sum = 0.0
            self._added = None  # its memory is needed while the blocks run
            done = run(tokens)
            self._added = done - tokens
            self.computed.append(True)
        else:
            done = tokens + self._added
            self.computed.append(False)
        self._signal = signal
        return done

    def _must_run(self, signal: torch.Tensor, shape: torch.Size) -> bool:
        step = len(self.computed)
        if self._added is None or self._added.shape != shape:  # another block of frames has begun
            return True
        if step < (RETAINED if self.settings.use_ret_steps else 1):
            return True
        if not self.settings.use_ret_steps and step == self.steps - 1:
            return True
        self._sum += foretold(change_of_moving(signal, self._signal), self.settings.coefficients)
        return not self._sum < self.settings.threshold


def relative_change(new: torch.Tensor, old: torch.Tensor) -> float:
    """Mean absolute difference, relative to the old values."""
    return float((new - old).abs().mean() / old.abs().mean())


def change_of_moving(new: torch.Tensor, old: torch.Tensor) -> float:
    """`relative_change` of the frames that change at all; ``[B, F or 1, ...]``.

    Frames that are held, done or not begun would thin it out to less than the polynomial was fitted on, and the blocks
    of a window that goes on from many frames would hardly ever run.
    """
    difference = (new - old).abs().flatten(2)
    moving = difference.sum(dim=2, keepdim=True) > 0
    return float(difference.sum() / (old.abs().flatten(2) * moving).sum().clamp_min(1e-12))


def foretold(change: float, coefficients: Sequence[float]) -> float:
    """The polynomial, by Horner; below 0, where it only swings between the points of its fit, 0."""
    value = 0.0
    for coefficient in coefficients:
        value = value * change + coefficient
    return max(0.0, value)


def choose_coefficients(config: dict, folder: Path, height: int, width: int, use_ret_steps: bool) -> tuple[float, ...]:
    """The polynomial for a checkpoint: its own, if it has a `FILE`, or the published one for its architecture and task.

    Args:
        config: of the transformer (`Checkpoint.transformer_config`).
        folder: the checkpoint's.
        height, width: of the video, in pixels; image-to-video models have a polynomial for 540P and one for 720P.

    Raises:
        InputError: there is none; lists the known ones.
    """
    name = "ret_steps_coefficients" if use_ret_steps else "coefficients"
    if (folder / FILE).is_file():
        try:
            found = tuple(float(value) for value in json.loads((folder / FILE).read_bytes())[name])
            if len(found) != DEGREE + 1 or not all(map(math.isfinite, found)):
                raise ValueError(f"must be {DEGREE + 1} numbers")
            return found
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError("teacache", None, f"{folder / FILE} has no usable {name}: {first_line(error)}") from error
    kind = config["model_type"]
    if config["dim"] in PUBLISHED_WIDTHS:
        key = (kind, config["dim"]) if kind == "t2v" else (kind, "720P" if height * width > PIXELS_720P else "540P")
        return (RET_STEPS_COEFFICIENTS if use_ret_steps else COEFFICIENTS)[key]
    fitting = "" if kind == "i2v" else f"fit some with python -m {__spec__.name}, or "  # which takes no pictures
    raise InputError(
        "teacache",
        None,
        f"no coefficients are known for this {kind} transformer of width {config['dim']} "
        f"(known: {', '.join(LABELS.values())}); {fitting}give --teacache_coefficients",
    )


# Fitting the polynomial


class Recorder:
    """Runs the blocks in every step and notes how much changes; to be called around the blocks, as a `FeatureCache`.

    Attributes:
        changes: for every step but the first: of the time embedding, of its projection, and of what the blocks add.
    """

    def __init__(self):
        self.changes: list[tuple[float, float, float]] = []
        self._before: tuple[torch.Tensor, ...] | None = None

    def __call__(self, tokens: torch.Tensor, time: torch.Tensor, modulation: torch.Tensor, run) -> torch.Tensor:
        done = run(tokens)
        now = time, modulation, (done - tokens).float()
        if self._before is not None:
            pairs = zip(now, self._before, strict=True)
            self.changes.append(tuple(relative_change(new, old) for new, old in pairs))
        self._before = now
        return done


def fit(changes: Sequence[tuple[float, float, float]]) -> dict[str, list[float]]:
    """What a `FILE` holds: polynomials from a change of the embedding to the change of what the blocks add."""
    import numpy as np

    time, modulation, added = np.array(changes).T
    return {
        "coefficients": np.polyfit(time, added, DEGREE).tolist(),
        "ret_steps_coefficients": np.polyfit(modulation, added, DEGREE).tolist(),
    }


def main(argv: Sequence[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description="Fit TeaCache's coefficients to a text-to-video or diffusion-forcing checkpoint: runs some prompts "
        f"without a cache, and writes {FILE} into the checkpoint's folder (or elsewhere).",
    )
    parser.add_argument("--model_id", required=True, help="a folder, a published model or tiny")
    parser.add_argument("--prompt", nargs="+", default=["a swan on a lake", "a red kite over the dunes"])
    parser.add_argument("--out", type=Path, help=f"file to write (default: {FILE} in the checkpoint's folder)")
    names = ("height", "width", "num_frames", "inference_steps", "guidance_scale", "shift")
    for name in names:
        kind = float if name in ("guidance_scale", "shift") else int
        parser.add_argument(f"--{name}", type=kind, help="default: as in generate_video.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    args = parser.parse_args(argv)

    from skyreels_v2_infer import Text2VideoPipeline
    from skyreels_v2_infer.checkpoint import Checkpoint
    from skyreels_v2_infer.cli import parse_generate
    from skyreels_v2_infer.jobs import show_rows

    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = parse_generate([f"--{name}={value}" for name, value in ({"model_id": args.model_id} | given).items()])
    if settings.inference_steps < DEGREE + 2:  # each but the first is a point
        parser.error(f"--inference_steps {settings.inference_steps}: must be at least {DEGREE + 2}")
    try:
        checkpoint = Checkpoint.open(settings.model_id)
        out = args.out or checkpoint.folder / FILE
        if not os.access(out.parent, os.W_OK):  # known before the work, not after it
            parser.error(f"--out {out}: {out.parent} must be a folder that can be written to")
        pipeline = Text2VideoPipeline(checkpoint, device=args.device)
        pipeline.progress = partial(show_rows, lambda: None)
        changes: list[list[tuple[float, float, float]]] = []

        def around(steps: int) -> Recorder:
            recorder = Recorder()
            changes.append(recorder.changes)  # not the recorder, which holds a step's tokens
            return recorder

        pipeline.around_blocks = around
        options = {name: getattr(settings, name) for name in names if name != "inference_steps"}
        options |= {"num_inference_steps": settings.inference_steps, "seed": args.seed, "output_type": "latent"}
        for prompt in args.prompt:
            pipeline(prompt, settings.negative_prompt, **options)
    except ValueError as error:
        parser.error(first_line(error))
    found = fit([change for window in changes for change in window])
    write_whole(out, lambda file: file.write(f"{json.dumps(found, indent=1)}\n".encode()))
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
