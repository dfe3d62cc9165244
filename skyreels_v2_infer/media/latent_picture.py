"""An approximate picture of latents: each is mapped to a colour by a linear projection, without the VAE."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.media.files import read_small

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

MOST = 8  # latent frames in a picture
LEAST = 96  # pixels that the longer side of each has at least
GAP = 4  # pixels between them
FILE = "latent_colours.json"  # beside a VAE's weights: {"matrix": [[r, g, b], ...], "offset": [r, g, b]}


@dataclass(frozen=True)
class Projection:
    """Normalised latents -> RGB in -1..1.

    Attributes:
        matrix: a row for each latent channel. offset: added to the product.
    """

    matrix: tuple[tuple[float, float, float], ...]
    offset: tuple[float, float, float]


# Of Wan 2.1's VAE, fitted by the authors of ComfyUI (class Wan21 of comfy/latent_formats.py).
WAN = Projection(
    (
        (-0.1299, -0.1692, 0.2932),
        (0.0671, 0.0406, 0.0442),
        (0.3568, 0.2548, 0.1747),
        (0.0372, 0.2344, 0.1420),
        (0.0313, 0.0189, -0.0328),
        (0.0296, -0.0956, -0.0665),
        (-0.3477, -0.4059, -0.2925),
        (0.0166, 0.1902, 0.1975),
        (-0.0412, 0.0267, -0.1364),
        (-0.1293, 0.0740, 0.1636),
        (0.0680, 0.3019, 0.1128),
        (0.0032, 0.0581, 0.0639),
        (-0.1251, 0.0927, 0.1699),
        (0.0060, -0.0633, 0.0005),
        (0.3477, 0.2275, 0.2950),
        (0.1984, 0.0913, 0.1861),
    ),
    (-0.1835, -0.0868, -0.3360),
)


def projection_in(folder: Path) -> Projection:
    """The projection in the `FILE` of a VAE's folder; without one that of Wan 2.1.

    Raises:
        ValueError: the file is unusable.
    """
    path = folder / FILE
    if not path.is_file():
        return WAN
    try:
        given = json.loads(read_small(path))
        rows = [[float(value) for value in row] for row in (*given["matrix"], given["offset"])]
        if len(rows) < 2 or not all(len(row) == 3 and all(map(math.isfinite, row)) for row in rows):
            raise ValueError("it needs three finite numbers for each channel")
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path} is unusable ({first_line(error)})") from error
    return Projection(tuple(map(tuple, rows[:-1])), tuple(rows[-1]))


def picture(latents: np.ndarray, projection: Projection) -> Image.Image:
    """Up to `MOST` latent frames side by side, spread from the first to the last.

    Args:
        latents: float ``[C, F, h, w]``, normalised as the transformer sees them.

    Raises:
        ValueError: the projection is for another number of channels.
    """
    import numpy as np
    from PIL import Image

    if len(latents) != len(projection.matrix):
        raise ValueError(f"its colours are for {len(projection.matrix)} latent channels, not {len(latents)}")
    count = latents.shape[1]
    shown = np.unique(np.linspace(0, count - 1, min(MOST, count)).round().astype(int))
    colours = np.tensordot(latents[:, shown], np.array(projection.matrix), axes=(0, 0)) + np.array(projection.offset)
    colours = np.nan_to_num(colours.clip(-1, 1))  # [F, h, w, 3]
    levels = ((colours + 1) * 127.5).round().astype(np.uint8)
    scale = max(1, math.ceil(LEAST / max(levels.shape[1:3])))
    levels = levels.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = levels.shape[1:3]
    page = Image.new("RGB", (len(shown) * (width + GAP) - GAP, height), "white")
    for place, frame in enumerate(levels):
        page.paste(Image.fromarray(frame), (place * (width + GAP), 0))
    return page
