"""Where the files of a checkpoint are: which files make up which part, in either layout. Needs no torch."""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.weights.architecture import transformer_config
from skyreels_v2_infer.weights.config import config_in, transformer_arguments
from skyreels_v2_infer.weights.download import download_model, fetch, local_file, local_folder
from skyreels_v2_infer.weights.layouts import (
    CONFIG_FILES,
    CONFIG_KEY,
    LABELS,
    ORIGINAL_FILES,
    ORIGINAL_TOKENIZER,
    PARTS,
    TOKENIZER_FILES,
    WEIGHT_STEMS,
    Given,
    Part,
    layout_of,
    own_class,
    parse_json,
    read_json,
    refusal,
)
from skyreels_v2_infer.weights.stored import Weights

# What the config.json beside a file says if it is that of this part.
OWN_CONFIG = {
    "vae": ("_class_name", "AutoencoderKLWan"),
    "text_encoder": ("model_type", "umt5"),
    "image_encoder": ("model_type", "clip_vision_model"),
}


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: which files make up which part. Opening it reads small json files only.

    Attributes:
        model_id: as the user gave it, for messages; see `Given`.
        layout: ``"original"``, ``"diffusers"``, or ``"file"`` for a single file.
        parts: the requested parts by name (`PARTS`).
        transformer_config: keyword arguments of `WanModel`; empty if the transformer was not requested.
    """

    model_id: str
    folder: Path
    layout: str
    parts: dict[str, Part]
    transformer_config: dict

    @property
    def is_image_to_video(self) -> bool:
        return self.transformer_config.get("model_type") == "i2v"

    @classmethod
    def open(
        cls,
        model_id: "str | Path | Checkpoint",
        parts: tuple[str, ...] = PARTS,
        config: dict | None = None,
        tokenizer: str | Path | None = None,
    ) -> "Checkpoint":
        """Finds the parts of a local folder or of a hub model, which is downloaded first; returns a `Checkpoint` as is.

        A file (local, or ``owner/name/path/to/file`` on the hub) is accepted for one part, with or without tokenizer.
        The image encoder is skipped if the transformer is requested too and is not an image-to-video model. A folder
        that is itself one part of the diffusers layout (its ``transformer/``, for example) is accepted for that part.

        Args:
            config: of the one part that a file is, in place of a config.json beside it.
            tokenizer: its folder, for a file that is a text encoder and contains none.

        Raises:
            InputError: no such folder, missing parts or shards, an unusable config.json.
        """
        if isinstance(model_id, Checkpoint):
            return model_id
        weights = [part for part in parts if part != "tokenizer"]
        if len(weights) == 1 and (file := local_file(model_id)) is not None:
            return open_file(file, weights[0], model_id, config, tokenizer)
        folder = Path(download_model(model_id, parts))
        try:
            layout = layout_of(folder)
            empty = not any(folder.iterdir())
        except OSError as error:
            raise refusal(model_id, f"cannot be opened ({error.strerror})") from None
        if empty:
            raise refusal(model_id, f"is an empty folder; a checkpoint holds config.json, {ORIGINAL_FILES['vae']}, ...")
        found, lacking, arguments = {}, [], {}
        for name in parts:
            if name == "image_encoder" and "transformer" in parts and arguments.get("model_type") != "i2v":
                continue
            try:
                found[name] = find_part(folder, layout, name, model_id)
                if config is not None and [name] == weights:
                    found[name] = replace(found[name], config=config)
            except FileNotFoundError as error:
                lacking.append(f"the {LABELS[name]}: {error} not there")
                continue
            if name == "transformer":
                arguments = transformer_arguments(found[name].config, model_id)
        if lacking:
            raise refusal(model_id, f"lacks {'; '.join(lacking)}")
        return cls(as_given(model_id), folder, layout, found, arguments)


def compose(model_id: str | Path, replaced: dict[str, str | Path]) -> Checkpoint:
    """A checkpoint with parts from elsewhere.

    Args:
        model_id: folder or hub id of all parts that are not replaced; not looked at if there are none.
        replaced: folder, file or hub id by part (`PARTS` without the tokenizer); each is named by its flag in messages.

    Raises:
        InputError: a part is missing or unusable.
    """
    if not replaced:
        return Checkpoint.open(model_id)
    found: dict[str, Part] = {}
    arguments: dict = {}
    for name, path in replaced.items():
        given = Given(path, f"{'dit' if name == 'transformer' else name}_path")
        part = opened_part(given, name, model_id)
        found |= part.parts
        arguments = part.transformer_config or arguments
    lacking = [name for name in PARTS if name not in found]
    if arguments and arguments["model_type"] != "i2v" and "image_encoder" in lacking:
        lacking.remove("image_encoder")
    if lacking:
        rest = Checkpoint.open(model_id, tuple(lacking))
        found, arguments = rest.parts | found, arguments or rest.transformer_config
    if arguments["model_type"] != "i2v":
        found.pop("image_encoder", None)
    first = next(iter(found.values())).files[0]
    return Checkpoint(as_given(model_id), first.parent, "parts", found, arguments)


def opened_part(given: Given, name: str, model_id: str | Path) -> Checkpoint:
    """One part from elsewhere; a text encoder with its tokenizer, if that is there, too."""
    if name == "text_encoder":
        with suppress(InputError):
            return Checkpoint.open(given, (name, "tokenizer"))
    config = config_of_base(model_id) if name == "transformer" else None
    return Checkpoint.open(given, (name,), config=config)


def config_of_base(model_id: str | Path) -> dict | None:
    """What a model's own transformer says of a file that may be the same; None where it is not on this machine."""
    try:
        folder = local_folder(model_id)
        return None if folder is None else config_in(folder, model_id)
    except InputError:
        return None


def as_given(model_id: object) -> str:
    return model_id if isinstance(model_id, Given) else str(model_id)


def open_file(
    file: Path, name: str, model_id: object, config: dict | None = None, tokenizer: str | Path | None = None
) -> Checkpoint:
    """The checkpoint of one part that a single file is; for a transformer it reads the header of the file.

    Raises:
        InputError: the file is damaged, or is a transformer of an unsupported architecture.
    """
    part = Part((file,), "file", config or config_beside(file, name))
    found, arguments = {name: part}, {}
    if name == "transformer":
        weights = Weights(part, name, model_id)
        arguments = transformer_config(weights, config_within(weights) or part.config)
    if name == "text_encoder" and (words := tokenizer_for(file, tokenizer)) is not None:
        found["tokenizer"] = Part((words,), "file")
    return Checkpoint(as_given(model_id), file.parent, "file", found, arguments)


def config_within(weights: Weights) -> dict:
    """The config.json in a file's metadata, where `convert` puts it; else an empty dict."""
    try:
        config = json.loads(weights.metadata[CONFIG_KEY])
    except (KeyError, TypeError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def config_beside(file: Path, name: str) -> dict:
    """The config.json in the folder of a file if it describes this part; else an empty dict."""
    try:
        config = parse_json(file.parent / "config.json")
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(config, dict):
        return {}
    if name == "transformer":  # compared with the tensors' shapes before it is used
        return config
    key, value = OWN_CONFIG[name]
    return config if config.get(key) == value else {}


def tokenizer_for(file: Path, given: str | Path | None) -> Path | None:
    """The tokenizer's folder for a text encoder's file: the given one, or one where the layouts have it."""
    if given is not None:
        folder = Path(given).expanduser()
        if not any((folder / name).is_file() for name in TOKENIZER_FILES):
            raise refusal(given, f"holds no tokenizer ({' or '.join(TOKENIZER_FILES)})")
        return folder
    places = [file.parent / ORIGINAL_TOKENIZER, file.parent / "tokenizer", file.parent.parent / "tokenizer"]
    return next((p for p in places if any((p / name).is_file() for name in TOKENIZER_FILES)), None)


def read_transformer_config(model_id: str | Path) -> dict:
    """The keyword arguments of `WanModel` for a folder, a file or a hub id; of a hub id it downloads json files only.

    Lets a script check the kind of model (``model_type``) before it downloads gigabytes.
    """
    if (file := local_file(model_id)) is not None:
        return open_file(file, "transformer", model_id).transformer_config
    return config_in(local_folder(model_id) or fetch(str(model_id), CONFIG_FILES, model_id), model_id)


def find_part(folder: Path, layout: str, name: str, model_id: object) -> Part:
    """The files of one part.

    Raises:
        FileNotFoundError: what is missing, ending in "is" or "are"; the caller appends "not there".
    """
    if name == "tokenizer":
        place = folder / (name if layout == "diffusers" else ORIGINAL_TOKENIZER)
        if not any((place / file).is_file() for file in TOKENIZER_FILES):
            raise FileNotFoundError(f"{place.relative_to(folder)}/{TOKENIZER_FILES[0]} is")
        return Part((place,), layout)
    if layout == "original" and name in ORIGINAL_FILES:
        file = folder / ORIGINAL_FILES[name]
        if not file.is_file():
            raise FileNotFoundError(f"{file.name} is")
        return Part((file,), layout)
    place = folder if layout == "original" or own_class(folder) == name else folder / name
    shown = "" if place == folder else f"{name}/"
    if not (place / "config.json").is_file():
        raise FileNotFoundError(f"{shown}config.json is")
    config = read_json(place / "config.json", f"{shown}config.json", model_id)
    return Part(weight_files(place, shown, model_id), layout, config)


def weight_files(folder: Path, shown: str, model_id: object) -> tuple[Path, ...]:
    """The safetensors file of a folder, or its complete set of shards.

    Found by name: one of `WEIGHT_STEMS`, alone or in shards; then those files with a variant in their name (``fp16``),
    shards of any other name, files that an index lists; then the only file there is.

    Args:
        shown: prefix of file names in messages: empty, or the folder with its slash.
    """
    present = {file.name for file in folder.glob("*.safetensors")}
    indexed = {file: indexed_files(file, shown, model_id) for file in sorted(folder.glob("*.index*.json"))}
    for file, listed in indexed.items():
        if file.name.startswith(WEIGHT_STEMS):
            absent(sorted(listed - present), shown, f"listed in {file.name}")
    sets = [ShardSet((name,), 1) for stem in WEIGHT_STEMS if (name := f"{stem}.safetensors") in present]
    sharded, others = shard_sets(present)
    sets += [shards for stem, shards in sharded if stem in WEIGHT_STEMS]
    if not sets:
        variants = [name for name in sorted(others) if name.startswith(tuple(f"{stem}." for stem in WEIGHT_STEMS))]
        sets = [ShardSet((name,), 1) for name in variants] + [shards for _, shards in sharded]
    if not sets:
        sets = [ShardSet(tuple(sorted(listed)), len(listed)) for listed in indexed.values() if listed <= present]
    if not sets and len(present) == 1 and others:
        sets = [ShardSet(tuple(present), 1)]  # fine-tuned and merged models have names of their own
    if not sets:
        raise FileNotFoundError(" and ".join(f"{shown}{stem}*.safetensors" for stem in WEIGHT_STEMS) + " are")
    if len(sets) > 1:
        first = ", ".join(shown + shards.names[0] for shards in sets)
        raise refusal(model_id, f"holds more than one set of weights ({first}); keep one of them")
    (shards,) = sets
    absent(shards.missing(), shown, f"one of {shards.count} shards", shards.count - len(shards.names))
    return tuple(folder / name for name in shards.names)


@dataclass(frozen=True)
class ShardSet:
    """The files that are there of a set.

    Attributes:
        count: how many there must be. It comes from a file's name, so nothing of that length is ever made.
        pattern: of the names, with a field for the number.
    """

    names: tuple[str, ...]
    count: int
    pattern: str = ""

    def missing(self) -> list[str]:
        """The first file that is not there."""
        if self.count == len(self.names):
            return []
        names = (self.pattern.format(i) for i in range(1, len(self.names) + 2))
        return [next(name for name in names if name not in self.names)]


def shard_sets(present: set[str]) -> tuple[list[tuple[str, ShardSet]], set[str]]:
    """(stem, shards) for every set of shards among file names, by stem; and the names that are no shards."""
    sets: dict[tuple[str, str, str], list[str]] = {}
    others = set()
    for name in present:
        match = re.fullmatch(r"(.+)-(\d+)-of-(\d+)((?:\.[^.]+)?)\.safetensors", name)
        if match is None:
            others.add(name)
        elif len(match[2]) == len(match[3]) and 1 <= int(match[2]) <= int(match[3]):
            sets.setdefault((match[1], match[3], match[4]), []).append(name)
    found = []
    for (stem, count, variant), names in sorted(sets.items()):
        pattern = f"{stem}-{{:0{len(count)}}}-of-{count}{variant}.safetensors".replace(stem, stem.replace("{", "{{"), 1)
        found.append((stem + variant, ShardSet(tuple(sorted(names)), int(count), pattern)))
    return found, others


def indexed_files(file: Path, shown: str, model_id: object) -> set[str]:
    """The files that the index of a set of shards lists."""
    listed = read_json(file, shown + file.name, model_id).get("weight_map")
    if not isinstance(listed, dict):
        raise refusal(model_id, f"{shown}{file.name} lists no files (it has no weight_map)")
    return {str(name) for name in listed.values()}


def absent(names: list[str], shown: str, why: str, count: int | None = None) -> None:
    """Raises FileNotFoundError if any names are given: the first one, why it is expected, and how many more."""
    if names:
        more = (len(names) if count is None else count) - 1
        raise FileNotFoundError(f"{shown}{names[0]} ({why}){f' and {more} more are' if more else ' is'}")
