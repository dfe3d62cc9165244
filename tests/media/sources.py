"""Videos of known colours in many forms, as cameras and editors write them."""

import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from skyreels_v2_infer.media import colour

RED, GREEN, BLUE, GREY, WHITE = (230, 30, 30), (40, 200, 60), (40, 60, 220), (128, 128, 128), (250, 250, 250)
COLOURS = np.array([[RED, GREEN, BLUE], [GREY, WHITE, (20, 20, 20)]], np.uint8)
COUNT = 9


def patches(height: int = 48, width: int = 72, frames: int = COUNT) -> np.ndarray:
    """uint8 ``[frames, height, width, 3]``: six colours, of which the last becomes brighter from frame to frame."""
    still = COLOURS.repeat(height // 2, 0).repeat(width // 3, 1)
    found = np.stack([still] * frames)
    for t in range(frames):
        found[t, height // 2 :, 2 * width // 3 :] = 20 + 20 * t % 220
    return found


def encode(path: Path, frames: np.ndarray, *arguments: object, rate: object = 12) -> Path:
    """Frames uint8 or uint16 ``[t, h, w, 3 or 4]`` -> a video."""
    kind = {3: "rgb", 4: "rgba"}[frames.shape[3]] + {1: "24", 2: "48le"}[frames.itemsize]
    kind = {"rgba24": "rgba", "rgba48le": "rgba64le"}.get(kind, kind)
    size = f"{frames.shape[2]}x{frames.shape[1]}"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", "-f", "rawvideo", "-pix_fmt", kind, "-s", size]
    command += ["-r", str(rate), "-i", "-", *map(str, arguments), str(path)]
    subprocess.run(command, input=frames.tobytes(), check=True)
    return path


def tagged(matrix: str = "", primaries: str = "", transfer: str = "", span: str = "tv", to: str = "yuv444p") -> list:
    """Arguments of a lossless video whose colours have these tags; the numbers are converted by `matrix` and `span`."""
    by = {"bt2020nc": "bt2020", "smpte170m": "bt601", "bt470bg": "bt601", "": "bt601"}.get(matrix, matrix)
    filters = f"scale=out_color_matrix={by}:out_range={span}:flags=accurate_rnd+full_chroma_int+lanczos,format={to}"
    stated = f"colorspace={matrix or 'unknown'}:color_primaries={primaries or 'unknown'}"
    return ["-vf", f"{filters},setparams={stated}:color_trc={transfer or 'unknown'}:range={span}", "-c:v", "ffv1"]


def as_wide(frames: np.ndarray, primaries: str, gamma: float = 2.4) -> np.ndarray:
    """sRGB uint8 -> the same colours with other primaries, uint16."""
    light = (frames / 255.0) ** gamma @ np.linalg.inv(colour.to_bt709(primaries)).T
    return np.rint(np.clip(light, 0, 1) ** (1 / gamma) * 65535).astype(np.uint16)


def as_hdr(frames: np.ndarray, transfer: str) -> np.ndarray:
    """sRGB uint8, white at 203 nits, -> BT.2020 with HLG or PQ, uint16; by the inverse functions of BT.2100."""
    value = frames / 255.0
    light = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    nits = 203 * np.clip(light @ np.linalg.inv(colour.to_bt709("bt2020")).T, 0, None)
    if transfer == "smpte2084":
        power = (nits / 10000) ** (2610 / 16384)
        signal = ((3424 / 4096 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:
        luminance = nits @ [0.2627, 0.6780, 0.0593] / 1000
        scene = nits / 1000 / np.maximum(luminance, 1e-9)[..., None] ** (0.2 / 1.2)
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        signal = np.where(scene <= 1 / 12, np.sqrt(3 * scene), a * np.log(np.maximum(12 * scene - b, 1e-9)) + c)
    return np.rint(np.clip(signal, 0, 1) * 65535).astype(np.uint16)


def apart(found: np.ndarray, wanted: np.ndarray) -> int:
    """The largest difference of the patches' centres; both uint8 ``[h, w, 3]``."""
    height, width = wanted.shape[:2]
    ys = [height // 4, 3 * height // 4]
    xs = [width // 6, width // 2, 5 * width // 6]
    return int(np.abs(found[ys][:, xs].astype(int) - wanted[ys][:, xs]).max())
