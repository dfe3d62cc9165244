"""The two published layouts of a checkpoint: which file or folder holds which part.

Original: ``config.json`` and the transformer's safetensors, ``Wan2.1_VAE.pth``, the ``.pth`` files of the text encoder
and (image-to-video) of the image encoder, the tokenizer in ``google/umt5-xxl``. diffusers: one folder per part and
``model_index.json``. The layout follows from the contents of a folder, never from its name.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small

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
# Bytes of a json file that are read at most; the objects made of it can take forty times as many.
JSON_LIMIT = 2**24
TOKENIZER_LIMIT = 2**25  # umT5's tokenizer.json has 17 MB
DIFFUSERS_CLASSES = {"SkyReelsV2Transformer3DModel": "transformer", "AutoencoderKLWan": "vae"}

CONFIG_KEY = "skyreels_v2_config"  # in the metadata of a single file: the config.json that it would have in a folder
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


class Given(str):
    """A path or id that the user gave, with the argument that it was given as, for messages.

    Where a function takes a `model_id`, a plain string or path counts as given as ``model_id``.
    """

    def __new__(cls, value: object, name: str = "model_id"):
        given = super().__new__(cls, value)
        given.argument = name
        return given


def argument_of(model_id: object) -> str:
    """The argument that a path or id was given as."""
    return model_id.argument if isinstance(model_id, Given) else "model_id"


def refusal(model_id: object, reason: str) -> InputError:
    """The `InputError` for a checkpoint: `model_id` as the user gave it, and the reason."""
    return InputError(argument_of(model_id), model_id, reason)


@dataclass(frozen=True)
class Part:
    """One component: its weight files (for the tokenizer: its folder), and its config.json where the layout has one."""

    files: tuple[Path, ...]
    layout: str = "original"
    config: dict = field(default_factory=dict)


def layout_of(folder: Path) -> str:
    """``"diffusers"`` if a folder holds (or is) parts of that layout, else ``"original"``."""
    parts = any((folder / name).is_dir() for name in ("transformer", "vae"))
    return "diffusers" if parts or (folder / "model_index.json").is_file() or own_class(folder) else "original"


def own_class(folder: Path) -> str | None:
    """The part of the diffusers layout that the folder itself is, by its config.json; None if it is not a part."""
    try:
        return DIFFUSERS_CLASSES.get(parse_json(folder / "config.json")["_class_name"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None  # reported by `read_json` if this config.json is needed


def parse_json(file: Path, limit: int = JSON_LIMIT) -> object:
    """The content of a json file, which must be a regular one (a pipe would wait for ever) of bounded size."""
    return json.loads(read_small(file, limit))


def read_json(file: Path, shown: str, model_id: object, limit: int = JSON_LIMIT) -> dict:
    """The json object in a file; an `InputError` that calls the file `shown` if there is none."""
    try:
        content = parse_json(file, limit)
    except (OSError, ValueError, RecursionError) as error:
        raise refusal(model_id, f"{shown} cannot be read as json: {first_line(error)}") from error
    if not isinstance(content, dict):
        raise refusal(model_id, f"{shown} must hold a json object, not {type(content).__name__}")
    return content
