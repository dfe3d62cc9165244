"""What flags have to do with one another, with the disk, and with the model: checks that need no model, and defaults.

Each takes what argparse has read, settles what is open in it, and raises an `InputError` for what cannot be.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from importlib.util import find_spec
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.defaults import PUBLISHED, TINY
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.media import images, read
from skyreels_v2_infer.plan.models import ENHANCER as ENHANCER_MODEL
from skyreels_v2_infer.plan.models import HUB_ID, MODELS_720P
from skyreels_v2_infer.plan.sizes import RESOLUTIONS, check_size
from skyreels_v2_infer.plan.story import of_prompts, read_story, scenes_of
from skyreels_v2_infer.scheduler.windows import (
    check_lengths,
    check_prefix,
    frames_of_one_more,
    plan_windows,
    usual_history,
)


def check_teacache(args: argparse.Namespace) -> None:
    for name in ("use_ret_steps", "teacache_coefficients"):
        if getattr(args, name) and not args.teacache:
            raise InputError(name, None, "has no effect without --teacache")


def check_ranks(args: argparse.Namespace) -> None:
    launch = Launch.from_environment()
    if args.use_usp and not launch.by_torchrun:
        raise InputError("use_usp", None, "needs torchrun: torchrun --nproc_per_node=GPUS SCRIPT ... --use_usp")
    if not args.use_usp:
        for name in ("cfg_parallel", "ulysses_degree", "ring_degree"):
            if getattr(args, name) is not None:
                raise InputError(name, None, "has no effect without --use_usp")
        if launch.size > 1:
            legal = f"torchrun has started {launch.size} processes, which would all make the same video"
            raise InputError("use_usp", None, f"is not given, but {legal}")
    if launch.size > 1 and args.device not in (None, "cpu", "cuda"):
        raise InputError("device", args.device, "each of several processes takes a GPU of its own; give cuda or cpu")


def check_enhancer(args: argparse.Namespace) -> None:
    model = args.prompt_enhancer_model
    if model is not None and not args.prompt_enhancer:
        raise InputError("prompt_enhancer_model", model, "has no effect without --prompt_enhancer")
    args.prompt_enhancer_model = model = model or ENHANCER_MODEL
    if not os.path.isdir(model) and not HUB_ID.fullmatch(model):
        raise InputError("prompt_enhancer_model", model, "is neither a folder nor the name of a model (owner/name)")
    if args.prompt_enhancer and find_spec("accelerate") is None:
        raise InputError("prompt_enhancer", None, "needs accelerate: pip install accelerate")


def check_sizes(args: argparse.Namespace) -> None:
    given = [side for side in ("height", "width") if getattr(args, side) is not None]
    if len(given) == 1:
        missing = "width" if given == ["height"] else "height"
        raise InputError(given[0], getattr(args, given[0]), f"needs --{missing} as well")
    if given and args.resolution is not None:
        raise InputError("resolution", args.resolution, "give either --resolution or --height and --width")
    if given:
        check_size(args.height, args.width)


def check_conditions(args: argparse.Namespace) -> None:
    if args.image is not None and args.video_path is not None:
        raise InputError("image", args.image, "give either --image or --video_path: both would be the beginning")
    if args.end_image is not None and args.causal_attention:
        raise InputError("end_image", args.end_image, "not with --causal_attention: no frame would look that far ahead")


def fill_in(args: argparse.Namespace) -> None:
    """Flags that were not given become what suits the model; sizes are `size_of`'s."""
    defaults = TINY if args.model_id == embedded.NAME else PUBLISHED
    chosen = getattr(args, "overlap_history", ...) is None and defaults.overlap_history is not None
    for field in dataclasses.fields(defaults):
        if field.name not in ("height", "width") and getattr(args, field.name, ...) is None:
            setattr(args, field.name, getattr(defaults, field.name))
    if chosen:
        args.overlap_history = usual_history(args.base_num_frames)


def place_embedded(args: argparse.Namespace, image_to_video: bool) -> None:
    if args.model_id == embedded.NAME:
        args.model_id = str(embedded.folder(image_to_video))


def check_length(args: argparse.Namespace, given: int | None) -> int:
    """The number of frames to make (with --video_path: to add), after the checks of all three lengths.

    `given`: --num_frames, if the user said it; what is added to a video has a default of its own.
    """
    extends, frames = args.video_path is not None, args.num_frames
    if extends and given is None:
        frames = frames_of_one_more(args.base_num_frames, args.overlap_history)
    check_lengths(frames, args.base_num_frames, args.overlap_history, extends)
    return frames


def settle_story(args: argparse.Namespace, num_frames: int) -> None:
    """Scenes, from --story or from several prompts, checked against the windows; and the first prompt as the prompt."""
    windows = plan_windows(num_frames, args.base_num_frames, args.overlap_history, args.video_frames)
    prompts = [args.prompt] if isinstance(args.prompt, str) else args.prompt  # text: the default
    if args.story is not None:
        if not isinstance(args.prompt, str):
            raise InputError("story", args.story, "give either --prompt or --story")
        args.story = read_story(args.story, args.fps)
        scenes_of(args.story, windows)
        prompts = [args.story[0].prompt]
    elif len(prompts) > 1:
        # Languages without spaces write a whole scene so.
        if all(len(prompt.split()) == 1 for prompt in prompts) and any(prompt.isascii() for prompt in prompts):
            legal = "one word each: a prompt with spaces needs quotes (scenes of one word are for --story)"
            raise InputError("prompt", " ".join(prompts), legal)
        args.story = of_prompts(prompts, windows)
    if args.story is not None and args.prompt_enhancer:
        raise InputError("prompt_enhancer", None, "writes one prompt out, not several or those of --story")
    args.prompt = prompts[0]


def check_piece(args: argparse.Namespace, name: str, hint: str = "") -> None:
    """Lengths that the embedded model never saw at once come out as noise."""
    frames = getattr(args, name)
    if args.model_id == embedded.NAME and frames > TINY.base_num_frames:
        legal = f"{embedded.NAME} makes up to {TINY.base_num_frames} frames at once{hint}"
        raise InputError(name, frames, legal)


def source_size(args: argparse.Namespace) -> tuple[int, int] | None:
    """(height, width) of what the video follows, after checking every file and folder that was named."""
    args.video_fps, args.video_frames = None, 0
    for name in ("image", "end_image"):
        if isinstance(address := getattr(args, name, None), str):
            setattr(args, name, images.download_image(address, name))
    image = images.image_size(args.image, "image") if args.image is not None else None
    end_image = video = None
    if getattr(args, "end_image", None) is not None:
        end_image = images.image_size(args.end_image, "end_image")
    # Only looks, never creates. Before the video, whose check is the one that takes time.
    check_outdir(args.outdir)
    if getattr(args, "video_path", None) is not None:
        info = read.probe_video(args.video_path, "video_path")
        check_prefix(info.frames, args.overlap_history)
        video, args.video_fps, args.video_frames = (info.height, info.width), info.fps, info.frames
    return image or video or end_image


def size_of(args: argparse.Namespace, source: tuple[int, int] | None) -> tuple[int, int]:
    if args.height is not None:
        return args.height, args.width
    if args.model_id == embedded.NAME and args.resolution is None:
        return TINY.height, TINY.width
    height, width = RESOLUTIONS[args.resolution or ("720P" if args.model_id in MODELS_720P else "540P")]
    return (width, height) if source is not None and source[0] > source[1] else (height, width)


def check_outdir(outdir: Path) -> None:
    existing = os.path.abspath(outdir)
    if set(existing) & set("\r\n"):
        raise InputError("outdir", outdir, "must have no line break in its path, which ffmpeg would not find")
    while not os.path.lexists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise InputError("outdir", outdir, f"must be a folder or a place for one, but {existing} is none")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError("outdir", outdir, f"must be writable, but {existing} is not")
    longest = os.pathconf(existing, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255  # not on Windows
    for name in Path(os.path.abspath(outdir)).relative_to(existing).parts:
        if len(os.fsencode(name)) > longest:
            raise InputError("outdir", outdir, f"no name of a folder may have more than {longest} bytes there")
