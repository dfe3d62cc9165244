"""Which frames each window makes, and from which history."""

from dataclasses import dataclass

TEMPORAL_STRIDE = 4  # frames in a latent frame, but for the first


def latent_length(frames: int) -> int:
    """Latent frames of 4n+1 video frames: n+1."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


def is_whole(frames: int) -> bool:
    """Whether a number of frames is 4n+1, n >= 0."""
    return frames >= 1 and frames % TEMPORAL_STRIDE == 1


def nearest_whole(frames: int) -> tuple[int, ...]:
    """The one or two numbers of the form 4n+1 that are nearest."""
    below = (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1
    return tuple(n for n in (below, below + TEMPORAL_STRIDE) if n >= 1)


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
        ValueError: names the argument and the nearest legal values.
    """
    check_lengths(num_frames, base_num_frames, overlap_history, prefix_frames)
    base = base_num_frames
    if base is None:
        base = num_frames + (overlap_history if prefix_frames else 0)
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


def check_lengths(
    num_frames: int, base_num_frames: int | None, overlap_history: int | None, prefix_frames: int
) -> None:
    """Raises a ValueError that names the argument, its value and the nearest legal ones."""

    def whole(name: str, value: int) -> None:
        if not is_whole(value):
            nearest = " and ".join(map(str, nearest_whole(value))) if value > 1 else "1"
            raise ValueError(f"{name} {value}: must be 4n+1, nearest are {nearest}")

    if prefix_frames:
        if num_frames < TEMPORAL_STRIDE or num_frames % TEMPORAL_STRIDE:
            below = max(num_frames, 0) // TEMPORAL_STRIDE * TEMPORAL_STRIDE
            nearest = " and ".join(str(n) for n in (below, below + TEMPORAL_STRIDE) if n)
            raise ValueError(f"num_frames {num_frames}: frames added to a video come in fours, nearest are {nearest}")
    else:
        whole("num_frames", num_frames)
    if base_num_frames is not None:
        whole("base_num_frames", base_num_frames)
    several = base_num_frames is not None and num_frames > base_num_frames
    if overlap_history is None:
        if prefix_frames or several:
            raise ValueError("overlap_history None: needed to go on from earlier frames; 17 is recommended")
        return
    whole("overlap_history", overlap_history)
    if base_num_frames is not None and overlap_history >= base_num_frames:
        raise ValueError(f"overlap_history {overlap_history}: must be below base_num_frames {base_num_frames}")
    if prefix_frames and prefix_frames < overlap_history:
        raise ValueError(f"overlap_history {overlap_history}: the video has only {prefix_frames} frames")
