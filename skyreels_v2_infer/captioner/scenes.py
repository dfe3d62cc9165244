"""Where the shots of a video begin, by PySceneDetect. Imports it when it is used."""

from __future__ import annotations

from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.read import stretched_frames

HEIGHT, WIDTH = 144, 256  # of the frames that are compared
SHORTEST = 15  # frames of a shot; PySceneDetect's default
RATE = 25.0  # frames per second that it is given; only frame numbers are used
MOST_SHOTS = 10_000


def shots_of(path: Path, name: str = "input") -> list[tuple[int, int]]:
    """(first frame, frame behind the last) of each shot of a video, in order and without gaps.

    Raises:
        InputError: for the flag `name`: the video is damaged.
        OSError: ffmpeg is missing or makes no progress.
    """
    from scenedetect.common import FrameTimecode
    from scenedetect.detectors import AdaptiveDetector

    detector, cuts, frames = AdaptiveDetector(min_scene_len=SHORTEST), [], 0
    for frame in stretched_frames(path, HEIGHT, WIDTH, name):
        cuts += detector.process_frame(FrameTimecode(frames, RATE), frame[:, :, ::-1])  # BGR
        frames += 1
    if not frames:
        raise InputError(name, path, "has no frame that can be decoded")
    cuts += detector.post_process(FrameTimecode(frames - 1, RATE))
    begins = sorted({0, *(cut.frame_num for cut in cuts)})
    if len(begins) > MOST_SHOTS:
        raise InputError(name, path, f"has more than {MOST_SHOTS} shots")
    return list(zip(begins, [*begins[1:], frames], strict=True))
