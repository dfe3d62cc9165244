"""Checks that the files of a checkpoint are complete, from headers and archive directories; reads no weights.

Needs no torch, so that a script can report a damaged file at once. Every error is an `InputError` that names the file.
"""

from importlib.util import find_spec
from pathlib import Path

from skyreels_v2_infer.weights.headers import refuse_pointer
from skyreels_v2_infer.weights.layouts import TOKENIZER_FILES, read_json, refusal
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.tensor_files import check_file


def check_files(checkpoint: Checkpoint) -> None:
    """Finds truncated or damaged weight files in milliseconds.

    Raises:
        InputError: names the first such file; for safetensors with its actual and its expected size.
    """
    for name, part in checkpoint.parts.items():
        if name == "tokenizer":
            check_tokenizer(part.files[0], checkpoint.model_id)
            continue
        for file in part.files:
            check_file(file, checkpoint.model_id)


def check_tokenizer(folder: Path, model_id: object) -> None:
    """Checks that tokenizer.json is valid json, or else that sentencepiece, which reads spiece.model, is installed."""
    whole, pieces = (folder / name for name in TOKENIZER_FILES)
    if whole.is_file():
        refuse_pointer(whole, model_id)
        read_json(whole, f"{folder.name}/{whole.name}", model_id)
        return
    refuse_pointer(pieces, model_id)
    if find_spec("sentencepiece") is None:
        need = f"{folder.name}/ has no {whole.name}, and {pieces.name} needs sentencepiece"
        raise refusal(model_id, f"{need}: pip install sentencepiece protobuf")
