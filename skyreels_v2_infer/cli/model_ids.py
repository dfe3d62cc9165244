"""Ids of models: those that are none, the one that was probably meant, and --list_models."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.defaults import TINY, chosen_by_default, defaults_of
from skyreels_v2_infer.cli.help import DIFFUSION_FORCING, GENERATE
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.console import called
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan import cost, models
from skyreels_v2_infer.plan.downloads import download_bytes
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.plan.sizes import RESOLUTIONS

OWNERS = ("skywork", "skyworkai")  # the hub's and GitHub's name; other owners may have models of the same names
DIFFUSERS = "-Diffusers"
KINDS = {kind.lower() for kind, _ in models.PUBLISHED.values()}


def check_model_id(model_id: str) -> None:
    """Raises an `InputError` for what is neither a folder nor can be a model's id, with the nearest published one."""
    if model_id == embedded.NAME or model_id in models.PUBLISHED or os.path.exists(os.path.expanduser(model_id)):
        return
    near = nearest(model_id)
    if not models.HUB_ID.fullmatch(model_id):
        hint = f"did you mean {near}?" if near else "--list_models lists the published ones"
        raise InputError("model_id", model_id, f"no such folder, and no id like owner/name; {hint}")
    owner, _, name = model_id.lower().partition("/")
    close = difflib.get_close_matches(owner, OWNERS, 1, cutoff=0.85)  # of whom no other model has such a name
    if close and near and re.fullmatch(r"sky-?reels?-?v2\W.*", name.replace("_", "-")):
        raise InputError("model_id", model_id, f"is not published; the nearest is {near} (--list_models lists all)")


def nearest(model_id: str) -> str | None:
    """The published id, or the embedded model's name, that was probably meant; None: nothing is near."""
    names = {name.partition("/")[2].lower(): name for name in models.PUBLISHED} | {embedded.NAME: embedded.NAME}
    given = model_id.lower().rstrip("/").rpartition("/")[2].replace("_", "-").replace(" ", "-")
    if "t2v" in given:  # a diffusion-forcing model makes videos from text alone, an image-to-video model does not
        names = {name: full for name, full in names.items() if "-i2v-" not in name}
    parts = set(given.removesuffix("-").split("-"))
    holding = [full for name, full in names.items() if parts <= {*name.split("-")}]  # DF-14B, SkyReels-V2-DF-14B
    if parts & KINDS and holding:
        return holding[0]
    found = difflib.get_close_matches(given, names, 1, cutoff=0.6)
    return names[found[0]] if found else None


def check_type(model_id: str, image_to_video: bool, image: Path | str | None, forcing: bool) -> None:
    """Raises an `InputError` if a model is of the wrong type for a script and its image.

    Args:
        image_to_video: whether it is an image-to-video model.
        image: what --image gives.
        forcing: whether the script is that for diffusion forcing.
    """
    if forcing:
        if image_to_video:
            raise InputError("model_id", model_id, f"is an image-to-video model; use {called(GENERATE)}")
    elif image_to_video and image is None:
        raise InputError("image", None, f"the image-to-video model {model_id} needs one")
    elif image is not None and not image_to_video:
        raise InputError("image", image, f"{model_id} is not an image-to-video model")


def remarks_on(settings: GenerateSettings) -> list[str]:
    """Lines about what was chosen by default, and about a model that was not trained for what it is used for."""
    lines = [chosen_by_default(settings)]
    model_id = settings.model_id
    kind, _ = models.PUBLISHED.get(model_id, (None, None))
    if kind == "T2V" and isinstance(settings, DiffusionForcingSettings):
        better = model_id.replace("-T2V-", "-DF-")
        lines.append(
            f"--model_id {model_id}: trained on text to video, with one noise level for all frames, not on continuing "
            f"frames; {better} was trained on diffusion forcing"
        )
    return [line for line in lines if line is not None]


def listing() -> str:
    """The published models: task, size, download in both layouts, and memory."""
    rows = [("model", "task", "size", "frames", "download", DIFFUSERS, "GPU memory", "--offload")]
    for model_id in models.PUBLISHED:
        if not model_id.endswith(DIFFUSERS):
            rows.append(row_of(model_id))
    every = f"{TINY.height}x{TINY.width}"
    rows.append((embedded.NAME, "all", every, str(TINY.num_frames), "none", "", "any CPU", ""))
    widths = [max(len(row[i]) for row in rows) + 2 for i in range(len(rows[0]))]
    lines = ["".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    tasks = f"T2V and I2V: {called(GENERATE)}, I2V with --image. DF: {called(DIFFUSION_FORCING)}, all tasks."
    layouts = f"Each id also exists with {DIFFUSERS}: the same weights in the layout of diffusers. All figures are"
    memory = "estimates; memory is the peak in bfloat16 at this size and length. --dry_run has those of other settings."
    return "\n".join([*lines, "", tasks, layouts, memory]) + "\n"


def row_of(model_id: str) -> tuple[str, ...]:
    kind, _ = models.PUBLISHED[model_id]
    height, width = RESOLUTIONS["720P" if model_id in models.MODELS_720P else "540P"]
    frames = defaults_of(model_id).num_frames
    plan = make_plan(frames, 1, 8.0, height=height, width=width, guidance_scale=6.0)
    usual, offloaded = (
        cost.cost_of(plan, models.architecture(model_id), weight_bytes=2, holding=holding).peak_gib
        for holding in (cost.Holding(), cost.Holding("blocks"))
    )
    downloads = (sum(download_bytes(name).values()) / 1e9 for name in (model_id, model_id + DIFFUSERS))
    size = f"{height}x{width}"
    memory = f"{usual:.0f} GiB", f"{offloaded:.0f} GiB"
    return (model_id, kind, size, str(frames), *(f"{gb:.0f} GB" for gb in downloads), *memory)
