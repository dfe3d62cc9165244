"""What a run has to know of its model before weights are loaded: architecture, folder, tokenizer."""

from __future__ import annotations

import tempfile
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.settings import GenerateSettings, replaced_parts
from skyreels_v2_infer.plan.models import PUBLISHED, architecture
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import clean, texts_of
from skyreels_v2_infer.plan.tokenizer_check import check_tokenizer
from skyreels_v2_infer.weights.download import local_folder
from skyreels_v2_infer.weights.headers import refusing
from skyreels_v2_infer.weights.layouts import TOKENIZER_FILES, Given
from skyreels_v2_infer.weights.locate import Checkpoint, compose, config_of_base, read_transformer_config
from skyreels_v2_infer.weights.vocabulary import read_sentencepiece


class Models:
    """Models of several runs, each looked up, and downloaded, once."""

    def __init__(self):
        self._configs: dict[tuple, dict] = {}
        self._checkpoints: dict[tuple, Checkpoint] = {}

    def config(self, settings: GenerateSettings) -> dict:
        """The transformer's arguments, see `config_of`."""
        key = settings.model_id, settings.dit_path
        if key not in self._configs:
            self._configs[key] = config_of(settings)
        return self._configs[key]

    def checkpoint(self, settings: GenerateSettings) -> Checkpoint:
        """The model's files, see `compose`."""
        key = settings.model_id, *replaced_parts(settings).items()
        if key not in self._checkpoints:
            self._checkpoints[key] = compose(settings.model_id, replaced_parts(settings))
        return self._checkpoints[key]


def known_config(settings: GenerateSettings) -> tuple[dict | None, Path | None]:
    """The transformer's arguments and the model's folder; None where a download would be needed."""
    folder = known_folder(settings)
    if settings.dit_path is not None:
        return config_of_file(settings) if Path(settings.dit_path).exists() else None, folder
    config = architecture(settings.model_id)
    if config is None and folder is not None:
        config = read_transformer_config(settings.model_id)
    return config, folder


def known_folder(settings: GenerateSettings) -> Path | None:
    """The model's folder; None where it has to be downloaded, or where all its parts are from elsewhere."""
    if {"transformer", "vae", "text_encoder"} <= replaced_parts(settings).keys():
        return Path(settings.dit_path).parent
    return local_folder(settings.model_id)


def config_of_file(settings: GenerateSettings) -> dict:
    """The transformer's arguments from --dit_path."""
    given = Given(settings.dit_path, "dit_path")
    return Checkpoint.open(given, ("transformer",), config=config_of_base(settings.model_id)).transformer_config


def config_of(settings: GenerateSettings) -> dict:
    """The transformer's arguments; small files of the model are downloaded if need be."""
    return read_transformer_config(settings.model_id) if settings.dit_path is None else config_of_file(settings)


def check_prompts(settings: GenerateSettings, plan: Plan, tokenizer: Path) -> None:
    """Raises an `InputError` if a model's tokenizer, unless it is a published one, cannot be used on the plan's texts.

    Args:
        tokenizer: its folder.
    """
    whole, pieces = (tokenizer / name for name in TOKENIZER_FILES)
    model = settings.model_id
    if model in PUBLISHED or embedded.name_of(model) == embedded.NAME:
        return
    texts = [clean(text) for _, text in texts_of(plan)]
    if whole.is_file():
        check_tokenizer(whole, texts, "model_id", model)
    elif pieces.is_file():
        with tempfile.TemporaryDirectory() as folder:
            converted = Path(folder, pieces.name)
            with refusing(model, f"the tokenizer in {tokenizer.name}/ cannot be read"):
                read_sentencepiece(pieces)[0].save(str(converted))
            check_tokenizer(converted, texts, "model_id", model)


def cache_folder(checkpoint: Checkpoint) -> Path:
    """Where a transformer's files for caches would be: in its checkpoint, or beside a file from elsewhere."""
    if checkpoint.layout == "parts":
        return checkpoint.parts["transformer"].files[0].parent
    return checkpoint.folder
