"""Checks that the files of a checkpoint are complete, from headers and archive directories; reads no weights.

Needs no torch, so that a script can report a damaged file at once. Every error is an `InputError` that names the file.
"""

from pathlib import Path

from skyreels_v2_infer.weights.headers import check_regular, refuse_pointer
from skyreels_v2_infer.weights.layouts import JSON_LIMIT, TOKENIZER_FILES, TOKENIZER_LIMIT, read_json, refusal
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
    """Checks that tokenizer.json is valid json, and that the files beside it are not too large to be read."""
    whole, pieces = (folder / name for name in TOKENIZER_FILES)
    for file in (*folder.glob("*.json"), *folder.glob("*.jinja"), pieces):
        if file != whole and file.is_file() and (size := check_regular(file, model_id)) > JSON_LIMIT:
            raise refusal(model_id, f"{folder.name}/{file.name} has {size:,} bytes; at most {JSON_LIMIT:,} are read")
    if whole.is_file():
        refuse_pointer(whole, model_id)
        read_json(whole, f"{folder.name}/{whole.name}", model_id, TOKENIZER_LIMIT)
    else:
        refuse_pointer(pieces, model_id)
