"""Parsed arguments -> settings: per-model defaults and cross-flag validation, without a model.

Nothing here changes the arguments; checks raise `InputError`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.defaults import PRESETS, SOLVER, TEACACHE_THRESHOLD, TINY, Defaults, defaults_of
from skyreels_v2_infer.cli.help import DIFFUSION_FORCING
from skyreels_v2_infer.cli.model_ids import check_model_id, check_type
from skyreels_v2_infer.cli.names import stem_of
from skyreels_v2_infer.cli.settings import PARTS, DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.console import called
from skyreels_v2_infer.errors import Faults, InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.media import images, read
from skyreels_v2_infer.media.download import download_video
from skyreels_v2_infer.media.files import check_file
from skyreels_v2_infer.media.picture_video import is_pictures
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.plan.models import CAPTIONER, ENHANCER, HUB_FILE, HUB_ID, MODELS_720P, NO_MODEL, PUBLISHED
from skyreels_v2_infer.plan.sizes import RESOLUTIONS, check_size
from skyreels_v2_infer.plan.story import Scene, read_story
from skyreels_v2_infer.scheduler.windows import check_lengths, frames_of_one_more, usual_history


def generate_settings(args: argparse.Namespace, launch: Launch) -> GenerateSettings:
    """The settings of `generate_video.py`."""
    faults = check_shared(args, launch)
    values = filled(args)
    faults.check(check_lengths, values["num_frames"])
    faults.check(check_embedded_length, values, "num_frames", f"; {called(DIFFUSION_FORCING)} makes longer videos")
    faults.check(check_outdir, args.outdir)
    faults.check(check_frames_dir, args)
    pictures = located(args, ("image",), faults)
    source = source_size(faults, pictures["image"], None, None)
    raise_all(faults, args)
    values |= pictures
    values["height"], values["width"] = size_of(args, source)
    values["model_id"] = placed_model(args.model_id, image_to_video=args.image is not None)
    return check_name(GenerateSettings(**fields_of(GenerateSettings, values)))


def forcing_settings(args: argparse.Namespace, launch: Launch) -> DiffusionForcingSettings:
    """The settings of `generate_video_df.py`."""
    faults = check_shared(args, launch)
    faults.check(check_conditions, args)
    values = filled(args)
    extends = args.video_path is not None
    if extends and args.num_frames is None:
        values["num_frames"] = frames_of_one_more(values["base_num_frames"], values["overlap_history"])
    lengths = values["num_frames"], values["base_num_frames"], values["overlap_history"]
    faults.check(check_lengths, *lengths, extends)
    faults.check(check_embedded_length, values, "base_num_frames")
    faults.check(check_outdir, args.outdir)
    faults.check(check_frames_dir, args)
    faults.check(check_apart, args)
    prompts = faults.check(prompts_of, values)
    inputs = located(args, ("image", "end_image", "video_path"), faults)
    source = source_size(faults, inputs["image"], inputs["video_path"], inputs["end_image"])
    raise_all(faults, args)
    values |= inputs
    values["height"], values["width"] = size_of(args, source)
    values |= prompts
    values["model_id"] = placed_model(args.model_id, image_to_video=False)
    return check_name(DiffusionForcingSettings(**fields_of(DiffusionForcingSettings, values)))


def fields_of(kind: type, values: dict) -> dict:
    return {field.name: values[field.name] for field in dataclasses.fields(kind)}


def check_shared(args: argparse.Namespace, launch: Launch) -> Faults:
    """Cross-flag checks of both scripts, before any file is opened."""
    faults = Faults()
    faults.check(check_model_id, args.model_id)
    for check in (check_cache, check_levels, check_loras, check_parts):
        faults.check(check, args)
    faults.check(check_ranks, args, launch)
    for check in (check_enhancer, check_auto_prompt, check_sizes):
        faults.check(check, args)
    faults.check(check_rate, args)
    return faults


def raise_all(faults: Faults, args: argparse.Namespace) -> None:
    """Raises one `InputError` for all that were found, if any, and for a model of the wrong type."""
    if faults.errors:
        faults.check(check_published_type, args)
        faults.raise_all()


def check_published_type(args: argparse.Namespace) -> None:
    """The type of a published model, as `check_type`; that of other models is known once their files are."""
    kind, _ = PUBLISHED.get(args.model_id, (None, None))
    if kind is not None and args.dit_path is None:
        check_type(args.model_id, kind == "I2V", args.image, "video_path" in vars(args))


def check_rate(args: argparse.Namespace) -> None:
    if args.rate is not None and args.dry_run is None:
        raise InputError("rate", None, "has no effect without --dry_run")


def check_levels(args: argparse.Namespace) -> None:
    """--sigmas against the flags that it replaces."""
    if args.sigmas is not None:
        for name in ("inference_steps", "shift"):
            if getattr(args, name) is not None:
                raise InputError(name, getattr(args, name), "has no effect with --sigmas, which sets the noise levels")


def check_loras(args: argparse.Namespace) -> None:
    for lora in args.lora or ():
        if not lora.path.is_dir():
            check_file(lora.path, "lora")


def check_parts(args: argparse.Namespace) -> None:
    for name in PARTS.values():  # a path that leads nowhere is no hub id either
        path = getattr(args, name)
        if path is not None and not os.path.exists(os.path.expanduser(path)) and not HUB_FILE.fullmatch(path):
            raise InputError(name, path, "is neither a file nor a folder nor a hub id (owner/name, owner/name/file)")


def check_no_jobs(args: argparse.Namespace) -> None:
    """Raises an `InputError` for flags that only several videos need."""
    for name in ("keep_going", "gpus_per_job", "shard", "ray"):
        if getattr(args, name):
            raise InputError(name, None, "has no effect without --jobs or --sweep")


def check_name(settings: GenerateSettings) -> GenerateSettings:
    """Raises an `InputError` for a name pattern that does not make a name."""
    stem_of(settings, "seed" if settings.seed is None else settings.seed)
    return settings


def check_cache(args: argparse.Namespace) -> None:
    """--cache against the flags of TeaCache and MagCache."""
    name = "teacache" if args.teacache else (args.cache or "").partition(":")[0]
    if args.cache is not None:
        clash = [flag for flag in ("teacache", "use_ret_steps") if getattr(args, flag)]
        if args.teacache_thresh != TEACACHE_THRESHOLD:
            clash.append("teacache_thresh")
        if clash:
            legal = f"not with --{clash[0]}; TeaCache by this flag is --cache teacache:threshold=X,ret_steps=0 or 1"
            raise InputError("cache", args.cache, legal)
    if args.use_ret_steps and not args.teacache:
        raise InputError("use_ret_steps", None, "has no effect without --teacache")
    for flag, cache in (("teacache_coefficients", "teacache"), ("magcache_ratios", "magcache")):
        if getattr(args, flag) is not None and name != cache:
            needed = "--teacache" if cache == "teacache" else "--cache magcache"
            raise InputError(flag, None, f"has no effect without {needed}")


def check_ranks(args: argparse.Namespace, launch: Launch) -> None:
    """--use_usp and its flags against the processes that torchrun has started."""
    if args.use_usp and not launch.by_torchrun:
        raise InputError("use_usp", None, "needs torchrun: torchrun --nproc_per_node=GPUS SCRIPT ... --use_usp")
    if not args.use_usp:
        for name in ("cfg_parallel", "ulysses_degree", "ring_degree"):
            if getattr(args, name) is not None:
                raise InputError(name, None, "has no effect without --use_usp")
        if launch.size > 1:
            legal = f"torchrun has started {launch.size} processes, which would all make the same video"
            raise InputError("use_usp", None, f"is not given, but {legal}")
    if launch.size > 1:
        check_own_devices(args)


def check_own_devices(args: argparse.Namespace) -> None:
    """Raises an `InputError` if --device names one GPU for several processes."""
    if args.device not in (None, "cpu", "cuda"):
        raise InputError("device", args.device, "each of several processes takes a GPU of its own; give cuda or cpu")


def check_enhancer(args: argparse.Namespace) -> None:
    model = args.prompt_enhancer_model
    if model is not None and not args.prompt_enhancer:
        raise InputError("prompt_enhancer_model", model, "has no effect without --prompt_enhancer")
    if model is not None and not os.path.isdir(model) and not HUB_ID.fullmatch(model):
        raise InputError("prompt_enhancer_model", model, "is neither a folder nor the name of a model (owner/name)")
    if args.prompt_enhancer and find_spec("accelerate") is None:
        raise InputError("prompt_enhancer", None, "needs accelerate: pip install accelerate")


def check_auto_prompt(args: argparse.Namespace) -> None:
    """--prompt auto and its models; with several prompts none of them may be it."""
    prompts = args.prompt if isinstance(args.prompt, list) else [args.prompt]
    auto = [prompt for prompt in prompts if wish_in(prompt) is not None]
    for name in ("captioner_model", "fusion_model"):
        model = getattr(args, name)
        if model is not None and not auto:
            raise InputError(name, model, "has no effect without --prompt auto")
        named_model = model is None or os.path.isdir(model) or HUB_ID.fullmatch(model)
        if not named_model and not (name == "fusion_model" and model == NO_MODEL):
            raise InputError(name, model, "is neither a folder nor the name of a model (owner/name)")
    if not auto:
        return
    if len(prompts) > 1:
        raise InputError("prompt", auto[0], "stands alone, not among other prompts")
    if args.prompt_enhancer:
        raise InputError("prompt_enhancer", None, f"not with --prompt {auto[0]}, which makes such a prompt itself")
    if args.image is None and vars(args).get("video_path") is None:
        needed = "--image or --video_path" if "video_path" in vars(args) else "--image"
        raise InputError("prompt", auto[0], f"needs {needed}, which it describes")
    if find_spec("accelerate") is None:
        raise InputError("prompt", auto[0], "needs accelerate: pip install accelerate")


def check_sizes(args: argparse.Namespace) -> None:
    """--resolution or both of --height and --width, not a mixture."""
    given = [side for side in ("height", "width") if getattr(args, side) is not None]
    if len(given) == 1:
        missing = "width" if given == ["height"] else "height"
        raise InputError(given[0], getattr(args, given[0]), f"needs --{missing} as well")
    if given and args.resolution is not None:
        raise InputError("resolution", args.resolution, "give either --resolution or --height and --width")
    if given:
        check_size(args.height, args.width)


def check_conditions(args: argparse.Namespace) -> None:
    """Images, video, story and attention that exclude each other."""
    if args.image is not None and args.video_path is not None:
        raise InputError("image", args.image, "give either --image or --video_path: each begins the video")
    for name in ("keep_rate", "no_audio"):
        if getattr(args, name) and args.video_path is None:
            raise InputError(name, None, "has no effect without --video_path")
    if args.end_image is not None and args.causal_attention:
        raise InputError("end_image", args.end_image, "not with --causal_attention: no frame would attend to it")
    if args.story is not None and args.prompt is not None:
        raise InputError("story", args.story, "give either --prompt or --story")
    if args.input_color is not None and args.video_path is None:
        raise InputError("input_color", args.input_color, "has no effect without --video_path")
    if args.input_color is not None and not isinstance(args.video_path, str) and is_pictures(args.video_path):
        raise InputError("input_color", args.input_color, "is for videos; pictures state their colours in profiles")


def filled(args: argparse.Namespace) -> dict:
    """All values, with the model's defaults for flags that are not given, except height and width, see `size_of`."""
    defaults = defaults_of(args.model_id)
    values = dict(vars(args))
    for name, value in PRESETS.get(args.preset, {}).items():
        if values[name] is None:
            values[name] = value
    if values["solver"] is None:
        values["solver"] = SOLVER
    values["lora"] = tuple(values["lora"] or ())
    values["by_default"] = left_to_defaults(values)
    for field in dataclasses.fields(defaults):
        if field.name not in ("height", "width") and values.get(field.name, ...) is None:
            values[field.name] = getattr(defaults, field.name)
    if values["prompt_enhancer_model"] is None:
        values["prompt_enhancer_model"] = ENHANCER
    if values["captioner_model"] is None:
        values["captioner_model"] = CAPTIONER
    fusion_model = values["fusion_model"] or ENHANCER
    values["fusion_model"] = None if fusion_model == NO_MODEL else fusion_model
    if vars(args).get("overlap_history", ...) is None and defaults.overlap_history is not None:
        values["overlap_history"] = usual_history(values["base_num_frames"])
    return values


def left_to_defaults(values: dict) -> tuple[str, ...]:
    """Names of the settings that nothing on the command line decides, so that the model's defaults do."""
    names = {field.name for field in dataclasses.fields(Defaults) if values.get(field.name, ...) is None}
    if values["resolution"] is not None:
        names -= {"height", "width"}
    if values["sigmas"] is not None:
        names -= {"inference_steps", "shift"}
    if values.get("story") is not None:
        names.discard("prompt")
    return tuple(sorted(names))


def check_embedded_length(values: dict, name: str, hint: str = "") -> None:
    """Raises an `InputError` for windows longer than the embedded model was trained on: they would be noise."""
    if values["model_id"] == embedded.NAME and values[name] > TINY.base_num_frames:
        legal = f"{embedded.NAME} makes up to {TINY.base_num_frames} frames at once{hint}"
        raise InputError(name, values[name], legal)


def placed_model(model_id: str, image_to_video: bool) -> str:
    """A hub id or folder; the embedded model's name becomes the folder of its part."""
    return str(embedded.folder(image_to_video)) if model_id == embedded.NAME else model_id


def prompts_of(values: dict) -> dict:
    """prompt, prompts and story from --prompt, given once or several times, or from --story."""
    given = [values["prompt"]] if isinstance(values["prompt"], str) else values["prompt"]
    story: tuple[Scene, ...] | None = None
    if values["story"] is not None:
        story = read_story(values["story"], values["fps"])
        given = [story[0].prompt]
    # Not for languages without spaces, which write a whole scene as one word.
    elif len(given) > 1 and all(len(p.split()) == 1 for p in given) and any(p.isascii() for p in given):
        legal = "one word each: a prompt with spaces needs quotes (scenes of one word are for --story)"
        raise InputError("prompt", " ".join(given), legal)
    if (story is not None or len(given) > 1) and values["prompt_enhancer"]:
        raise InputError("prompt_enhancer", None, "expands a single prompt; not with several prompts or --story")
    return {"prompt": given[0], "prompts": tuple(given) if len(given) > 1 else None, "story": story}


def located(args: argparse.Namespace, names: Sequence[str], faults: Faults) -> dict[str, Path | None]:
    """The files of image and video flags; what is at an address is downloaded, unless the command is refused anyway."""
    found: dict[str, Path | None] = {}
    for name in names:
        given = getattr(args, name)
        if isinstance(given, str):
            download = download_video if name == "video_path" else images.download_image
            given = None if faults.errors else faults.check(download, given, name)
        found[name] = given
    return found


def source_size(
    faults: Faults, image: Path | None, video: Path | None, end_image: Path | None
) -> tuple[int, int] | None:
    """(height, width) of the file that decides on portrait or landscape; None: no file. Reads headers only."""
    sizes = []
    if video is not None:
        header = faults.check(read.video_header, video, "video_path")
        sizes.append(header and (header.height, header.width))
    for name, path in (("image", image), ("end_image", end_image)):
        if path is not None:
            sizes.append(faults.check(images.image_size, path, name))
    return sizes[0] if sizes else None


def size_of(args: argparse.Namespace, source: tuple[int, int] | None) -> tuple[int, int]:
    """(height, width) of the video, portrait if `source` (height, width) is."""
    if args.height is not None:
        return args.height, args.width
    if args.model_id == embedded.NAME and args.resolution is None:
        return TINY.height, TINY.width
    height, width = RESOLUTIONS[args.resolution or ("720P" if args.model_id in MODELS_720P else "540P")]
    return (width, height) if source is not None and source[0] > source[1] else (height, width)


def check_frames_dir(args: argparse.Namespace) -> None:
    """--frames_dir: a folder that can be written, and no reused windows, of which there are no frames."""
    if args.frames_dir is None:
        return
    if args.keep_parts:
        legal = "not with --keep_parts: of windows that are reused there are no lossless frames"
        raise InputError("frames_dir", args.frames_dir, legal)
    check_outdir(args.frames_dir, "frames_dir")


def check_apart(args: argparse.Namespace) -> None:
    """Raises an `InputError` for output in a folder of pictures that is continued: it would belong to the video."""
    if not isinstance(args.video_path, Path) or not args.video_path.is_dir():
        return
    for name in ("outdir", "frames_dir"):
        path = getattr(args, name)
        if path is not None and Path(os.path.realpath(path)).is_relative_to(os.path.realpath(args.video_path)):
            raise InputError(name, path, f"must be outside the folder of pictures {args.video_path} (--video_path)")


def check_outdir(outdir: Path, name: str = "outdir") -> None:
    """Raises an `InputError` if the folder of the flag `name` cannot be written or created; creates nothing."""
    existing = os.path.abspath(outdir)
    if set(existing) & set("\r\n"):
        raise InputError(name, outdir, "must have no line break in its path, which ffmpeg cannot open")
    while not os.path.lexists(existing) and existing != os.path.dirname(existing):
        existing = os.path.dirname(existing)
    if not os.path.isdir(existing):
        raise InputError(name, outdir, f"must be a folder, but {existing} is not one")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(name, outdir, f"must be writable, but {existing} is not")
    longest = os.pathconf(existing, "PC_NAME_MAX") if hasattr(os, "pathconf") else 255  # not on Windows
    for part in Path(os.path.abspath(outdir)).relative_to(existing).parts:
        if len(os.fsencode(part)) > longest:
            raise InputError(name, outdir, f"names of folders may have at most {longest} bytes there")
