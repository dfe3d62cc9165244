"""TeaCache's polynomials: the published ones and those in a checkpoint's folder."""

import json
import math
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small

PIXELS_720P = 640 * 1100  # between 544 x 960 and 720 x 1280
CALIBRATE = "skyreels_v2_infer.run.calibrate"  # the command that fits a polynomial
DEGREE = 4  # of all polynomials
FILE = "teacache.json"  # in a checkpoint's folder: {"coefficients": [...], "ret_steps_coefficients": [...]}

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
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputError("teacache", None, f"{folder / FILE} has no usable {name}: {first_line(error)}") from error
    kind = config["model_type"]
    if config["dim"] in PUBLISHED_WIDTHS:
        key = (kind, config["dim"]) if kind == "t2v" else (kind, "720P" if height * width > PIXELS_720P else "540P")
        return (RET_STEPS_COEFFICIENTS if use_ret_steps else COEFFICIENTS)[key]
    fitting = "" if kind == "i2v" else f"fit some with python -m {CALIBRATE}, or "  # it does not take images
    raise InputError(
        "teacache",
        None,
        f"no coefficients are known for this {kind} transformer of width {config['dim']} "
        f"(known: {', '.join(LABELS.values())}); {fitting}give --teacache_coefficients",
    )
