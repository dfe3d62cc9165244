"""Settings -> the name of the video's file, by the default or by --name."""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from pathlib import PurePath
from types import MappingProxyType

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.settings import PARTS, Affects, GenerateSettings
from skyreels_v2_infer.plan.naming import beginning, formatted, named, output_stem

SWEPT = 24  # characters of the text of a swept value
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


def tells_apart(name: str, some: Iterable[GenerateSettings]) -> bool:
    """Whether there is a field `name` of name patterns, and it differs wherever that setting does."""
    found: dict[str, object] = {}
    for settings in some:
        if name not in name_fields(type(settings)):
            return False
        value = getattr(settings, name)
        if found.setdefault(formatted(name, values_of(settings)[name], None).casefold(), value) != value:
            return False
    return True


def labels_of(texts: Collection[str]) -> dict[str, str]:
    """Short texts for file names, by the texts of the values of a swept flag; different for different ones."""
    labels = {text: re.sub(r"[^\w.=+-]+", "-", text).strip("-.") or "none" for text in texts}
    count = Counter(label.casefold() for label in labels.values())
    return {
        text: label
        if len(label) <= SWEPT and count[label.casefold()] == 1
        else f"{label[: SWEPT - 9]}-{zlib.crc32(text.encode()):08x}"
        for text, label in labels.items()
    }
