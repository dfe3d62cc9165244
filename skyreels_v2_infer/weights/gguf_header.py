"""The header of a GGUF file: metadata, names, shapes and types of tensors.

Read here rather than with the gguf package, whose reader takes 6 s and 0.5 GB for metadata with a vocabulary of 256,384
words (umT5) and follows the counts of a damaged header without bounds.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little-endian).
"""

import math
import mmap
import struct
from array import array
from pathlib import Path

from skyreels_v2_infer.weights.headers import Entry, Header, check_apart, check_number, refuse_pointer, refusing
from skyreels_v2_infer.weights.layouts import refusal

MAGIC = b"GGUF"
LIMIT = 2**26  # bytes of metadata and tensor descriptions that are read at most
MOST_VALUES = 2**21  # strings and arrays in metadata; a vocabulary of umT5's has 256,384
DEEPEST = 4  # arrays within arrays
DIMENSIONS = 8
DEFAULT_ALIGNMENT = 32

# Type of a metadata value -> struct's and array's letter; 8 is a string, 9 an array.
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9

# Tensor type -> (name, numbers in a block, bytes of a block).
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    30: ("BF16", 1, 2),
    28: ("F64", 1, 8),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
}
# Types that are named in messages only.
OTHERS = {
    9: "Q8_1",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    21: "IQ3_S",
    22: "IQ2_S",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
    40: "NVFP4",
    41: "Q1_0",
}
QUANTIZED = frozenset(name for name, numbers, _ in TYPES.values() if numbers > 1)


class Cursor:
    """Reads values one after the other from the first `LIMIT` bytes of a file; ValueError where they end."""

    def __init__(self, file: Path):
        with file.open("rb") as stream:
            self.data = mmap.mmap(stream.fileno(), min(LIMIT, file.stat().st_size), access=mmap.ACCESS_READ)
        self.at = self.values = 0

    def take(self, length: int) -> bytes:
        if length > len(self.data) - self.at:
            raise ValueError("it ends within its header")
        self.at += length
        return self.data[self.at - length : self.at]

    def number(self, letter: str):
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def string(self) -> str:
        return self.take(self.number("Q")).decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0):
        """A metadata value; an array of numbers as `array.array`, any other as a list."""
        if kind == STRING:
            return self.string()
        if kind in NUMBERS:
            return self.number(NUMBERS[kind])
        if kind != ARRAY or depth == DEEPEST:
            raise ValueError(f"a metadata value has type {kind}, depth {depth}")
        kind, count = self.number("I"), self.number("Q")
        letter = NUMBERS.get(kind, "").replace("?", "B")
        if letter:
            return array(letter, self.take(count * struct.calcsize("<" + letter)))
        self.values += count
        if self.values > MOST_VALUES:
            raise ValueError(f"its metadata has more than {MOST_VALUES:,} values")
        return [self.value(kind, depth + 1) for _ in range(count)]


def gguf_header(file: Path, model_id: object) -> Header:
    """Tensors and metadata of a GGUF file; an `InputError` for a damaged one or for types that are not supported."""
    refuse_pointer(file, model_id)
    size = file.stat().st_size
    with refusing(model_id, f"{file.name} has no readable GGUF header"):
        cursor = Cursor(file)
        if cursor.take(4) != MAGIC or (version := cursor.number("I")) not in (2, 3):
            raise ValueError(f"version {version} is not known")
        tensors, values = cursor.number("Q"), cursor.number("Q")
        if tensors + values > MOST_VALUES:
            raise ValueError(
                f"it has {tensors + values:,} tensors and metadata values; at most {MOST_VALUES:,} are read"
            )
        check_number(tensors)
        metadata = {}
        for _ in range(values):
            name = cursor.string()
            metadata[name] = cursor.value(cursor.number("I"))
        described = [described_tensor(cursor) for _ in range(tensors)]
        alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if not isinstance(alignment, int) or alignment < 1:
            raise ValueError(f"general.alignment is {alignment!r}")
        start = math.ceil(cursor.at / alignment) * alignment
        entries = {}
        for name, shape, kind, offset in described:
            if name in entries:
                raise ValueError(f"{name} is there twice")
            entries[name] = entry_of(name, shape, kind, start + offset, file, model_id)
    end = max((entry.offset + entry.nbytes for entry in entries.values()), default=0)
    if end > size:
        reason = f"is {size:,} bytes long where its header says {end:,}: an interrupted download?"
        raise refusal(model_id, f"{file.name} {reason}")
    check_apart(file, entries, start, model_id, gaps=True)
    return Header(entries, metadata)


def described_tensor(cursor: Cursor) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape (stored in reverse), type and offset within the data."""
    name, dimensions = cursor.string(), cursor.number("I")
    if dimensions > DIMENSIONS:
        raise ValueError(f"{name} has {dimensions} dimensions")
    shape = tuple(cursor.number("Q") for _ in range(dimensions))[::-1]
    return name, shape, cursor.number("I"), cursor.number("Q")


def entry_of(name: str, shape: tuple, kind: int, offset: int, file: Path, model_id: object) -> Entry:
    if kind not in TYPES:
        legal = ", ".join(["F32, F16, BF16", *sorted(QUANTIZED)])
        stored = OTHERS.get(kind, f"GGUF type {kind}")
        raise refusal(model_id, f"{file.name} stores {name} as {stored}, which is not supported; {legal} are")
    dtype, numbers, size = TYPES[kind]
    if (shape[-1] if shape else 1) % numbers:
        raise ValueError(f"{name} {list(shape)} has rows that are no multiple of {numbers}, as {dtype} needs")
    nbytes = math.prod(shape) // numbers * size
    return Entry(shape, dtype, offset, nbytes)
