"""--replay: a video's manifest -> the flags that made it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.defaults import PRESETS
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, fields_that
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.comment import comment_of
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.media.pipes import StalledError
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.plan.models import PUBLISHED

FORMAT = 1  # of manifests
APPROXIMATE = "attention"  # recorded where the kernel that was asked for is not exact
_RATIOS = ("magcache_ratios",)  # recorded for the video's model, shift and number of steps
_CHOSEN = ("teacache_coefficients", *_RATIOS)  # recorded for the video's model and size
_EXTENDED = ("keep_rate", "no_audio")  # how a video that is continued is read
# Flags given beside --replay -> other recorded settings that they override as well.
REPLACED = {
    "--model_id": _CHOSEN,
    "--cache": ("teacache", "teacache_thresh", "use_ret_steps", "cache", *_CHOSEN),
    "--teacache": ("cache", *_CHOSEN),
    "--use_ret_steps": _CHOSEN,
    "--height": _CHOSEN,
    "--width": _CHOSEN,
    "--resolution": ("height", "width", *_CHOSEN),
    "--prompt": ("story",),
    "--story": ("prompt",),
    "--image": ("video_path", "input_color", *_EXTENDED),
    "--lora": ("lora",),
    "--dit_path": _CHOSEN,
    "--inference_steps": ("sigmas", *_RATIOS),
    "--shift": ("sigmas", *_RATIOS),
    "--sigmas": ("inference_steps", "shift", *_RATIOS),
    "--preset": ("sigmas", *_RATIOS, *(name for preset in PRESETS.values() for name in preset)),
    "--video_path": ("image",),
}
REPLAYED = frozenset(field.name for field in fields_that(DiffusionForcingSettings, replayed=True)) | {APPROXIMATE}
# Settings that name a file, a folder or an address, which a manifest from elsewhere must not choose.
FILES = frozenset(name for name in REPLAYED if name.endswith("_path") or name in ("image", "end_image", "lora"))
FORMERLY = {"device"}  # recorded in manifests of version 0.1.0; ignored, since it does not change the frames


def in_files(name: str) -> bool:
    """Whether a setting names files or folders."""
    return name in FILES or name == "model_id"


def named(value: object) -> object:
    """A path, or a list of them, without folders; anything else as it is."""
    if isinstance(value, list | tuple):
        return [named(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip("/\\")) or value
    return value


def read_manifest(path: Path, flag: str = "replay") -> dict:
    """The manifest in a file, see `read_one`: a video, or the JSON beside one.

    That in a video names files without their folders; of a video beside its JSON, that has the folders as well.
    """
    found = read_one(path, flag)
    beside = path.with_suffix(".json")
    if beside == path or not beside.is_file():
        return found
    with suppress(InputError):
        other = read_one(beside)
        whole = {name: named(value) if in_files(name) else value for name, value in other["settings"].items()}
        if whole == found["settings"] and other.get("inputs") == found.get("inputs"):
            return found | {"settings": other["settings"]}
    return found


def read_one(path: Path, flag: str = "replay") -> dict:
    """The manifest in a file, as it is there.

    Args:
        flag: that names the file, for messages.

    Raises:
        InputError: there is none, or this program did not write it.
        StalledError: ffmpeg makes no progress.
    """
    try:
        text = read_small(path).decode() if path.suffix.lower() == ".json" else comment_of(path)
        manifest = json.loads(text)
        if manifest["format"] != FORMAT or not isinstance(manifest["settings"], dict):
            raise ValueError("of another version")
        if not isinstance(manifest.get("inputs", {}), dict) or not isinstance(manifest["script"], str):
            raise ValueError("changed by hand")
        for name, value in manifest["settings"].items():
            if not all(isinstance(item, str | int | float) for item in (value if isinstance(value, list) else [value])):
                raise ValueError(f"{name} cannot be {value}")
            if name not in REPLAYED | FORMERLY:
                raise ValueError(f"{name} is not a setting that changes a video's frames")
            if name == "story" and not str(value).lstrip().startswith("["):
                raise ValueError("story must be a list of scenes")  # never the name of a file
    except StalledError:
        raise
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        legal = f"must be a video that this program made, or the .json beside one ({first_line(error, 80)})"
        raise InputError(flag, path, legal) from None
    return manifest


def replayed_flags(
    path: Path, script: str, argv: Sequence[str], trusted: bool = False, flag: str = "replay"
) -> list[str]:
    """The flags that made a video, without those that `argv` overrides.

    Only settings that change the frames are taken: a file from elsewhere must not decide where files are written or
    what the machine does, nor, unless it is `trusted`, which files are read.

    Args:
        flag: that names the file, for messages.

    Raises:
        InputError: there is no manifest, or the other script wrote it; or it names files, an address or an unpublished
            model without being trusted.
    """
    written = read_manifest(path, flag)
    if written["script"] != script:
        raise InputError(flag, path, f"was made by {written['script']}")
    given = {word.partition("=")[0] for word in argv}
    replaced = FORMERLY | {name for one, names in REPLACED.items() if one in given for name in names}
    taken = {name: value for name, value in written["settings"].items() if name not in replaced}
    if "video_path" in taken:  # versions that do not say so read frame for frame, without sound
        taken = dict.fromkeys(_EXTENDED, True) | taken
    foreign = [
        f"--{name} {' '.join(map(str, value)) if isinstance(value, list) else value}"
        for name, value in taken.items()
        if f"--{name}" not in given and reaches(name, value)
    ]
    if foreign and not trusted:
        legal = f"would use {', '.join(foreign)}; give --trust_replay, or the flag itself"
        raise InputError(flag, path, legal)
    return flags_of(taken)


def reaches(name: str, value: object) -> bool:
    """Whether a setting names a file, a folder or an address, or has language models loaded."""
    if name == "model_id":
        return not isinstance(value, str) or (value != embedded.NAME and value not in PUBLISHED)
    if name == "prompt":  # what is recorded is what became of "auto"; any other text may speak of addresses
        return any(wish_in(text) is not None for text in (value if isinstance(value, list) else [value]))
    if name in FILES:
        return value is not False and value != []  # the number 0 is the name of a file
    address = isinstance(value, str) and re.match("[a-z][a-z0-9+.-]*://", value, re.IGNORECASE)
    return bool(address) and "prompt" not in name


def flags_of(settings: dict) -> list[str]:
    """Settings of a manifest -> a command line."""
    flags = []
    for name, value in settings.items():
        if value is True:
            flags.append(f"--{name}")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], str):  # a flag that may be repeated
            flags += [f"--{name}={one}" for one in value]
        elif isinstance(value, list | tuple):
            flags += [f"--{name}={','.join(map(str, value))}"] if value else []
        elif value is not False:
            flags.append(f"--{name}={value}")
    return flags
