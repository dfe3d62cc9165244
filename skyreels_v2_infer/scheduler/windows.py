"""Which frames each window makes, and from which history."""

from dataclasses import dataclass
from typing import NoReturn

from skyreels_v2_infer.errors import Faults, InputError

TEMPORAL_STRIDE = 4  # frames in a latent frame, but for the first
MOST_WINDOWS = 65_536  # of a video; a plan has each of them, printed or not
USUAL_HISTORY = 17  # frames; the overlap that the published examples use


def latent_length(frames: int) -> int:
    """Latent frames of 4n+1 video frames: n+1."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


@dataclass(frozen=True)
class Window:
    """One pass of the denoising loop.

    Attributes:
        index: 0, 1, ...
        history_frames: finished frames (4n+1, or 0) just before the new ones, from which the window goes on.
        first_frame: where its new frames begin in the video that is made.
        new_frames: how many they are.
    """

    index: int
    history_frames: int
    first_frame: int
    new_frames: int

    @property
    def frames(self) -> int:
        """History and new frames together, 4n+1."""
        return self.history_frames + self.new_frames

    @property
    def history_latents(self) -> int:
        return latent_length(self.history_frames) if self.history_frames else 0

    @property
    def latents(self) -> int:
        return latent_length(self.frames)


def plan_windows(
    num_frames: int, base_num_frames: int | None = None, overlap_history: int | None = None, prefix_frames: int = 0
) -> tuple[Window, ...]:
    """Splits a video into windows of `base_num_frames`, each going on from `overlap_history` frames of the one before.

    A last window with little left to make keeps its length and takes more history instead, since the model was trained
    on whole windows.

    Args:
        num_frames: length of the video, 4n+1; with a prefix the frames that are added to it, a multiple of 4.
        base_num_frames: length of a window, 4n+1; None: one window for everything.
        overlap_history: frames of history a window starts from, 4n+1 and below the base; needed for several windows
            and with a prefix.
        prefix_frames: frames that exist already, at least `overlap_history`; 0: there is no prefix.

    Raises:
        InputError: names the argument and the nearest legal values.
    """
    check_lengths(num_frames, base_num_frames, overlap_history, extends=prefix_frames > 0)
    if prefix_frames:
        check_prefix(prefix_frames, overlap_history)
    base = base_num_frames
    if base is None:
        base = num_frames + (overlap_history if prefix_frames else 0)
    check_window_count(num_frames, base, overlap_history or 0, extends=prefix_frames > 0)
    windows = []
    done = 0
    while done < num_frames:
        exists = prefix_frames + done
        if exists:
            new = min(base - overlap_history, num_frames - done)
            longest = exists - (exists - 1) % TEMPORAL_STRIDE
            history = min(base - new, longest)
        else:
            new, history = min(base, num_frames), 0
        windows.append(Window(len(windows), history, prefix_frames + done, new))
        done += new
    return tuple(windows)


def check_window_count(num_frames: int, base: int, overlap: int, extends: bool) -> None:
    """Raises an `InputError` for a video of more than `MOST_WINDOWS` windows, before any is made.

    Args:
        num_frames, base, overlap: see `plan_windows`; legal ones.
        extends: whether there is a prefix.
    """
    most = MOST_WINDOWS * (base - overlap) + (0 if extends else overlap)
    if num_frames > most:
        windows = f"--base_num_frames {base} and --overlap_history {overlap}: {MOST_WINDOWS} windows"
        raise InputError("num_frames", num_frames, f"must be at most {most} with {windows}")


def check_lengths(
    num_frames: int, base_num_frames: int | None = None, overlap_history: int | None = None, extends: bool = False
) -> None:
    """Raises an `InputError` that names the arguments that are wrong, their values and the nearest legal ones.

    Args:
        num_frames, base_num_frames, overlap_history: see `plan_windows`.
        extends: whether there is a prefix.
    """
    faults = Faults()
    if base_num_frames is not None:
        faults.check(_check_whole, "base_num_frames", base_num_frames)
    if overlap_history is not None:
        faults.check(_check_whole, "overlap_history", overlap_history)
    elif extends:
        faults.check(_refuse_missing, f"needed to continue a video, {_advice(base_num_frames)}")
    faults.check(_check_added if extends else _check_whole, "num_frames", num_frames)
    faults.raise_all()
    if overlap_history is not None and base_num_frames is not None and overlap_history >= base_num_frames:
        legal = f"must be below --base_num_frames {base_num_frames}, {_advice(base_num_frames)}"
        raise InputError("overlap_history", overlap_history, legal)
    if overlap_history is None and base_num_frames is not None and num_frames > base_num_frames:
        above = f"--num_frames {num_frames} above --base_num_frames {base_num_frames}"
        _refuse_missing(f"needed for {above}, {_advice(base_num_frames)}")


def check_prefix(prefix_frames: int, overlap_history: int) -> None:
    """Raises an `InputError` if a video is shorter than the history that is wanted of it."""
    if prefix_frames < overlap_history:
        raise InputError("overlap_history", overlap_history, f"the video has only {prefix_frames} frames")


def frames_of_one_more(base_num_frames: int, overlap_history: int | None) -> int:
    """What one window adds to a video that is there; the most that it could where the overlap is still missing."""
    return base_num_frames - (overlap_history or 1)


def usual_history(base_num_frames: int | None) -> int | None:
    """Frames of the past that suit windows of so many frames (any number, if None); None where there is no room."""
    if base_num_frames is None:
        return USUAL_HISTORY
    return min(USUAL_HISTORY, base_num_frames - TEMPORAL_STRIDE) if base_num_frames > TEMPORAL_STRIDE else None


def _advice(base_num_frames: int | None) -> str:
    usual = usual_history(base_num_frames)
    return "and --base_num_frames must then be at least 5" if usual is None else f"{usual} is recommended"


def _refuse_missing(legal: str) -> NoReturn:
    raise InputError("overlap_history", "not given", legal)


def _check_whole(name: str, frames: int) -> None:
    if frames < 1 or frames % TEMPORAL_STRIDE != 1:
        raise InputError(name, frames, f"must be 4n+1, {_nearest(frames, 1)}")


def _check_added(name: str, frames: int) -> None:
    if frames < TEMPORAL_STRIDE or frames % TEMPORAL_STRIDE:
        raise InputError(name, frames, f"frames added to a video come in fours, {_nearest(frames, TEMPORAL_STRIDE)}")


def _nearest(value: int, least: int) -> str:
    """The legal values least, least + 4, ... on either side of an illegal one."""
    if value < least:
        return f"at least {least}"
    below = value - (value - least) % TEMPORAL_STRIDE
    return f"nearest are {below} and {below + TEMPORAL_STRIDE}"
