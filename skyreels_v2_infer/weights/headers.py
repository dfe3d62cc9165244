"""What a weight file contains, from its header alone: names, shapes, dtypes, metadata. Needs no torch.

Headers come from strangers: sizes and counts are checked against the file before they are followed, and every fault is
an `InputError` of one line.
"""

import json
import math
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.weights.layouts import refusal

# Bytes of a number, by the names that safetensors has for dtypes.
SIZES = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "I8", "U8", "BOOL"), 1),
}
PACKED = {"F4", "F6_E2M3", "F6_E3M2"}  # less than a byte per number; known so that a message can name them
HEADER_LIMIT = 2**25  # bytes; those of large models have less than a hundredth
MOST_TENSORS, MOST_AXES = 2**15, 16  # of a file, of a tensor; the largest published files have some thousands
DIRECTORY_LIMIT = 2**24  # bytes, of a .pth archive; 1,000 tensors take less than 100 KB
PICKLE_LIMIT = 2**22  # bytes, of its data.pkl; 1,000 tensors take about 200 KB
ZIP_END = 2**16 + 98  # bytes at the end of an archive that hold its end records, with the longest comment


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Attributes:
        dtype: safetensors' name (``"BF16"``), or the GGUF type of a quantised matrix (``"Q4_K"``).
        offset: of its first byte in the file; 0 in a ``.pth`` archive.
        nbytes: as stored.
    """

    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Header:
    """Tensors by name, and the file's metadata."""

    entries: dict[str, Entry]
    metadata: dict = field(default_factory=dict)


@contextmanager
def refusing(model_id: object, what: str) -> Iterator[None]:
    """Context manager that turns whatever a library raises into an `InputError`: "`what`: reason"."""
    try:
        yield
    except InputError:
        raise
    except BaseException as error:
        # A panic in a library written in Rust is no Exception; KeyboardInterrupt and the like are none either.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise refusal(model_id, f"{what}: {first_line(error, 120)}") from error


def check_regular(file: Path, model_id: object) -> int:
    """The size of a file, which must be a regular one: opening a pipe would wait for ever, a device may never end."""
    try:
        found = file.stat()
    except (OSError, RuntimeError) as error:  # dangling and looping links, no permission
        raise refusal(model_id, f"{file.name} cannot be opened: {first_line(error, 120)}") from error
    if not stat.S_ISREG(found.st_mode):
        raise refusal(model_id, f"{file.name} is not a regular file")
    return found.st_size


def refuse_pointer(file: Path, model_id: object) -> None:
    """Refuses the three-line text that ``git clone`` without git-lfs writes in place of a large file."""
    if beginning(file, 19, model_id) == b"version https://git":
        raise refusal(model_id, f"{file.name} is a git-lfs pointer, not the file itself: run `git lfs pull` there")


def beginning(file: Path, length: int, model_id: object) -> bytes:
    """The first bytes of a file."""
    check_regular(file, model_id)
    try:
        with file.open("rb") as stream:
            return stream.read(length)
    except OSError as error:
        raise refusal(model_id, f"{file.name} cannot be opened: {first_line(error, 120)}") from error


def safetensors_header(file: Path, model_id: object) -> Header:
    """The header of a safetensors file, whose length must match it.

    Format: https://huggingface.co/docs/safetensors (8 bytes of header length, the header in json, the data).
    """
    refuse_pointer(file, model_id)
    size = file.stat().st_size
    with refusing(model_id, f"{file.name} has no readable safetensors header"), file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise refusal(model_id, f"{file.name} ends within its header ({size:,} bytes): an interrupted download?")
        if length > HEADER_LIMIT:
            raise refusal(model_id, f"{file.name} has a header of {length:,} bytes; at most {HEADER_LIMIT:,} are read")
        header = json.loads(stream.read(length))
        metadata = header.pop("__metadata__", None) or {}
        check_number(len(header))
        entries = {name: entry_of(name, described, 8 + length) for name, described in header.items()}
        if not isinstance(metadata, dict):
            raise ValueError("__metadata__ is not an object")
    expected = max((entry.offset + entry.nbytes for entry in entries.values()), default=8 + length)
    if size != expected:
        why = "an interrupted download?" if size < expected else "a damaged file?"
        raise refusal(model_id, f"{file.name} is {size:,} bytes long where its header says {expected:,}: {why}")
    check_apart(file, entries, 8 + length, model_id)
    return Header(entries, metadata)


def entry_of(name: str, described: dict, start: int) -> Entry:
    """A tensor of a safetensors header whose data begin at byte `start`; ValueError if its fields contradict."""
    dtype, shape, (first, end) = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(shape, list) or len(shape) > MOST_AXES or not all(is_count(n) for n in [*shape, first, end]):
        raise ValueError(f"shape or offsets of {name} are not counts")
    if dtype not in SIZES and dtype not in PACKED:
        raise ValueError(f"{name} has dtype {dtype!r}, which is not known")
    if end < first or (dtype in SIZES and math.prod(shape) * SIZES[dtype] != end - first):
        raise ValueError(f"{name} takes bytes {first} to {end}, which does not fit {dtype} {shape}")
    return Entry(tuple(shape), dtype, start + first, end - first)


def check_number(tensors: int) -> None:
    """Raises a ValueError for more tensors than a file of weights has: every name is looked up in several tables."""
    if tensors > MOST_TENSORS:
        raise ValueError(f"it has {tensors:,} tensors; at most {MOST_TENSORS:,} are read")


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def check_apart(file: Path, entries: dict[str, Entry], start: int, model_id: object, gaps: bool = False) -> None:
    """Raises an `InputError` if tensors overlap or, unless `gaps` are allowed, leave bytes between them."""
    spans = sorted((entry.offset, entry.offset + entry.nbytes, name) for name, entry in entries.items() if entry.nbytes)
    for (_, end, name), (first, _, other) in pairwise([(0, start, "the header"), *spans]):
        if first < end or (first > end and not gaps):
            fault = "overlap" if first < end else "have a gap between them"
            raise refusal(model_id, f"{file.name} is damaged: {name} and {other} {fault}")


def check_archive(file: Path, model_id: object) -> None:
    """Checks a ``.pth`` file, a zip archive: its directory is at the end, so a truncated file has none."""
    refuse_pointer(file, model_id)
    size = file.stat().st_size
    try:
        if (directory := directory_size(file, size)) > DIRECTORY_LIMIT:
            reason = f"has a directory of {directory:,} bytes; at most {DIRECTORY_LIMIT:,} are read"
            raise refusal(model_id, f"{file.name} {reason}")
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
    except InputError:
        raise
    except Exception as error:  # zipfile raises several types on damaged directories
        reason = f"({size:,} bytes) is no whole .pth file: an interrupted download?"
        raise refusal(model_id, f"{file.name} {reason}") from error
    pickles = [member.file_size for member in members if member.filename.endswith("data.pkl")]
    if not pickles:
        raise refusal(model_id, f"{file.name} is a zip archive, but no .pth file")
    if max(pickles) > PICKLE_LIMIT:  # it is read as a whole, and can describe any number of tensors
        reason = f"describes its tensors in {max(pickles):,} bytes; at most {PICKLE_LIMIT:,} are read"
        raise refusal(model_id, f"{file.name} {reason}")
    # torch writes none; a small file could expand to any size.
    if compressed := next((m.filename for m in members if m.compress_type != zipfile.ZIP_STORED), None):
        raise refusal(model_id, f"{file.name} is not as torch writes it: {compressed[:200]!r} is compressed")


def is_dict_of_tensors(found: object) -> bool:
    """Whether an unpickled object is what a file of weights holds."""
    import torch

    return (
        isinstance(found, dict)
        and len(found) <= MOST_TENSORS
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in found.items())
    )


def directory_size(file: Path, size: int) -> int:
    """Bytes of a zip archive's directory, by the record at its end; zipfile and torch read them as a whole.

    Format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, 4.3.14 to 4.3.16.
    """
    with file.open("rb") as stream:
        stream.seek(max(0, size - ZIP_END))
        end = stream.read(ZIP_END)
    at = end.rindex(b"PK\5\6")
    found = int.from_bytes(end[at + 12 : at + 16], "little")
    if found == 2**32 - 1:  # recorded in 8 bytes elsewhere
        at = end.rindex(b"PK\6\6")
        found = int.from_bytes(end[at + 40 : at + 48], "little")
    return found
