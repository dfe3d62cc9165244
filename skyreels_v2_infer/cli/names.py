"""Settings -> the name of the video's file, by the default or by --name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import PurePath
from types import MappingProxyType

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.settings import PARTS, Affects, GenerateSettings
from skyreels_v2_infer.plan.naming import beginning, named, output_stem

# Too long, or a file's content.
NOT_IN_NAMES = ("prompts", "story", "sigmas", "teacache_coefficients", "magcache_ratios")


def name_fields(kind: type[GenerateSettings]) -> list[str]:
    """The settings that a name pattern may contain."""
    found = [field.name for field in fields(kind) if field.metadata["affects"] is not Affects.RUN]
    return [name for name in found if name not in NOT_IN_NAMES]


def values_of(settings: GenerateSettings) -> dict[str, object]:
    """The values of the fields of a name pattern."""
    values = {name: getattr(settings, name) for name in name_fields(type(settings))}
    parts = {name: PurePath(value).name for name in PARTS.values() if (value := values[name]) is not None}
    model = PurePath(embedded.name_of(settings.model_id)).name
    return values | parts | {"model_id": model, "lora": tuple(lora.name for lora in settings.lora)}


def stem_of(settings: GenerateSettings, seed: int | str, more: Mapping[str, object] = MappingProxyType({})) -> str:
    """The name of the video's file without extension.

    Args:
        seed: also where the settings have none; a text in its place for messages.
        more: fields of the pattern that are no settings.

    Raises:
        InputError: --name does not make a name.
    """
    if settings.name is None:
        return output_stem(settings.prompt, seed)
    return named(settings.name, values_of(settings) | {"seed": seed, **more})


def stems_begin(settings: GenerateSettings) -> str:
    """How the name begins, whatever the seed is."""
    if settings.name is None:
        return output_stem(settings.prompt, "")
    return beginning(settings.name, values_of(settings))
