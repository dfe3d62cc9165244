"""Checks that the files of a checkpoint are complete, from headers and archive directories; reads no weights.

Needs no torch, so that a script can report a damaged file at once. Every error is an `InputError` that names the file.
"""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

from skyreels_v2_infer.weights.layouts import TOKENIZER_FILES, read_json, refusal
from skyreels_v2_infer.weights.locate import Checkpoint


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
            if file.suffix == ".safetensors":
                read_header(file, checkpoint.model_id)
            else:
                check_archive(file, checkpoint.model_id)


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


def read_header(file: Path, model_id: object) -> dict[str, tuple[tuple[int, ...], int]]:
    """Shape and size in bytes of every tensor of a safetensors file, whose length must match its header.

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
    """Checks a ``.pth`` file, a zip archive: its directory is at the end, so a truncated file has none."""
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
    """Refuses the three-line text that ``git clone`` without git-lfs writes in place of a large file."""
    with file.open("rb") as stream:
        if stream.read(19) == b"version https://git":
            raise refusal(model_id, f"{file.name} is a git-lfs pointer, not the file itself: run `git lfs pull` there")
