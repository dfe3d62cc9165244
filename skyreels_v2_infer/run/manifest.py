"""The manifest: how a video was made, written beside it and into it, and read by --replay and --resume."""

from __future__ import annotations

import glob
import json
import platform
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from skyreels_v2_infer import __version__, embedded
from skyreels_v2_infer.cli.replay import APPROXIMATE, FORMAT, in_files, named, read_manifest
from skyreels_v2_infer.cli.settings import PARTS, GenerateSettings, fields_that
from skyreels_v2_infer.errors import InputError, printable
from skyreels_v2_infer.plan.kernels import APPROXIMATE_KERNELS
from skyreels_v2_infer.plan.plan import Plan

MOST_SHOWN = 100  # characters of what another manifest says
INPUTS = ("image", "end_image", "video_path")  # files whose fingerprints are recorded


def describe(script: str, settings: GenerateSettings, plan: Plan, identity: dict, settled: dict, key: str) -> dict:
    """The part of a manifest that is the same for every run that makes the same video.

    Args:
        settled: prompt, device, dtype, vae_tiling and threads as the run uses them, the video that is continued, and
            what was changed about images on the way in.
        key: of the last piece.
    """
    source = {"source": settled["source"]} if "source" in settled else {}
    return {
        "format": FORMAT,
        "script": script,
        "settings": settings_of(settings, plan, choices(plan, settled)),
        "weights": identity["model_id"],
        "inputs": {name: identity[name] for name in INPUTS if identity.get(name)},
        **source,
        # Sums are rounded differently on another device or with another number of threads.
        "machine": {name: settled[name] for name in ("device", "threads") if name in settled},
        "versions": versions(),
        "plan": key,
        **({"changes": settled["changes"]} if "changes" in settled else {}),
    }


def settings_of(settings: GenerateSettings, plan: Plan, chosen: dict | None = None) -> dict:
    """Flags and values that make the same video, as JSON data; paths are absolute.

    Args:
        chosen: values that the run chose where settings are None.
    """
    names = [field.name for field in fields_that(settings, replayed=True)]
    values = {name: (chosen or {}).get(name, getattr(settings, name)) for name in names}
    values = {name: value for name, value in values.items() if value is not None}
    if settings.sigmas is not None:
        del values["inference_steps"], values["shift"]
    if settings.attention in APPROXIMATE_KERNELS:
        values[APPROXIMATE] = settings.attention
    if plan.scenes is not None:
        del values["prompt"]
        scenes = [{k: v for k, v in asdict(scene).items() if v is not None} for scene in plan.scenes]
        values["story"] = json.dumps(scenes)
    for name in PARTS.values():
        if values.get(name) is not None and Path(values[name]).exists():
            values[name] = Path(values[name])
    values["lora"] = [f"{lora.path.absolute()}:{lora.strength!r}" for lora in plan.loras]
    values["model_id"] = model = embedded.name_of(settings.model_id)
    if model != embedded.NAME and Path(model).is_dir():
        values["model_id"] = Path(model)
    return {name: str(value.absolute()) if isinstance(value, Path) else value for name, value in values.items()}


def shared(about: dict) -> dict:
    """The manifest for the inside of the video, which is passed on: files are named without their folders."""
    settings = {name: named(value) if in_files(name) else value for name, value in about["settings"].items()}
    return about | {"settings": settings}


def choices(plan: Plan, settled: dict) -> dict:
    """Values that a run chose where settings were None."""
    chosen = {"seed": plan.seed, **{name: settled.get(name) for name in ("dtype", "prompt", "vae_tiling")}}
    return chosen if plan.cache is None else chosen | plan.cache.found


def versions() -> dict[str, str]:
    """Versions of everything that the frames depend on."""
    import imageio_ffmpeg

    found = {"skyreels_v2_infer": __version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    found["ffmpeg"] = imageio_ffmpeg.get_ffmpeg_version()
    found["machine"] = f"{platform.system()} {platform.machine()}"
    return found


def peak_memory() -> dict[str, float]:
    """Peak memory of this process so far, in GiB: of the host, and of the GPU if one is in use."""
    found = {}
    with suppress(ImportError):  # not on Windows
        import resource

        scale = 2**30 if sys.platform == "darwin" else 2**20
        found["host"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale, 3)
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        found["gpu"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    return found


def forget_peak_memory() -> None:
    """Begins anew with the peak of the GPU; that of the host is known for the whole process only."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in seconds.items()}


def text_of(manifest: dict) -> str:
    return json.dumps(manifest, indent=1)  # ASCII only: a path may contain bytes that are not UTF-8


def changed_since(path: Path, settings: GenerateSettings, plan: Plan, identity: dict) -> Iterator[str]:
    """A line for each input file of the video in `path` that has changed since.

    Args:
        identity: of the run, with fingerprints of files and weights.
    """
    written, now = read_manifest(path), settings_of(settings, plan)
    was_then = written.get("inputs", {})
    for name, was in [(name, was_then[name]) for name in INPUTS if name in was_then]:
        if name in now and named(now[name]) == named(written["settings"].get(name)) and identity[name] != was:
            yield f"--replay {path}: {now[name]} has changed since"
    if named(now["model_id"]) == named(written["settings"].get("model_id")) and identity["model_id"] != written.get(
        "weights"
    ):
        yield f"--replay {path}: the weights of {now['model_id']} have changed since"


def other_machine(path: Path, settled: dict) -> str | None:
    """A line if the video in `path` was made on another device or with another number of CPU threads."""
    written = read_manifest(path).get("machine")
    now = {name: settled[name] for name in ("device", "threads") if name in settled}
    if not isinstance(written, dict) or written == now:
        return None
    was, is_now = (
        printable(", ".join(f"{name} {value}" for name, value in one.items()))[:MOST_SHOWN] for one in (written, now)
    )
    hint = ""
    if written.get("device") == now["device"] == "cpu" and type(written.get("threads")) is int:
        hint = f"; OMP_NUM_THREADS={written.get('threads')} makes the same file"
    return f"--replay {path}: made with {was}, now {is_now}: frames can differ in the last bit{hint}"


def named_as(outdir: Path, stem: str, seed: int | None) -> list[Path]:
    """The manifests of videos of this name, see `finished`."""
    found = sorted(outdir.glob(f"{glob.escape(stem)}*.json"))
    return [path for path in found if seed is None or re.fullmatch(rf"{re.escape(stem)}(-[0-9]+)?", path.stem)]


def finished(outdir: Path, stem: str, asked: str, seed: int | None) -> Path | None:
    """A finished video of the same command, files and weights; None: there is none.

    Args:
        stem: its name without extension; without a seed, the beginning of that.
        asked: see `asked_for`.
        seed: None: any.
    """
    for path in named_as(outdir, stem, seed):
        try:
            found = read_manifest(path)
        except InputError:
            continue
        video = path.with_suffix(".mp4")
        if found.get("asked") == asked and seed in (None, found["settings"].get("seed")) and video.is_file():
            return video
    return None
