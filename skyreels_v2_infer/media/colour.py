"""Video colours that the models were not trained on, HDR and wide gamut, to sRGB as the models see it.

HDR: the signal becomes light as ITU-R BT.2100 says (PQ: its EOTF; HLG: inverse OETF and the OOTF of a display of 1000
nits, gamma 1.2). 203 nits, the white of graphics in ITU-R BT.2408, are 1. Primaries become BT.709's. Where the largest
of R, G and B is above `KNEE`, all three are scaled so that it follows the Möbius curve of ffmpeg's ``tonemap``, which
leaves what is below as it is and brings the peak of the content to 1. The result is encoded as sRGB.

SDR of wide gamut keeps its tones: to light by the curve of its display (ITU-R BT.1886, gamma 2.4, unless tagged
otherwise), primaries to BT.709's, and back by the same curve.

What is outside of BT.709 after that is clipped.

ffmpeg applies this by three tables, whose errors together stay below one level of 8 bits: a curve that brings every
channel into a space in which light is smooth (`evened`), light in BT.709 as a function of all three (`mixed`), and the
curve of the result (`encoded`).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SDR_WHITE = 203.0  # nits, ITU-R BT.2408
HLG_PEAK = 1000.0
USUAL_PEAK, HIGHEST_PEAK = 1000.0, 4000.0  # of PQ that does not state one, and what is counted of a higher one
KNEE = 0.92
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
_SRGB, _LINEAR = "iec61966-2-1", "linear"
_GAMMAS = {"bt470m": 2.2, "bt470bg": 2.8}
_GAMMA = 2.4  # ITU-R BT.1886: displays of BT.709, BT.601 and SDR BT.2020
_SMOOTH = 2.4  # light as this power of a channel is smooth


def is_foreign(primaries: str, transfer: str) -> bool:
    """Whether pictures with these tags of ffmpeg need `to_sdr`."""
    return transfer in HDR or transfer == _LINEAR or primaries in WIDE


def to_sdr(signal: np.ndarray, primaries: str, transfer: str, peak: float | None = None) -> np.ndarray:
    """R'G'B' ``[..., 3]`` of a source in 0..1 -> R'G'B' as sRGB shows it, in 0..1.

    Args:
        primaries, transfer: ffmpeg's names; unknown ones count as BT.709's.
        peak: nits that the content reaches; None: `USUAL_PEAK`. Only PQ is concerned, HLG has `HLG_PEAK`.
    """
    return encoded(mixed(evened(signal, transfer, peak), primaries, transfer, peak), transfer)


def evened(signal: np.ndarray, transfer: str, peak: float | None = None) -> np.ndarray:
    """A channel's signal in 0..1 -> its light to the power of 1 / `_SMOOTH` in 0..1.

    Light is relative to the peak for PQ, the scene's for HLG.
    """
    import numpy as np

    if transfer == PQ:
        light = np.minimum(pq_light(signal) / _highest(peak), 1)
    elif transfer == HLG:
        light = hlg_scene(signal)
    elif transfer == _LINEAR:
        light = signal
    elif transfer == _SRGB:
        light = srgb_light(signal)
    else:
        light = signal ** _GAMMAS.get(transfer, _GAMMA)
    return light ** (1 / _SMOOTH)


def mixed(even: np.ndarray, primaries: str, transfer: str, peak: float | None = None) -> np.ndarray:
    """`evened` R, G, B ``[..., 3]`` -> their light in BT.709, 1 being SDR white; negative outside of its gamut."""
    light = even**_SMOOTH
    if transfer == PQ:
        light = light * (_highest(peak) / SDR_WHITE)
    elif transfer == HLG:
        light = hlg_display(light) / SDR_WHITE
    light = light @ to_bt709(primaries).T
    if transfer in HDR:
        light = compressed(light, (HLG_PEAK if transfer == HLG else _highest(peak)) / SDR_WHITE)
    return light


def encoded(light: np.ndarray, transfer: str) -> np.ndarray:
    """Light in 0..1, clipped there -> the signal of the result: sRGB's, or for SDR that of the source's curve."""
    import numpy as np

    light = np.clip(light, 0, 1)
    if transfer in HDR or transfer in (_SRGB, _LINEAR):
        return np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return light ** (1 / _GAMMAS.get(transfer, _GAMMA))


def pq_light(signal: np.ndarray) -> np.ndarray:
    """EOTF of PQ (SMPTE ST 2084, ITU-R BT.2100): signal in 0..1 -> nits."""
    import numpy as np

    m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
    power = np.clip(signal, 0, 1) ** (1 / m2)
    return 10000 * (np.maximum(power - c1, 0) / (c2 - c3 * power)) ** (1 / m1)


def hlg_scene(signal: np.ndarray) -> np.ndarray:
    """Inverse OETF of HLG (ITU-R BT.2100): signal in 0..1 -> the scene's light in 0..1."""
    import numpy as np

    a, b, c = 0.17883277, 0.28466892, 0.55991073
    signal = np.clip(signal, 0, 1)
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12)


def hlg_display(scene: np.ndarray) -> np.ndarray:
    """OOTF of HLG for a display of 1000 nits: the scene's light ``[..., 3]`` in 0..1 -> nits."""
    import numpy as np

    luminance = scene @ np.array([0.2627, 0.6780, 0.0593])
    return HLG_PEAK * luminance[..., None] ** 0.2 * scene


def compressed(light: np.ndarray, peak: float) -> np.ndarray:
    """RGB light ``[..., 3]``, SDR white being 1, with the highlights of content up to `peak` brought to 1 and below."""
    import numpy as np

    largest = np.maximum(light.max(-1, keepdims=True), 1e-9)
    if peak <= 1:
        return light * np.minimum(1, 1 / largest)
    j = KNEE
    a = -j * j * (peak - 1) / (j * j - 2 * j + peak)
    b = (j * j - 2 * j * peak + peak) / (peak - 1)
    seen = np.minimum(largest, peak)
    wanted = np.where(seen > j, (b * b + 2 * b * j + j * j) / (b - a) * (seen + a) / (seen + b), seen)
    return light * (wanted / largest)


def srgb_light(signal: np.ndarray) -> np.ndarray:
    """IEC 61966-2-1: signal in 0..1 -> light in 0..1."""
    import numpy as np

    return np.where(signal <= 0.04045, signal / 12.92, ((signal + 0.055) / 1.055) ** 2.4)


def to_bt709(primaries: str) -> np.ndarray:
    """The matrix that turns linear RGB of `primaries` into that of BT.709 ``[3, 3]``; white stays white."""
    import numpy as np

    if primaries not in WIDE:
        return np.eye(3)
    # The P3 of cinemas has another white than D65, but pictures are judged against their own white.
    return points_to_bt709(*WIDE[primaries])


def points_to_bt709(
    red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float], white: tuple[float, float] = _D65
) -> np.ndarray:
    """As `to_bt709`, of primaries and white by their xy; another white becomes D65 by Bradford's adaptation."""
    import numpy as np

    matrix = _to_xyz((red, green, blue), white)
    if white != _D65:
        cones = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
        scale = (cones @ _to_xyz(_BT709) @ np.ones(3)) / (cones @ matrix @ np.ones(3))
        matrix = np.linalg.inv(cones) @ np.diag(scale) @ cones @ matrix
    return np.linalg.inv(_to_xyz(_BT709)) @ matrix


def _to_xyz(primaries: tuple[tuple[float, float], ...], white: tuple[float, float] = _D65) -> np.ndarray:
    """Linear RGB -> CIE XYZ (SMPTE RP 177)."""
    import numpy as np

    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    x, y = white
    return columns * np.linalg.solve(columns, [x / y, 1, (1 - x - y) / y])


def _highest(peak: float | None) -> float:
    return min(max(peak or USUAL_PEAK, SDR_WHITE), HIGHEST_PEAK)


EVEN, CUBE, CURVE = 4096, 65, 65536  # points of the tables along each axis; of the last one as 16 bits have
_TO_8_BITS = 65536 / 65535 * 255 / 256  # ffmpeg turns 16 bits into 8 by a division by 256


def write_tables(folder: Path, primaries: str, transfer: str, peak: float | None = None) -> tuple[Path, Path, Path]:
    """Writes `evened`, `mixed` and `encoded` as tables for ffmpeg's lut1d, lut3d and lut1d, in the format .cube.

    They are for pixels of 16 bits, of which the last table's results become 8.
    """
    import numpy as np

    axis = np.linspace(0, 1, CUBE)
    blue, green, red = np.meshgrid(axis, axis, axis, indexing="ij")  # red varies fastest
    cube = mixed(np.stack([red, green, blue], -1).reshape(-1, 3), primaries, transfer, peak)
    tables = {
        "even.cube": (f"LUT_1D_SIZE {EVEN}", evened(np.linspace(0, 1, EVEN), transfer, peak)),
        "mix.cube": (f"LUT_3D_SIZE {CUBE}", cube),
        "encode.cube": (f"LUT_1D_SIZE {CURVE}", encoded(np.linspace(0, 1, CURVE), transfer) * _TO_8_BITS),
    }
    for name, (head, values) in tables.items():
        rows = values if values.ndim == 2 else values[:, None].repeat(3, 1)
        (folder / name).write_bytes(f"{head}\n".encode() + _as_text(rows))
    return tuple(folder / name for name in tables)


def _as_text(rows: np.ndarray) -> bytes:
    """Numbers above -10 and below 10 ``[n, 3]`` -> a line of text each; far faster than formatting one by one."""
    import numpy as np

    whole = np.rint(rows * 10**6).astype(np.int64)
    text = np.full((*whole.shape, 10), ord("."), np.uint8)
    text[..., 0] = np.where(whole < 0, ord("-"), ord("0"))
    for place, power in ((1, 6), (3, 5), (4, 4), (5, 3), (6, 2), (7, 1), (8, 0)):
        text[..., place] = np.abs(whole) // 10**power % 10 + ord("0")
    text[..., 9] = ord(" ")
    text[:, 2, 9] = ord("\n")
    return text.tobytes()
