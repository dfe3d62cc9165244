"""The two scripts as a user starts them, what they are given, and what they leave behind.

Videos are read here with imageio-ffmpeg's own reader, not with the program's, so that neither can cover for the other.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
GENERATE, FORCING = "generate_video.py", "generate_video_df.py"
LIMIT = 180  # seconds after which a process is taken to hang; they end in about five


@dataclass
class Run:
    """A finished process.

    Attributes:
        cpu: seconds of processor time, its children included.
        folder: where it ran.
    """

    code: int
    out: str
    err: str
    cpu: float
    folder: Path

    @property
    def lines(self) -> list[str]:
        return self.err.splitlines()

    @cached_property
    def path(self) -> Path:
        """The video, which must be all that stdout says."""
        assert self.code == 0, self.err
        assert self.out.endswith(".mp4\n") and self.out.count("\n") == 1, self.out
        path = self.folder / self.out[:-1]
        assert path.is_file()
        return path

    @cached_property
    def meta(self) -> dict:
        reader = imageio_ffmpeg.read_frames(self.path)
        meta = next(reader)
        reader.close()
        return meta

    @cached_property
    def frames(self) -> np.ndarray:
        return read_frames(self.path)


def environment(**more: str) -> dict[str, str]:
    """No GPU, no network; nothing that pytest or a developer may have put in Python's way.

    One thread: on models this small several only wait for each other, on a busy machine for five times as long.
    """
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return env | {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more


def run(
    script: str,
    *argv: object,
    cwd: Path,
    stop: Callable[[Path], int | None] | None = None,
    stdout_to: Path | None = None,
    **more: str,
) -> Run:
    """Starts a script and waits for its end.

    Args:
        stop: asked again and again with the file that stderr goes to, until it returns a signal to send.
        stdout_to: where stdout goes instead of into the result.
        more: environment variables.
    """
    with tempfile.TemporaryDirectory() as logs:
        out, err = stdout_to or Path(logs, "out"), Path(logs, "err")
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, ROOT / script, *map(str, argv)],
                cwd=cwd,
                env=environment(**more),
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                # A background job of a shell ignores Ctrl-C and so would what it starts: a user's terminal does not.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        watchdog = threading.Timer(LIMIT, process.kill)
        watchdog.start()
        try:
            if stop is not None:
                interrupt(process, lambda: stop(err))
            _, status, used = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        finally:
            watchdog.cancel()
        cpu = used.ru_utime + used.ru_stime
        return Run(process.returncode, "" if stdout_to else out.read_text(), err.read_text(), cpu, cwd)


def signal_at(pattern: str, number: int) -> dict[str, str]:
    """Environment variables with which a script sends itself a signal, whatever else the machine does.

    Args:
        pattern: of the name of a file: at once when it is there, or, if it gets another name then, just before that.
    """
    return {"PYTHONPATH": str(ROOT / "tests" / "signalled"), "SIGNAL_AT": pattern, "SIGNAL": str(int(number))}


def interrupt(process: subprocess.Popen, stop: Callable[[], int | None]) -> None:
    while (number := stop()) is None:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None:
            return
        time.sleep(0.02)
    process.send_signal(number)


class Scripts:
    """Runs scripts; the same command is run once, whoever asks for it, unless it is asked for `again`."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.runs: dict[tuple, Run] = {}

    def __call__(self, script: str, *argv: object, again: bool = False) -> Run:
        """A run in a folder of its own, which must end well; `again`: once more in the same folder."""
        command = (script, *map(str, argv))
        if command in self.runs and not again:
            return self.runs[command]
        folder = self.folder / f"run{len(self.runs)}"
        if again:
            folder = self(script, *argv).folder
        folder.mkdir(exist_ok=True)
        result = run(script, *argv, cwd=folder)
        assert result.code == 0, result.err
        if not again:
            self.runs[command] = result
        return result


def read_frames(path: Path) -> np.ndarray:
    """uint8 ``[T, H, W, 3]``."""
    # passthrough: a reader that fills gaps or drops frames would hide that some are missing or too many.
    reader = imageio_ffmpeg.read_frames(path, output_params=["-fps_mode", "passthrough"])
    width, height = next(reader)["source_size"]
    return np.stack([np.frombuffer(frame, np.uint8).reshape(height, width, 3) for frame in reader])


def contents(folder: Path) -> list[str]:
    """Every file and folder below, hidden ones too."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    error = np.mean((one.astype(np.float64) - other.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


def scene(height: int, width: int, time: float = 0.0, dusk: bool = False) -> np.ndarray:
    """A photograph-like picture, uint8 ``[height, width, 3]``: sun in a graded sky over textured hills; time moves."""
    y, x = np.mgrid[:height, :width]
    y, x = y / height, x / width
    texture = np.random.default_rng(7).standard_normal((height, width, 1))
    top, bottom = ([40, 30, 90], [240, 130, 70]) if dusk else ([70, 130, 220], [200, 225, 245])
    picture = np.array(top) + (np.array(bottom) - np.array(top)) * y[..., None]
    glow = np.exp(-((x - 0.7 - 0.004 * time) ** 2 + (y - 0.25) ** 2) / 0.01)[..., None]
    picture = picture + glow * np.array([120, 100, 40])
    for depth, base, color in ((0, 0.55, [95, 120, 135]), (1, 0.68, [75, 110, 60]), (2, 0.82, [50, 70, 35])):
        ridge = base + 0.06 * np.sin(5 * x + 2.2 * depth + 0.03 * time * depth) + 0.02 * np.sin(23 * x + depth)
        hill = np.array(color) * (1.25 - 0.5 * y[..., None]) + 9 * texture
        picture = np.where((y > ridge)[..., None], hill, picture)
    return np.clip(picture, 0, 255).astype(np.uint8)


def write_clip(path: Path, frames: list[np.ndarray], fps: int = 24) -> None:
    """An mp4 such as a telephone makes, by a writer that is not the program's."""
    height, width, _ = frames[0].shape
    writer = imageio_ffmpeg.write_frames(path, (width, height), fps=fps, quality=9, macro_block_size=2)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()


def fitted(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames scaled to cover a size and cropped at the centre, by plain arithmetic on PIL's resize."""
    source_height, source_width = frames.shape[1:3]
    scale = max(height / source_height, width / source_width)
    left, top = (source_width - width / scale) / 2, (source_height - height / scale) / 2
    box = (left, top, source_width - left, source_height - top)
    return np.stack(
        [np.array(Image.fromarray(f).resize((width, height), Image.Resampling.LANCZOS, box)) for f in frames]
    )
