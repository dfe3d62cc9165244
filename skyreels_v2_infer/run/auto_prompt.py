"""--prompt auto: the given image, or the end of the given video, is captioned, and the caption becomes the prompt."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from skyreels_v2_infer.captioner.caption import structural_captions
from skyreels_v2_infer.captioner.frames import COUNT, HEIGHT, WIDTH, read_frames, sampling_of
from skyreels_v2_infer.captioner.fuse import fused
from skyreels_v2_infer.captioner.instruction import STRUCTURAL
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import quiet_transformers, say
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.media.read import probe_video
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.progress import doing
from skyreels_v2_infer.run.inputs import file_of

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from skyreels_v2_infer.runtime import Placement


def automatic_prompt(settings: GenerateSettings, place: Placement, check: Callable[[], object]) -> str:
    """The prompt for ``--prompt auto``, also printed. Both models are freed before it returns.

    Args:
        check: raises once the process has to stop.

    Raises:
        InputError: a model cannot be loaded.
        OSError: the captioner gave no caption, or the chat model no prompt, and the user has added no text to use.
    """
    from skyreels_v2_infer.captioner.qwen import QwenCaptioner
    from skyreels_v2_infer.chat.local import Chat

    quiet_transformers()
    wish = wish_in(settings.prompt)
    device_map = "cpu" if place.device.type == "cpu" else "auto"
    with doing(f"loading {settings.captioner_model}"):
        captioner = QwenCaptioner(settings.captioner_model, "captioner_model", device_map)
    try:
        with doing("captioning"):
            (answer,) = structural_captions(captioner, [shown_first(settings)], STRUCTURAL, check=check)
    finally:
        captioner.free()
    if answer.caption is None:
        return instead(wish, f"the captioner gave no caption: {answer.reason}")
    check()
    chat = None if settings.fusion_model is None else Chat(settings.fusion_model, "fusion_model", device_map)
    try:
        with doing("making the prompt"):
            prompt = fused(answer.caption, "t2v" if settings.image is None else "i2v", chat, wish)
    finally:
        if chat is not None:
            chat.free()
    if not prompt:
        return instead(wish, "the caption says nothing for a prompt")
    say(f"prompt: {prompt}")
    return prompt


def instead(wish: str, reason: str) -> str:
    """The user's own text where there is no caption; raises an OSError if there is none."""
    if not wish:
        raise OSError(f"--prompt auto: {reason}")
    say(f"--prompt auto: {reason}; the prompt is your text: {wish}")
    return wish


def shown_first(settings: GenerateSettings) -> np.ndarray:
    """What the new video begins with, as the captioner sees it: the image, fitted to the video's size and standing
    still, or the last frames of the video, as many as a window has. uint8 ``[16, 420, 360, 3]``."""
    import numpy as np
    from PIL import Image

    if settings.image is not None:
        size = settings.height, settings.width
        picture = Image.fromarray(read_image(settings.image, *size, options=settings.input_options))
        frame = np.asarray(picture.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        return np.repeat(frame[None], COUNT, axis=0)
    with TemporaryDirectory() as folder:
        path, _ = file_of(settings, Path(folder))
        return last_shown(settings, path)


def last_shown(settings: GenerateSettings, path: Path) -> np.ndarray:
    """The last frames of the video at `path`, as many as a window has, as the captioner sees them."""
    info = probe_video(path)
    length = settings.base_num_frames  # of the frames in the file
    if info.fps and not settings.keep_rate:
        length = round(length * info.fps / settings.fps)
    start = max(0, info.frames - length)
    return read_frames(path, sampling_of(info, start=start), "video_path")
