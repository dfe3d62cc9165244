"""--replay: the flags in a video's manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, fields_that
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.comment import comment_of
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.plan.models import PUBLISHED

FORMAT = 1  # of manifests
_CHOSEN = ("teacache_coefficients",)  # for the model and the size that the video had
# Flags given beside --replay, and the settings of the video that they replace as well.
REPLACED = {
    "--model_id": _CHOSEN,
    "--use_ret_steps": _CHOSEN,
    "--height": _CHOSEN,
    "--width": _CHOSEN,
    "--resolution": ("height", "width", *_CHOSEN),
    "--prompt": ("story",),
    "--story": ("prompt",),
    "--image": ("video_path",),
    "--video_path": ("image",),
}
REPLAYED = frozenset(field.name for field in fields_that(DiffusionForcingSettings, replayed=True))
# Settings that name a file or an address, which a manifest from elsewhere may not choose.
FILES = frozenset(field.name for field in fields_that(DiffusionForcingSettings, replayed=True) if "Path" in field.type)
FORMERLY = {"device"}  # stood among the settings in manifests of version 0.1.0; a machine's setting is not taken over


def read_manifest(path: Path) -> dict:
    """The manifest in a file: a video, or the JSON beside one.

    Raises:
        InputError: none, or not one of this program.
    """
    try:
        text = read_small(path).decode() if path.suffix.lower() == ".json" else comment_of(path)
        manifest = json.loads(text)
        if manifest["format"] != FORMAT or not isinstance(manifest["settings"], dict):
            raise ValueError("of another version")
        if not isinstance(manifest.get("inputs", {}), dict) or not isinstance(manifest["script"], str):
            raise ValueError("changed by hand")
        for name, value in manifest["settings"].items():
            if not isinstance(value, str | int | float | list):
                raise ValueError(f"{name} cannot be {value}")
            if name not in REPLAYED | FORMERLY:
                raise ValueError(f"{name} is not a setting that changes a video's frames")
            if name == "story" and not str(value).lstrip().startswith("["):
                raise ValueError("story must be a list of scenes")  # never the name of a file
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        legal = f"must be a video that this program made, or the .json beside one ({first_line(error, 80)})"
        raise InputError("replay", path, legal) from None
    return manifest


def replayed_flags(path: Path, script: str, argv: Sequence[str], trusted: bool = False) -> list[str]:
    """The flags that made a video, without those that `argv` replaces.

    Only settings that change the frames are taken: a video from elsewhere decides neither where files are written nor
    what the machine does. Nor does it choose which files are read, unless it is `trusted`.

    Raises:
        InputError: no manifest, or one of another script; or one that names files, an address or a model that is not a
            published one, without being trusted.
    """
    written = read_manifest(path)
    if written["script"] != script:
        raise InputError("replay", path, f"was made by {written['script']}")
    given = {word.partition("=")[0] for word in argv}
    replaced = FORMERLY | {name for flag, names in REPLACED.items() if flag in given for name in names}
    taken = {name: value for name, value in written["settings"].items() if name not in replaced}
    foreign = [
        f"--{name} {value}" for name, value in taken.items() if f"--{name}" not in given and reaches(name, value)
    ]
    if foreign and not trusted:
        legal = f"would use {', '.join(foreign)}; give --trust_replay, or the flag itself"
        raise InputError("replay", path, legal)
    return flags_of(taken)


def reaches(name: str, value: object) -> bool:
    """Whether a setting names a file, a folder or an address, rather than what comes with the program."""
    if name == "model_id":
        return value != embedded.NAME and value not in PUBLISHED
    # Of text there is only the prompts', which may speak of addresses.
    address = isinstance(value, str) and re.match("[a-z][a-z0-9+.-]*://", value, re.IGNORECASE)
    return name in FILES or (bool(address) and "prompt" not in name)


def flags_of(settings: dict) -> list[str]:
    """Settings as a manifest has them -> a command line."""
    flags = []
    for name, value in settings.items():
        if value is True:
            flags.append(f"--{name}")
        elif value is not False:
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            flags.append(f"--{name}={text}")
    return flags
