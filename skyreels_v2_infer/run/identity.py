"""The identity of a run (settings that change the frames, fingerprints of input files) and the keys of its pieces."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from skyreels_v2_infer.cli.settings import PARTS, Affects, GenerateSettings, fields_that
from skyreels_v2_infer.plan.kernels import APPROXIMATE_KERNELS
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.run.files import fingerprint
from skyreels_v2_infer.run.record import digest_of
from skyreels_v2_infer.weights.locate import Checkpoint


def identity_of(script: str, settings: GenerateSettings, plan: Plan, checkpoint: Checkpoint) -> dict:
    """JSON data, with fingerprints for files; two runs with the same identity make the same video."""
    identity: dict = {"script": script}
    for field in fields_that(settings, affects=Affects.FRAMES):
        value = getattr(settings, field.name)
        identity[field.name] = fingerprint(value) if isinstance(value, Path) else value
    identity["kernels"] = settings.attention if settings.attention in APPROXIMATE_KERNELS else "exact"
    identity["lora"] = [[contents(lora.path), lora.strength] for lora in settings.lora]
    identity.pop("prompts", None)
    # Frames that an earlier run did not write as they were made cannot be had from it.
    identity["frames_dir"] = None if settings.frames_dir is None else str(settings.frames_dir.absolute())
    if "story" in identity:
        identity["story"] = None if plan.scenes is None else [asdict(scene) for scene in plan.scenes]
    identity["model_id"] = weights_of(checkpoint)
    for name in PARTS.values():  # their contents are among the weights, wherever they are
        del identity[name]
    if plan.cache is not None:  # these may come from a file in the model's folder
        identity |= plan.cache.found
    return json.loads(json.dumps(identity))  # comparable with one that was read from a file


def weights_of(checkpoint: Checkpoint) -> dict[str, str]:
    """Fingerprints of a checkpoint's files by name."""
    found = {}
    for name, part in checkpoint.parts.items():
        for file in part.files:
            if file.is_file():
                inside = file.is_relative_to(checkpoint.folder) and checkpoint.layout != "parts"
                found[str(file.relative_to(checkpoint.folder)) if inside else f"{name}/{file.name}"] = fingerprint(file)
    return dict(sorted(found.items()))


def contents(path: Path) -> object:
    """A fingerprint of a file, or of every file in a folder."""
    if path.is_file():
        return fingerprint(path)
    return {file.name: fingerprint(file) for file in sorted(path.iterdir()) if file.is_file()}


def asked_for(identity: dict) -> str:
    """A hash of the identity without its seed."""
    return digest_of(identity | {"seed": None})


def piece_keys(settings: GenerateSettings, plan: Plan, identity: dict, settled: dict) -> tuple[str, ...]:
    """A key for every piece: two runs with the same key make the same piece, and the same pieces before it."""
    by_window = {field.name for field in fields_that(settings, by_window=True)}
    fixed = {name: value for name, value in identity.items() if name not in (*by_window, "frames_dir")}
    so_far: list = [fixed | {name: settled.get(name) for name in ("device", "dtype", "vae_tiling")}]
    keys = [digest_of({"pieces": so_far})] if plan.prefix_frames else []
    for window in plan.windows:
        end = identity.get("end_image") if window.end_latents else None
        texts = [window.prompt, window.negative_prompt, window.seed, window.guidance_scale]
        so_far.append([asdict(window.window), *texts, end, *window.lora_strengths])
        keys.append(digest_of({"pieces": so_far}))
    return tuple(keys)
