"""--replay: a video's manifest -> the flags that made it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, fields_that
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.comment import comment_of

FORMAT = 1  # of manifests
_CHOSEN = ("teacache_coefficients",)  # recorded for the video's model and size
# Flags given beside --replay -> other recorded settings that they override as well.
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
FORMERLY = {"device"}  # recorded in manifests of version 0.1.0; ignored, since it does not change the frames


def read_manifest(path: Path) -> dict:
    """The manifest in a file: a video, or the JSON beside one.

    Raises:
        InputError: there is none, or this program did not write it.
    """
    try:
        text = path.read_text("utf-8") if path.suffix.lower() == ".json" else comment_of(path)
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
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
        legal = f"must be a video that this program made, or the .json beside one ({first_line(error, 80)})"
        raise InputError("replay", path, legal) from None
    return manifest


def replayed_flags(path: Path, script: str, argv: Sequence[str]) -> list[str]:
    """The flags that made a video, without those that `argv` overrides.

    Only settings that change the frames are taken: a file from elsewhere must not decide where files are written or
    what the machine does.

    Raises:
        InputError: there is no manifest, or the other script wrote it.
    """
    written = read_manifest(path)
    if written["script"] != script:
        raise InputError("replay", path, f"was made by {written['script']}")
    given = {word.partition("=")[0] for word in argv}
    replaced = FORMERLY | {name for flag, names in REPLACED.items() if flag in given for name in names}
    return flags_of({name: value for name, value in written["settings"].items() if name not in replaced})


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
