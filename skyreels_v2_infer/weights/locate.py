"""Where the files of a checkpoint lie, in which layout, and whether they are whole: all that needs no torch.

Two layouts are published. The original: ``config.json`` and the transformer's safetensors, ``Wan2.1_VAE.pth``, the
text encoder's and (image-to-video) the image encoder's ``.pth``, the tokenizer in ``google/umt5-xxl``. diffusers': a
folder for each part and ``model_index.json``. A layout is known by what a folder holds, never by what it is called.

Every refusal is an `InputError` that names the file, so that a script can end before torch is imported.
"""

import json
import os
import re
import zipfile
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.plan.models import HUB_ID

PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "image_encoder")
LABELS = {name: name.replace("_", " ").replace("vae", "VAE") for name in PARTS}

ORIGINAL_FILES = {
    "vae": "Wan2.1_VAE.pth",
    "text_encoder": "models_t5_umt5-xxl-enc-bf16.pth",
    "image_encoder": "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
}
ORIGINAL_TOKENIZER = "google/umt5-xxl"
TOKENIZER_FILES = ("tokenizer.json", "spiece.model")  # either is enough
WEIGHT_STEMS = ("model", "diffusion_pytorch_model")
DIFFUSERS_CLASSES = {"SkyReelsV2Transformer3DModel": "transformer", "AutoencoderKLWan": "vae"}

CONFIG_FILES = ["config.json", "model_index.json", "transformer/config.json"]
DOWNLOADS = {
    "original": {
        "transformer": ["config.json", *(f"{stem}*.safetensors*" for stem in WEIGHT_STEMS)],
        "tokenizer": [f"{ORIGINAL_TOKENIZER}/*"],
        **{part: [file] for part, file in ORIGINAL_FILES.items()},
    },
    "diffusers": {
        "tokenizer": ["model_index.json", "tokenizer/*"],
        **{p: [f"{p}/*.json", f"{p}/*.safetensors"] for p in ("transformer", "vae", "text_encoder", "image_encoder")},
    },
}

# Fields of a transformer's config.json that no published model sets otherwise, and that we do not compute otherwise.
FIXED = {
    "patch_size": ([1, 2, 2],),
    "window_size": ([-1, -1],),
    "qk_norm": (True, "rms_norm_across_heads"),
    "pos_embed_seq_len": (None,),
}
# diffusers' names of the fields that WanModel calls otherwise.
DIFFUSERS_FIELDS = {
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "num_attention_heads": "num_heads",
    "image_dim": "img_dim",
}
REQUIRED = ["dim", "ffn_dim", "num_heads", "num_layers"]
SIZES = [*REQUIRED, "in_dim", "out_dim", "freq_dim", "text_dim", "text_len", "img_dim"]
IN_DIMS = {"t2v": 16, "i2v": 36}  # noise; noise, 4 channels of mask and 16 of the image's latents


def refusal(model_id: object, reason: str) -> InputError:
    """The `InputError` for a checkpoint: what was given as model_id, and what is wrong with it."""
    return InputError("model_id", model_id, reason)


@dataclass(frozen=True)
class Part:
    """One component: its weight files (for the tokenizer: its folder), and its config.json where the layout has one."""

    files: tuple[Path, ...]
    layout: str = "original"
    config: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: which files make up which part. Only small json files have been read.

    Attributes:
        model_id: as the user gave it; messages repeat it.
        layout: ``"original"`` or ``"diffusers"``.
        parts: those that were asked for, by name (`PARTS`).
        transformer_config: keyword arguments of `WanModel`, whatever the layout; empty if it was not asked for.
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
        """Find the parts of a local folder, or of a hub id, which is downloaded first. An opened one returns as it is.

        An image encoder is looked for only where the transformer, if asked for too, is an image-to-video model. A
        folder that *is* one part of the diffusers layout (its ``transformer/``, say) will do for that part.

        Raises:
            InputError: no such folder, parts or shards that are not there, a config.json that cannot be used.
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


def layout_of(folder: Path) -> str:
    """``"diffusers"`` if a folder holds (or is) parts of that layout, else ``"original"``."""
    parts = any((folder / name).is_dir() for name in ("transformer", "vae"))
    return "diffusers" if parts or (folder / "model_index.json").is_file() or own_class(folder) else "original"


def own_class(folder: Path) -> str | None:
    """Which part of the diffusers layout a folder itself is, by its config.json."""
    try:
        return DIFFUSERS_CLASSES.get(json.loads((folder / "config.json").read_bytes())["_class_name"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a config.json that cannot be read is reported where it is needed


def find_part(folder: Path, layout: str, name: str, model_id: object) -> Part:
    """The files of one part. FileNotFoundError says which "is" or "are" (the caller adds: not there)."""
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
    """The one safetensors file of a folder, or its complete set of shards; by the files' names, not by an index.

    Args:
        shown: the folder as messages put it before a file's name, with its slash.
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
        sets.append([name])  # a model that somebody has tuned or merged is called as they like
    if not sets:
        raise FileNotFoundError(" and ".join(f"{shown}{stem}*.safetensors" for stem in WEIGHT_STEMS) + " are")
    if len(sets) > 1:
        first = ", ".join(shown + names[0] for names in sets)
        raise refusal(model_id, f"holds more than one set of weights ({first}); keep one of them")
    absent(set(sets[0]) - present, shown, f"one of {len(sets[0])} shards")
    return tuple(folder / name for name in sets[0])


def absent(names: set[str], shown: str, why: str) -> None:
    if names:
        first, *others = sorted(names)
        more = f" and {len(others)} more are" if others else " is"
        raise FileNotFoundError(f"{shown}{first} ({why}){more}")


def read_json(file: Path, shown: str, model_id: object) -> dict:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise refusal(model_id, f"{shown} cannot be read as json: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise refusal(model_id, f"{shown} must hold a json object, not {type(content).__name__}")
    return content


# ---------------------------------------------------------------------------------------------------- configuration


def transformer_arguments(config: dict, model_id: object) -> dict:
    """The keyword arguments of `WanModel` for a transformer's config.json of either layout."""
    for name, legal in FIXED.items():
        if name in config and config[name] not in legal:
            value, only = json.dumps(config[name]), json.dumps(legal[0])
            raise refusal(model_id, f"config.json has {name} {value}; only {only} is supported")
    ours = {DIFFUSERS_FIELDS.get(name, name): value for name, value in config.items() if name[0] != "_"}
    ours = {name: value for name, value in ours.items() if name not in FIXED and value is not None}
    head_dim = ours.pop("attention_head_dim", None)
    if isinstance(head_dim, int) and isinstance(ours.get("num_heads"), int):
        ours["dim"] = head_dim * ours["num_heads"]
    for name in SIZES:
        if name in ours and (not isinstance(ours[name], int) or isinstance(ours[name], bool) or ours[name] < 1):
            raise refusal(model_id, f"config.json has {name} {json.dumps(ours[name])}; it must be a positive integer")
    lacking = [name for name in REQUIRED if name not in ours]
    if lacking:
        raise refusal(model_id, f"config.json is no SkyReels-V2 transformer's: it lacks {', '.join(lacking)}")
    if ours["dim"] % (2 * ours["num_heads"]):
        heads = f"num_heads {ours['num_heads']} times an even size"
        raise refusal(model_id, f"config.json has dim {ours['dim']}; it must be {heads}")
    in_dim = ours.setdefault("in_dim", IN_DIMS["t2v"])
    kind = ours.setdefault("model_type", "i2v" if in_dim == IN_DIMS["i2v"] else "t2v")
    if IN_DIMS.get(kind) != in_dim:
        legal = " or ".join(f"{name!r} with {channels}" for name, channels in IN_DIMS.items())
        raise refusal(model_id, f"config.json has model_type {kind!r} with in_dim {in_dim}, must be {legal}")
    return ours


def read_transformer_config(model_id: str | Path) -> dict:
    """The keyword arguments of `WanModel` for a folder or a hub id, of which only small json files are downloaded.

    With this a script can tell an image-to-video model (``model_type``) before gigabytes are on their way.
    """
    return config_in(local_folder(model_id) or fetch(str(model_id), CONFIG_FILES), model_id)


def config_in(folder: Path, model_id: object) -> dict:
    for place in (folder / "transformer", folder):
        if (place / "config.json").is_file():
            shown = "config.json" if place == folder else "transformer/config.json"
            return transformer_arguments(read_json(place / "config.json", shown, model_id), model_id)
    raise refusal(model_id, "is no SkyReels-V2 checkpoint: it has neither config.json nor transformer/config.json")


# ------------------------------------------------------------------------------------------------------- download


def local_folder(model_id: str | Path) -> Path | None:
    """The folder that model_id names; None if it names a model on the Hugging Face hub."""
    path = Path(model_id).expanduser()
    # os.path takes what is too long for a path as what is not there.
    if str(model_id).strip() and os.path.isdir(path):
        return path
    if str(model_id).strip() and os.path.exists(path):
        raise refusal(model_id, "is a file; a checkpoint is a folder")
    if not HUB_ID.fullmatch(str(model_id)):
        raise refusal(model_id, "no such folder (and no id of the Hugging Face hub, which looks like owner/name)")
    return None


def download_model(model_id: str | Path, parts: tuple[str, ...] = PARTS) -> str:
    """The folder of a model: a local one as it is, a hub id (``owner/name``) downloaded into the hub's cache.

    The configuration comes first and decides what else is needed. Progress and resuming are huggingface_hub's.

    Raises:
        InputError: no such folder or model.
        OSError: the download failed, and why; another try goes on with it.
    """
    folder = local_folder(model_id)
    if folder is None:
        folder = fetch(str(model_id), CONFIG_FILES)
        config = config_in(folder, model_id)
        wanted = [part for part in parts if part != "image_encoder" or config["model_type"] == "i2v"]
        # A repository that is a transformer alone keeps its files at the top, as the original layout does.
        files = DOWNLOADS["original" if own_class(folder) else layout_of(folder)]
        folder = fetch(str(model_id), [pattern for part in wanted for pattern in files[part]])
    return str(folder)


def fetch(model_id: str, patterns: list[str]) -> Path:
    import huggingface_hub
    from huggingface_hub import constants, errors

    try:
        return Path(huggingface_hub.snapshot_download(model_id, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        reason = "its authors grant access on request: ask at its page on the hub, then log in with `hf auth login`"
        raise refusal(model_id, f"cannot be downloaded: {reason}") from error
    except errors.RepositoryNotFoundError as error:
        reason = "neither a folder here nor a public model on the Hugging Face hub"
        raise refusal(model_id, reason) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if constants.HF_HUB_OFFLINE:
            reason = "neither a folder here nor downloaded before, and HF_HUB_OFFLINE keeps it from being downloaded"
            raise refusal(model_id, reason) from error
        reason = "no such folder, and the Hugging Face hub cannot be reached"
        raise OSError(f"--model_id {model_id}: {reason} ({first_line(error)})") from error
    except Exception as error:  # networks and disks fail in many ways: the user needs the reason, not our stack
        raise OSError(f"--model_id {model_id} cannot be downloaded: {first_line(error)}") from error


# --------------------------------------------------------------------------------------------------- whole or not


def check_files(checkpoint: Checkpoint) -> None:
    """Find cut-off or damaged weight files by their headers alone; takes milliseconds, reads no weights.

    Raises:
        InputError: names the first such file, and for safetensors the size that it has and the size it should have.
    """
    for name, part in checkpoint.parts.items():
        if name == "tokenizer":
            check_tokenizer(part.files[0], checkpoint.model_id)
            continue
        for file in part.files:
            if file.suffix == ".safetensors":
                read_header(file, checkpoint.model_id)
            else:
                check_archive(file, checkpoint.model_id)


def check_tokenizer(folder: Path, model_id: object) -> None:
    """A tokenizer.json is read as json; without one, there has to be a package that reads the other kind of file."""
    whole, pieces = (folder / name for name in TOKENIZER_FILES)
    if whole.is_file():
        refuse_pointer(whole, model_id)
        read_json(whole, f"{folder.name}/{whole.name}", model_id)
        return
    refuse_pointer(pieces, model_id)
    if find_spec("sentencepiece") is None:
        need = f"{folder.name}/ has no {whole.name}, and {pieces.name} needs sentencepiece"
        raise refusal(model_id, f"{need}: pip install sentencepiece protobuf")


def read_header(file: Path, model_id: object) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and size in bytes of every tensor of a safetensors file, which must be as long as its header says.

    Format: https://huggingface.co/docs/safetensors (8 bytes of header length, the header in json, the data).
    """
    refuse_pointer(file, model_id)
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise refusal(model_id, f"{file.name} ends within its header ({size:,} bytes): an interrupted download?")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            spans = {name: (tuple(t["shape"]), *t["data_offsets"]) for name, t in header.items()}
            expected = 8 + length + max((end for _, _, end in spans.values()), default=0)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise refusal(model_id, f"{file.name} has no readable safetensors header") from error
    if size != expected:
        why = "an interrupted download?" if size < expected else "a damaged file?"
        raise refusal(model_id, f"{file.name} is {size:,} bytes long where its header says {expected:,}: {why}")
    return {name: (shape, end - start) for name, (shape, start, end) in spans.items()}


def check_archive(file: Path, model_id: object) -> None:
    """A ``.pth`` file is a zip archive, whose directory lies at its end: a file that was cut has none."""
    refuse_pointer(file, model_id)
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        size = f"{file.stat().st_size:,} bytes"
        raise refusal(model_id, f"{file.name} ({size}) is no whole .pth file: an interrupted download?") from error
    if not any(name.endswith("/data.pkl") for name in names):
        raise refusal(model_id, f"{file.name} is a zip archive, but no .pth file")


def refuse_pointer(file: Path, model_id: object) -> None:
    """``git clone`` without git-lfs leaves a text of three lines where each large file should be."""
    with file.open("rb") as stream:
        if stream.read(19) == b"version https://git":
            raise refusal(model_id, f"{file.name} is a git-lfs pointer, not the file itself: run `git lfs pull` there")
