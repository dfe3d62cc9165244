"""Seeded damage: to values of JSON, to texts and to bytes, to safetensors headers and to files as a whole."""

from __future__ import annotations

import copy
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from random import Random

# Values that a careful author of a file would not write. Strings that json cannot write itself stand in `RAW`.
ODD = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 2**31, 2**63, 2**64, -(2**63), 10**400, 1e308, -0.0, 0.5, 1e-320),
    *("", " ", "a", "0", "nan", "é\0\n\x1b[31m", "x" * 10_000, "../../../etc/passwd", "/dev/zero", "${HOME}"),
    *([], {}, [[]], [None], {"": {}}, [0] * 1000, {"auto_map": {"AutoModel": "a--b.C"}}, ["a", 1, None, {}]),
)
RAW = ("NaN", "Infinity", "-Infinity", "1e999", "[" * 10_000, '{"a":' * 10_000, "9" * 5_000, '"\\ud800"')
DTYPES = ("F32", "F16", "BF16", "I64", "I8", "BOOL", "C64", "F8_E4M3", "F64", "U8", "f32", "", "F33", 7, None)


def paths_in(value: object, at: tuple = ()) -> list[tuple]:
    """The keys and indices that lead to every value, the outermost first."""
    found = [at]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        found += paths_in(item, (*at, key))
    return found


def one_of(rng: Random, values: tuple) -> object:
    """A copy of one of them: it may be changed further."""
    return copy.deepcopy(rng.choice(values))


def change(rng: Random, value: object, odd: tuple = ODD) -> object:
    """A copy of a JSON value in which one to three places differ."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        *before, last = rng.choice(paths_in(value)[1:] or [(None,)])
        if last is None:
            return one_of(rng, odd)
        parent = value
        for key in before:
            parent = parent[key]
        how = rng.randrange(6)
        if how == 0:
            del parent[last]
        elif how == 1 and isinstance(parent, dict):
            parent[rng.choice((f"{last}_", "", "dim", "auto_map", "_attn_implementation"))] = one_of(rng, odd)
        elif how == 2 and isinstance(parent[last], int | float) and not isinstance(parent[last], bool):
            parent[last] = rng.choice((parent[last] * 2, -parent[last], parent[last] + 1, parent[last] * 10**6, 0))
        elif how == 3:
            parent[last] = [parent[last]] if rng.random() < 0.5 else {"value": parent[last]}
        else:
            parent[last] = one_of(rng, odd)
    return value


def json_text(rng: Random, value: object) -> bytes:
    """A changed JSON file; of every ten two are no JSON any more."""
    text = json.dumps(change(rng, value), ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")
    how = rng.randrange(10)
    if how == 0:
        return damage(rng, text)
    if how == 1:
        position = rng.choice([i for i, c in enumerate(text) if c in b":[,"] or [0]) + 1
        return text[:position] + rng.choice(RAW).encode() + text[position:].lstrip(b' 0123456789."nulltruefalse')
    return text


def damage(rng: Random, data: bytes) -> bytes:
    """Cut, emptied, with other bytes, with a part repeated, or with something before it."""
    if not data:
        return rng.randbytes(20)
    how, at = rng.randrange(7), rng.randrange(len(data))
    if how == 0:
        return data[:at]
    if how == 1:
        return rng.choice((b"", b"\0" * 100, b"\xff\xfe" + data, b"\xef\xbb\xbf" + data, rng.randbytes(500)))
    if how == 2:
        return data[:at] + data[at : at + 500] * rng.choice((2, 20)) + data[at:]
    if how == 3:
        return data[:at] + data[at + rng.randrange(1, 100) :]
    changed = bytearray(data)
    for _ in range(rng.choice((1, 3, 20))):
        changed[rng.randrange(min(len(data), rng.choice((64, 1000, len(data)))))] = rng.randrange(256)
    return bytes(changed)


def safetensors(rng: Random, data: bytes) -> bytes:
    """A file whose header describes other tensors than it has."""
    (size,) = struct.unpack("<Q", data[:8])
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    how = rng.randrange(8)
    if how == 0:
        claimed = rng.choice((0, 1, size - 1, size + 1, 2**32, 2**63, 2**64 - 1, len(data)))
        return struct.pack("<Q", claimed) + data[8:]
    if how == 1:
        return damage(rng, data)
    names = [name for name in header if name != "__metadata__"]
    for name in rng.sample(names, min(len(names), rng.choice((1, 1, 2, 50)))):
        tensor = header[name]
        if not isinstance(tensor, dict):
            continue
        what = rng.randrange(7)
        if what == 0:
            tensor["dtype"] = rng.choice(DTYPES)
        elif what == 1:
            tensor["shape"] = rng.choice(([], [0], [-1], [2**63], [2**32, 2**32], [1] * 1000, "x", [1.5], None))
        elif what == 2:
            start, end = tensor["data_offsets"]
            odd = ([end, start], [start, end + 4], [0, len(rest)], [start, 2**64], [-8, 0], [], None, [start, start])
            tensor["data_offsets"] = rng.choice(odd)
        elif what == 3:
            header[rng.choice((f"{name}.more", "", "é\0", "x" * 5000, "lora_A.weight"))] = header.pop(name)
        elif what == 4:
            header.pop(name)
        elif what == 5 and isinstance(tensor.get("shape"), list):
            tensor["shape"] = tensor["shape"][::-1] if rng.random() < 0.5 else [*tensor["shape"], 1]
        else:
            header[name] = one_of(rng, ODD)
    if rng.random() < 0.2:
        rest = bytes(len(rest)) if rng.random() < 0.5 else b"\xff" * len(rest)  # zeros, or not a number
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = damage(rng, text)
    return struct.pack("<Q", len(text)) + text + rest


def replace(path: Path, data: bytes) -> None:
    """New content; other names of the old file keep theirs."""
    path.unlink()
    path.write_bytes(data)


def large(path: Path) -> None:
    path.touch()
    os.truncate(path, 3 * 2**30)  # takes no space


# What can be in a file's place.
IN_PLACE: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "folder": Path.mkdir,
    "pipe": os.mkfifo,
    "dangling": lambda path: path.symlink_to("nowhere"),
    "loop": lambda path: path.symlink_to(path.name),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "null": lambda path: path.symlink_to("/dev/null"),
    "here": lambda path: path.symlink_to("."),
    "unreadable": lambda path: path.symlink_to("/proc/self/mem"),  # for root, too
    "empty": Path.touch,
    "large": large,
    "deep": lambda path: path.write_text("[" * 10_000 + "]" * 10_000),
    "deep object": lambda path: path.write_text('{"a":' * 10_000 + "1" + "}" * 10_000),
    "number": lambda path: path.write_text("1" + "0" * 400),
}


def no_file(rng: Random, path: Path) -> None:
    """Something else in a file's place."""
    path.unlink()
    IN_PLACE[rng.choice(sorted(IN_PLACE))](path)
