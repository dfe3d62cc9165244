"""Checks of all videos of a batch before the first one is made: what each would find wrong before it loads weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from typing import TypeVar

from skyreels_v2_infer.cli.batch import JobList, JobRow, error_line
from skyreels_v2_infer.cli.names import stem_of
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.cli.settings import GenerateSettings, replaced_parts
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import texts_of
from skyreels_v2_infer.run import manifest
from skyreels_v2_infer.run.frames import check_new
from skyreels_v2_infer.run.identity import asked_for, identity_of
from skyreels_v2_infer.run.inputs import count_video
from skyreels_v2_infer.run.model_files import Models, known_config, known_folder
from skyreels_v2_infer.run.placing import check_packages, worth_compiling
from skyreels_v2_infer.run.resume import run_folders
from skyreels_v2_infer.weights.verify import check_files

T = TypeVar("T")
# Settings for which a model is loaded anew; the LoRAs' strengths are those of the first window.
LOADED = ("model_id", "dit_path", "vae_path", "text_encoder_path", "image_encoder_path", "weights", "quantize")
LOADED += ("dtype", "vae_dtype", "vae_tiling", "attention", "compile", "offload", "memory", "lora")


@dataclass(frozen=True)
class CheckedRow:
    """A valid row, with what the batch needs to know of its plan.

    Attributes:
        texts: that its text encoder reads.
        model: videos with the same value need the same model, loaded in the same way.
    """

    row: JobRow
    texts: tuple[str, ...]
    model: tuple


class Once:
    """Results of checks, each made once for the same key."""

    def __init__(self):
        self._found: dict[Hashable, object] = {}

    def __call__(self, key: Hashable, check: Callable[[], T]) -> T:
        if key not in self._found:
            try:
                self._found[key] = check()
            except (InputError, OSError) as error:
                self._found[key] = error
        found = self._found[key]
        if isinstance(found, InputError):
            raise InputError(found.name, found.value, found.legal)
        if isinstance(found, OSError):
            raise found
        return found


def check_rows(
    jobs: JobList, models: Models, seen: Callable[[JobRow, Plan, dict | None], object] = lambda *about: None
) -> tuple[list[CheckedRow], JobList]:
    """The valid rows, and the list with the errors of all rows that are not.

    Args:
        seen: called with every plan, for its cost, and the transformer's arguments.
    """
    once, valid, rows = Once(), [], []
    for row in jobs.rows:
        if row.settings is not None:
            try:
                plan, config = checked(row.settings, jobs.group, models, once)
                check_frames(jobs.script, row.settings, plan, models)
                seen(row, plan, config)
                valid.append(CheckedRow(row, texts_to_encode(row.settings, plan), model_of(row.settings, plan, config)))
            except (InputError, OSError) as error:  # as when ffmpeg makes no progress with the row's video
                row = row.refused(error_line(error))
        rows.append(row)
    return valid, replace(jobs, rows=tuple(rows))


def checked(settings: GenerateSettings, ranks: int, models: Models, once: Once) -> tuple[Plan, dict | None]:
    """The plan of a video and its transformer's arguments, which are None before a download.

    Raises:
        InputError: for what is wrong with its files, its model or their combination.
    """
    if wish_in(settings.prompt) is not None:  # the captioner would share the memory with the video model
        legal = "not in a batch; caption_video.py --task i2v writes prompts for many videos"
        raise InputError("prompt", settings.prompt, legal)
    for name in ("image", "end_image"):
        path = getattr(settings, name, None)
        if path is not None:
            wanted = path, settings.height, settings.width, name
            once((file_key(path), *wanted), lambda wanted=wanted: read_image(*wanted) is None)
    video = getattr(settings, "video_path", None)
    read_as = settings.fps, getattr(settings, "keep_rate", False)
    frames = 0 if video is None else once(("video", file_key(video), *read_as), lambda: count_video(settings).frames)
    parts = tuple(replaced_parts(settings).items())
    config, folder = once(("config", settings.model_id, parts), lambda: known_config(settings))
    plan = plan_of(settings, config, folder, frames, ranks)
    check_packages(plan)
    if known_folder(settings) is not None and all(os.path.exists(os.path.expanduser(path)) for _, path in parts):
        once(("files", settings.model_id, parts), lambda: check_files(models.checkpoint(settings)))
    return plan, config


def check_frames(script: str, settings: GenerateSettings, plan: Plan, models: Models) -> None:
    """Raises an `InputError` if the video's frames cannot be written to --frames_dir, and will have to be."""
    if settings.frames_dir is None:
        return
    try:
        check_new(settings.frames_dir)
    except InputError:
        if not may_be_finished(script, settings, plan, models):
            raise


def may_be_finished(script: str, settings: GenerateSettings, plan: Plan, models: Models) -> bool:
    """Whether the video is finished, or may be: its run has not been tidied up, or its model is not at hand."""
    stem = stem_of(settings, settings.seed)
    if run_folders(settings.outdir, stem, settings.seed):
        return True
    if known_folder(settings) is None:
        return bool(manifest.named_as(settings.outdir, stem, settings.seed))
    identity = identity_of(script, settings, plan, models.checkpoint(settings))
    return manifest.finished(settings.outdir, stem, asked_for(identity), settings.seed) is not None


def file_key(path: os.PathLike) -> tuple:
    try:
        found = os.stat(path)
    except OSError:
        return (str(path),)
    return str(path), found.st_size, found.st_mtime_ns


def texts_to_encode(settings: GenerateSettings, plan: Plan) -> tuple[str, ...]:
    """The texts of a plan, without one that will be enhanced first."""
    return tuple(text for name, text in texts_of(plan) if not (settings.prompt_enhancer and name == "prompt"))


def model_of(settings: GenerateSettings, plan: Plan, config: dict | None) -> tuple:
    """What decides how a model is loaded."""
    compiled = settings.compile == "auto" and config is not None and worth_compiling(settings, plan, config)
    named = tuple(getattr(settings, name) for name in LOADED)
    return *named, tuple(lora.strength for lora in plan.first_loras), plan.lora_strengths_change, compiled
