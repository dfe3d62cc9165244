"""What becomes of a row: frames of its video, a structural caption, a prompt, or the reason why there is none."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from skyreels_v2_infer.captioner.caption import Captioner, structural_captions
from skyreels_v2_infer.captioner.frames import clip_frames, read_frames, sampling_of
from skyreels_v2_infer.captioner.fuse import fused, with_fields_dropped
from skyreels_v2_infer.captioner.inputs import PATH, STRUCTURAL, caption_in
from skyreels_v2_infer.captioner.scenes import shots_of
from skyreels_v2_infer.chat.reply import Talker
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.ffmpeg import until
from skyreels_v2_infer.media.read import VideoInfo, probe_video

if TYPE_CHECKING:
    import numpy as np

NOTE, ERROR, ANSWER = "note", "error", "answer"  # what is doubtful; why there is no caption; what the model said then
SHOT, SHOTS = "shot", "shots"  # number of a shot in its video, from 1, and how many it has
FIRST_FRAME, LAST_FRAME = "first_frame", "last_frame"  # of a shot
SHOT_COLUMNS = (SHOT, SHOTS, FIRST_FRAME, LAST_FRAME)
READERS = 4  # videos that are decoded at the same time


class Batch(NamedTuple):
    """Rows that are captioned together.

    Attributes:
        clips: of each row the frames, uint8 ``[16, H, W, 3]``, or why there are none; None: the row has a caption.
        complete: False: shots of the last row's video follow.
    """

    rows: list[dict]
    clips: list[np.ndarray | str | None]
    complete: bool = True


def needs_caption(row: dict) -> bool:
    return not row.get(STRUCTURAL)


def names_shot(row: dict) -> bool:
    """Whether a row is about one shot, whose frames it names, in place of all of a video."""
    return all(row.get(name) not in (None, "") for name in (SHOT, LAST_FRAME))


def without_shot(row: dict) -> dict:
    """A row of a video that is split into shots: columns of these names would be taken for a shot's."""
    return {name: value for name, value in row.items() if name not in SHOT_COLUMNS}


def prompt_column(task: str) -> str:
    """As published."""
    return f"{task}_fusion_caption"


def without_prompt(row: dict, task: str) -> dict:
    """A row whose prompt was made in another way, so that it is made anew."""
    return {name: value for name, value in row.items() if name != prompt_column(task)}


def without_frames(rows: list[dict]) -> Iterator[Batch]:
    """Rows that are not captioned, one at a time."""
    for row in rows:
        yield Batch([dict(row)], [None])


def whole_videos(rows: list[dict], sampling: str, size: int) -> Iterator[Batch]:
    """Batches of `size` rows, each video taken as one shot; the next batch is decoded meanwhile."""
    pool, stop = ThreadPoolExecutor(READERS, "reader"), threading.Event()

    def read(row: dict) -> np.ndarray | str | None:
        with until(stop.is_set):
            return frames_of(row, sampling)

    try:
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        ahead = [pool.submit(read, row) for row in batches[0]]
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            clips = [future.result() for future in ahead]
            ahead = [pool.submit(read, row) for row in following]
            yield Batch([dict(row) for row in batch], clips)
    finally:
        stop.set()  # Python ends after these threads only, whatever their ffmpeg does
        pool.shutdown(wait=False, cancel_futures=True)


def shots_of_videos(rows: list[dict], sampling: str, size: int) -> Iterator[Batch]:
    """A row for every shot of every video, in batches of `size` shots of one video; rows that name a shot stay."""
    for row in rows:
        if not needs_caption(row) or names_shot(row):
            yield Batch([dict(row)], [frames_of(row, sampling)])
            continue
        try:
            path = Path(row[PATH])
            info, shots = probe_video(path, "input"), shots_of(path)
        except (InputError, OSError) as error:
            yield Batch([dict(row)], [reason_of(error)])
            continue
        for begin in range(0, len(shots), size):
            some = shots[begin : begin + size]
            found = [
                row | {SHOT: begin + i + 1, SHOTS: len(shots), FIRST_FRAME: start, LAST_FRAME: end - 1}
                for i, (start, end) in enumerate(some)
            ]
            clips = [frames_of(shot, sampling, info) for shot in found]
            yield Batch(found, clips, begin + size >= len(shots))


def frames_of(row: dict, sampling: str, info: VideoInfo | None = None) -> np.ndarray | str | None:
    """Frames of a row's video or shot; a reason if it cannot be read; None if the row has a caption.

    Args:
        info: of the video, if it is known.
    """
    if not needs_caption(row):
        return None
    try:
        path = Path(row[PATH])
        if not names_shot(row):
            return clip_frames(path, sampling)
        first, last = (frame_number(row.get(name)) for name in (FIRST_FRAME, LAST_FRAME))
        if first is None or last is None or first > last:
            return f"{FIRST_FRAME} and {LAST_FRAME} must be whole numbers, the first not above the last"
        return read_frames(path, sampling_of(info or probe_video(path, "input"), sampling, first, last + 1))
    except (InputError, OSError) as error:
        return reason_of(error)


def frame_number(value: object) -> int | None:
    """A frame's number in a table, text or a whole number from 0; None if it is none."""
    text = str(value)
    return int(text) if re.fullmatch(r"\d{1,9}", text, re.ASCII) else None


def reason_of(error: Exception) -> str:
    """Why a video cannot be read. An OSError is the video's as well: ffmpeg itself has been tried."""
    return error.legal if isinstance(error, InputError) else first_line(error)


def add_captions(batch: Batch, captioner: Captioner | None, question: str, check: Callable[[], object]) -> None:
    """Adds structural captions to the rows of a batch that have none, or the reason why there is none."""
    asked = [i for i, clip in enumerate(batch.clips) if clip is not None and not isinstance(clip, str)]
    clips = [batch.clips[i] for i in asked]
    found = structural_captions(captioner, clips, question, check=check) if asked else []
    answers = dict(zip(asked, found, strict=True))
    for i, row in enumerate(batch.rows):
        if i in answers:
            answer = answers[i]
            row[STRUCTURAL] = "" if answer.caption is None else answer.caption.as_json()
            row[ERROR], row[NOTE] = answer.reason, "; ".join(answer.doubtful)
            row[ANSWER] = answer.text if answer.caption is None else ""
        elif isinstance(batch.clips[i], str):
            row[ERROR] = batch.clips[i]
        elif not needs_caption(row):
            row.pop(ERROR, None)


def add_prompt(row: dict, task: str, chat: Talker | None, drop_seed: int | None = None) -> None:
    """Adds a prompt to a row that has a structural caption, or the reason why there is none.

    Args:
        drop_seed: drops fields as for training captions; the same for the same seed, path and shot.
    """
    if needs_caption(row) or row.get(prompt_column(task)):
        return
    answer = caption_in(row)
    caption = answer.caption
    if caption is None:
        row[ERROR] = f"{STRUCTURAL}: {answer.reason}"
        return
    if drop_seed is not None:
        caption = with_fields_dropped(caption, task, f"{drop_seed}/{row[PATH]}/{row.get(SHOT) or 1}")
    row[prompt_column(task)] = fused(caption, task, chat)
    if not row[prompt_column(task)]:
        row[ERROR] = "the caption has nothing for a prompt, or the fusion model no usable answer"
