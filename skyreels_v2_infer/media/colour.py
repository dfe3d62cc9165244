"""Video colours that the models were not trained on, HDR and wide gamut, to sRGB as the models see it.

Arithmetic on the decoded R'G'B' signal, tabulated once for a file and applied by ffmpeg's ``lut3d``.

HDR: the signal becomes light as ITU-R BT.2100 says (PQ: its EOTF; HLG: inverse OETF and the OOTF of a display of 1000
nits, gamma 1.2). 203 nits, the white of graphics in ITU-R BT.2408, are 1. Primaries become BT.709's. Where the largest
of R, G and B is above `KNEE`, all three are scaled so that it follows the Möbius curve of ffmpeg's ``tonemap``, which
leaves what is below as it is and brings the peak of the content to 1. The result is encoded as sRGB.

SDR of wide gamut keeps its transfer curve: to light, primaries to BT.709's, and back.

What is outside of BT.709 after that is clipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SDR_WHITE = 203.0  # nits, ITU-R BT.2408
HLG_PEAK = 1000.0
USUAL_PEAK = 1000.0  # of PQ that does not state one
KNEE = 0.88
PQ, HLG = "smpte2084", "arib-std-b67"
HDR = {HLG: "HLG", PQ: "PQ"}
# ffmpeg's names of primaries -> xy of red, green, blue (ITU-R BT.2020; SMPTE RP 431-2, EG 432-1).
WIDE = {
    "bt2020": ((0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    "smpte431": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    "smpte432": ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
}
WIDE_NAMES = {"bt2020": "BT.2020", "smpte431": "DCI-P3", "smpte432": "Display P3"}
_BT709 = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))
_D65 = (0.3127, 0.3290)
_GAMMAS = {"gamma22": 2.2, "gamma28": 2.8, "linear": 1.0}
_GAMMA = 2.4  # ITU-R BT.1886: displays of BT.709, BT.601 and SDR BT.2020


def is_foreign(primaries: str, transfer: str) -> bool:
    """Whether pictures with these tags of ffmpeg need `to_sdr`."""
    return transfer in HDR or transfer == "linear" or primaries in WIDE


def to_sdr(signal: np.ndarray, primaries: str, transfer: str, peak: float | None = None) -> np.ndarray:
    """R'G'B' ``[..., 3]`` of a source in 0..1 -> R'G'B' that a display of sRGB or BT.709 shows, in 0..1.

    Args:
        primaries, transfer: ffmpeg's names; unknown ones count as BT.709's.
        peak: nits that the content reaches; None: `USUAL_PEAK`. Only PQ is concerned, HLG has `HLG_PEAK`.
    """
    import numpy as np

    matrix = to_bt709(primaries)
    if transfer in HDR:
        light = pq_light(signal) if transfer == PQ else hlg_light(signal)
        highest = HLG_PEAK if transfer == HLG else (peak or USUAL_PEAK)
        return srgb_signal(compressed(light / SDR_WHITE @ matrix.T, highest / SDR_WHITE))
    if transfer == "iec61966-2-1":
        return srgb_signal(np.clip(srgb_light(signal) @ matrix.T, 0, 1))
    gamma = _GAMMAS.get(transfer, _GAMMA)
    light = np.clip(signal**gamma @ matrix.T, 0, 1)
    return srgb_signal(light) if transfer == "linear" else light ** (1 / gamma)


def pq_light(signal: np.ndarray) -> np.ndarray:
    """EOTF of PQ (SMPTE ST 2084, ITU-R BT.2100): signal in 0..1 -> nits."""
    import numpy as np

    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.clip(signal, 0, 1) ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def pq_signal(nits: float) -> float:
    """Inverse of `pq_light`, for one luminance."""
    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = (nits / 10000) ** m1
    return ((c1 + c2 * power) / (1 + c3 * power)) ** m2


def hlg_light(signal: np.ndarray) -> np.ndarray:
    """EOTF of HLG (ITU-R BT.2100) on a display of 1000 nits: R'G'B' ``[..., 3]`` in 0..1 -> nits."""
    import numpy as np

    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.clip(signal, 0, 1)
    scene = np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)
    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return HLG_PEAK * luminance[..., None] ** 0.2 * scene


def compressed(light: np.ndarray, peak: float) -> np.ndarray:
    """RGB light ``[..., 3]``, SDR white being 1, with the highlights of content up to `peak` brought below 1."""
    import numpy as np

    light = np.maximum(light, 0)
    if peak <= 1:
        return np.minimum(light, 1)
    j = KNEE
    a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / (peak - 1)
    largest = np.minimum(light.max(-1, keepdims=True), peak)
    wanted = np.where(largest > j, (b * b + 2 * b * j + j * j) / (b - a) * (largest + a) / (largest + b), largest)
    return np.minimum(light * (wanted / np.maximum(light.max(-1, keepdims=True), 1e-9)), 1)


def srgb_light(signal: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: signal in 0..1 -> light in 0..1."""
    import numpy as np

    return np.where(signal <= 0.04045, signal / 12.92, ((np.maximum(signal, 0) + 0.055) / 1.055) ** 2.4)


def srgb_signal(light: np.ndarray) -> np.ndarray:
    """Inverse of `srgb_light`."""
    import numpy as np

    return np.where(light <= 0.0031308, 12.92 * light, 1.055 * np.maximum(light, 0) ** (1 / 2.4) - 0.055)


def to_bt709(primaries: str) -> np.ndarray:
    """The matrix that turns linear RGB of `primaries` into that of BT.709 ``[3, 3]``; white stays white."""
    import numpy as np

    if primaries not in WIDE:
        return np.eye(3)
    # White stays white: P3 of cinemas has another one than D65, and pictures are judged against their own white.
    return np.linalg.inv(_to_xyz(_BT709, _D65)) @ _to_xyz(WIDE[primaries], _D65)


def _to_xyz(primaries: tuple, white: tuple[float, float]) -> np.ndarray:
    """Linear RGB -> CIE XYZ (SMPTE RP 177)."""
    import numpy as np

    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = white
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


SIZE = 49  # points of the table along each axis; more change no channel by more than 1


def write_table(path: Path, primaries: str, transfer: str, peak: float | None = None) -> None:
    """Writes `to_sdr` as a table for ffmpeg's ``lut3d``, in the format .cube."""
    import numpy as np

    # Of PQ, which reaches 10000 nits, only what the content uses.
    top = pq_signal(min(max(peak or USUAL_PEAK, SDR_WHITE), 10000)) if transfer == PQ else 1.0
    axis = np.linspace(0, top, SIZE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red varies fastest
    values = to_sdr(np.stack([red, green, blue], -1).reshape(-1, 3), primaries, transfer, peak)
    whole = np.rint(np.clip(values, 0, 1) * 10**5).astype(np.int64)
    text = np.full((len(whole), 3, 8), ord("."), np.uint8)
    for place, power in ((0, 5), (2, 4), (3, 3), (4, 2), (5, 1), (6, 0)):
        text[..., place] = whole // 10**power % 10 + ord("0")
    text[..., 7] = ord(" ")
    text[:, 2, 7] = ord("\n")
    head = f"LUT_3D_SIZE {SIZE}\nDOMAIN_MIN 0 0 0\nDOMAIN_MAX {top:.6f} {top:.6f} {top:.6f}\n"
    path.write_bytes(head.encode() + text.tobytes())
