"""Where the files of a checkpoint are: which files make up which part, in either layout. Needs no torch."""

import re
from dataclasses import dataclass
from pathlib import Path

from skyreels_v2_infer.weights.config import config_in, transformer_arguments
from skyreels_v2_infer.weights.download import download_model, fetch, local_folder
from skyreels_v2_infer.weights.layouts import (
    CONFIG_FILES,
    LABELS,
    ORIGINAL_FILES,
    ORIGINAL_TOKENIZER,
    PARTS,
    TOKENIZER_FILES,
    WEIGHT_STEMS,
    Part,
    layout_of,
    own_class,
    read_json,
    refusal,
)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: which files make up which part. Opening it reads small json files only.

    Attributes:
        model_id: as the user gave it, for messages.
        layout: ``"original"`` or ``"diffusers"``.
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
    def open(cls, model_id: "str | Path | Checkpoint", parts: tuple[str, ...] = PARTS) -> "Checkpoint":
        """Finds the parts of a local folder or of a hub model, which is downloaded first; returns a `Checkpoint` as is.

        The image encoder is skipped if the transformer is requested too and is not an image-to-video model. A folder
        that is itself one part of the diffusers layout (its ``transformer/``, for example) is accepted for that part.

        Raises:
            InputError: no such folder, missing parts or shards, an unusable config.json.
        """
        if isinstance(model_id, Checkpoint):
            return model_id
        folder = Path(download_model(model_id, parts))
        try:
            layout = layout_of(folder)
            empty = not any(folder.iterdir())
        except OSError as error:
            raise refusal(model_id, f"cannot be opened ({error.strerror})") from None
        if empty:
            raise refusal(model_id, f"is an empty folder; a checkpoint holds config.json, {ORIGINAL_FILES['vae']}, ...")
        found, lacking, config = {}, [], {}
        for name in parts:
            if name == "image_encoder" and "transformer" in parts and config.get("model_type") != "i2v":
                continue
            try:
                found[name] = find_part(folder, layout, name, model_id)
            except FileNotFoundError as error:
                lacking.append(f"the {LABELS[name]}: {error} not there")
                continue
            if name == "transformer":
                config = transformer_arguments(found[name].config, model_id)
        if lacking:
            raise refusal(model_id, f"lacks {'; '.join(lacking)}")
        return cls(str(model_id), folder, layout, found, config)


def read_transformer_config(model_id: str | Path) -> dict:
    """The keyword arguments of `WanModel` for a folder or a hub id; downloads small json files only.

    Lets a script check the kind of model (``model_type``) before it downloads gigabytes.
    """
    return config_in(local_folder(model_id) or fetch(str(model_id), CONFIG_FILES), model_id)


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
    """The safetensors file of a folder, or its complete set of shards, found by file name; no index is required.

    Args:
        shown: prefix of file names in messages: empty, or the folder with its slash.
    """
    present = {file.name for file in folder.glob("*.safetensors")}
    sets = [[f"{stem}.safetensors"] for stem in WEIGHT_STEMS if f"{stem}.safetensors" in present]
    for stem in WEIGHT_STEMS:
        shards = [m for name in present if (m := re.fullmatch(rf"{stem}-(\d+)-of-(\d+)\.safetensors", name))]
        for count in sorted({m[2] for m in shards}):
            sets.append([f"{stem}-{i + 1:0{len(count)}}-of-{count}.safetensors" for i in range(int(count))])
        index = f"{stem}.safetensors.index.json"
        if (folder / index).is_file():
            listed = read_json(folder / index, shown + index, model_id).get("weight_map")
            if not isinstance(listed, dict):
                raise refusal(model_id, f"{shown}{index} lists no files (it has no weight_map)")
            absent({str(name) for name in listed.values()} - present, shown, f"listed in {index}")
    if not sets and len(present) == 1 and not re.search(r"-\d+-of-\d+\.", name := min(present)):
        sets.append([name])  # fine-tuned and merged models have names of their own
    if not sets:
        raise FileNotFoundError(" and ".join(f"{shown}{stem}*.safetensors" for stem in WEIGHT_STEMS) + " are")
    if len(sets) > 1:
        first = ", ".join(shown + names[0] for names in sets)
        raise refusal(model_id, f"holds more than one set of weights ({first}); keep one of them")
    absent(set(sets[0]) - present, shown, f"one of {len(sets[0])} shards")
    return tuple(folder / name for name in sets[0])


def absent(names: set[str], shown: str, why: str) -> None:
    """Raises FileNotFoundError if any names are given: the first one, why it is expected, and how many more."""
    if names:
        first, *others = sorted(names)
        more = f" and {len(others)} more are" if others else " is"
        raise FileNotFoundError(f"{shown}{first} ({why}){more}")
