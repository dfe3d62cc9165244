"""Writes safetensors files tensor by tensor, in files of bounded size, so that memory never holds more than one tensor.

Format: https://huggingface.co/docs/safetensors. The library writes a file from tensors that are all in memory; here the
header, which follows from names, shapes and dtypes alone, is written first.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from skyreels_v2_infer.weights.headers import SIZES
from skyreels_v2_infer.weights.tensor_files import torch_dtypes

ALIGNED = 8  # bytes: what the header's length is a multiple of, as in the library's files


@dataclass(frozen=True)
class Planned:
    """A tensor to write.

    Attributes:
        dtype: safetensors' name of it (``"BF16"``).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * SIZES[self.dtype]


def in_shards(tensors: Iterable[Planned], limit: int) -> list[list[Planned]]:
    """Consecutive tensors of up to `limit` bytes in all; a larger tensor gets a shard of its own."""
    shards: list[list[Planned]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    return shards


def file_names(stem: str, count: int) -> list[str]:
    """Names of a set of shards, as diffusers and transformers have them; of a single file without numbers."""
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05}-of-{count:05}.safetensors" for i in range(1, count + 1)]


def write_index(folder: Path, stem: str, shards: Mapping[str, list[Planned]]) -> None:
    """The index of a set of shards; `shards`: what each file holds."""
    total = sum(tensor.nbytes for tensors in shards.values() for tensor in tensors)
    listed = {tensor.name: file for file, tensors in shards.items() for tensor in tensors}
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(listed.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tensors(
    path: Path, planned: Iterable[Planned], values: Iterable[tuple[str, torch.Tensor]], metadata: Mapping[str, str]
) -> Iterator[int]:
    """Writes a file; yields the bytes of each tensor once they are written.

    Args:
        values: (name, tensor) of everything that is planned, in any order.
        metadata: of the file.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    missing, end = {}, 0
    # Wide dtypes first, as in the library's files: every tensor is aligned to its numbers.
    for tensor in sorted(planned, key=lambda tensor: -SIZES[tensor.dtype]):
        missing[tensor.name] = tensor, end
        first, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNED)
    start = 8 + len(text)
    dtypes = torch_dtypes()
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(start + end)
        for name, value in values:
            tensor, first = missing.pop(name)
            assert (value.dtype, tuple(value.shape)) == (dtypes[tensor.dtype], tensor.shape), name
            file.seek(start + first)
            file.write(memoryview(value.contiguous().reshape(-1).view(torch.uint8).numpy()))
            del value
            yield tensor.nbytes
        assert not missing
        file.flush()
        os.fsync(file.fileno())
