"""What caches know of a model: TeaCache's polynomials, published or in a checkpoint's folder, and MagCache's ratios."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small

PIXELS_720P = 640 * 1100  # between 544 x 960 and 720 x 1280
CALIBRATE = "skyreels_v2_infer.run.calibrate"  # the command that fits a polynomial or measures ratios
DEGREE = 4  # of all polynomials
FILE = "teacache.json"  # in a checkpoint's folder: {"coefficients": [...], "ret_steps_coefficients": [...]}

# In a checkpoint's folder: {"tables": [{"shift": 8.0, "steps": 30, "ratios": [[...], [...]]}, ...]}, the ratios of the
# conditional and of the unconditional pass, or one list for both, a number for each step.
RATIOS_FILE = "magcache.json"

# By width for text, by the size of the video for images; highest degree first. Published for Wan 2.1, which has the
# same architecture.
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
# What a file that is not as it should be can cause when it is read.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError)


def choose_coefficients(config: dict, folder: Path, height: int, width: int, use_ret_steps: bool) -> tuple[float, ...]:
    """The polynomial for a checkpoint: the one in its `FILE`, else the published one for its architecture and task.

    Args:
        config: of the transformer (`Checkpoint.transformer_config`).
        folder: of the checkpoint.
        height, width: of the video, in pixels; image-to-video models have one polynomial for 540P and one for 720P.

    Raises:
        InputError: no polynomial is known; lists the known ones.
    """
    name = "ret_steps_coefficients" if use_ret_steps else "coefficients"
    if (folder / FILE).is_file():
        try:
            found = tuple(float(value) for value in json.loads(read_small(folder / FILE))[name])
            if len(found) != DEGREE + 1 or not all(map(math.isfinite, found)):
                raise ValueError(f"must be {DEGREE + 1} numbers")
            return found
        except UNUSABLE as error:
            raise InputError("teacache", None, f"{folder / FILE} has no usable {name}: {first_line(error)}") from error
    kind = config["model_type"]
    if config["dim"] in PUBLISHED_WIDTHS:
        key = (kind, config["dim"]) if kind == "t2v" else (kind, "720P" if height * width > PIXELS_720P else "540P")
        return (RET_STEPS_COEFFICIENTS if use_ret_steps else COEFFICIENTS)[key]
    raise InputError(
        "teacache",
        None,
        f"no coefficients are known for this {kind} transformer of width {config['dim']} "
        f"(known: {', '.join(LABELS.values())}); fit some with python -m {CALIBRATE}, or give --teacache_coefficients",
    )


def choose_ratios(folder: Path, model: str, shift: float, steps: int) -> tuple[float, ...]:
    """MagCache's ratios for a run, from a checkpoint's `RATIOS_FILE`.

    Of the tables measured with this shift, the one with the nearest number of steps is taken.

    Args:
        folder: of the checkpoint.
        model, shift, steps: of the run.

    Returns:
        `steps` numbers for the conditional pass, then as many for the unconditional one.

    Raises:
        InputError: there is no table for this shift; names the command that measures one.
    """
    command = f"python -m {CALIBRATE} --cache magcache --model_id {model} --shift {shift:g} --inference_steps {steps}"
    file = folder / RATIOS_FILE
    if not file.is_file():
        raise InputError("cache", "magcache", f"this model has no {RATIOS_FILE}; {command} measures one")
    try:
        tables = [(float(table["shift"]), table["ratios"]) for table in json.loads(read_small(file))["tables"]]
        fitting = [check_ratios(ratios) for known, ratios in tables if known == shift]
    except UNUSABLE as error:
        raise InputError("cache", "magcache", f"{file} cannot be used: {first_line(error)}") from error
    if not fitting:
        known = ", ".join(f"{shift:g}" for shift in sorted({shift for shift, _ in tables})) or "none"
        raise InputError("cache", "magcache", f"{file} is for --shift {known}, not {shift:g}; {command} adds that")
    nearest = min(fitting, key=lambda ratios: (abs(len(ratios[0]) - steps), -len(ratios[0])))
    return tuple(value for ratios in nearest for value in resampled(ratios, steps))


def check_ratios(ratios: Sequence[Sequence[float]]) -> list[list[float]]:
    """The ratios of both passes; ValueError if they cannot be such."""
    both = [[float(value) for value in each] for each in ratios]
    if len(both) == 1:  # measured without guidance
        both *= 2
    if len(both) != 2 or len(both[0]) != len(both[1]) or not both[0]:
        raise ValueError("ratios must be one or two lists of the same length")
    if not all(math.isfinite(value) and value > 0 for each in both for value in each):
        raise ValueError("ratios must be finite numbers above 0")
    return both


def resampled(ratios: Sequence[float], steps: int) -> list[float]:
    """Ratios for another number of steps: those of the nearest steps, first to first and last to last."""
    if steps == 1:
        return [ratios[0]]
    return [ratios[round(i * (len(ratios) - 1) / (steps - 1))] for i in range(steps)]
