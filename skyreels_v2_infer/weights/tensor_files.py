"""Files of tensors, whatever their form: safetensors, GGUF, ``.pth``; one class that lists and reads them.

The form follows from a file's first bytes, or, if they are of no known form, from its suffix. Files are memory-mapped:
a tensor that `TensorFile.read` returns is a view of its file. torch is imported where tensors are read.
"""

import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.weights.gguf_header import MAGIC, QUANTIZED, gguf_header
from skyreels_v2_infer.weights.headers import (
    SIZES,
    Entry,
    Header,
    beginning,
    check_archive,
    is_dict_of_tensors,
    refusing,
    safetensors_header,
)
from skyreels_v2_infer.weights.layouts import refusal

if TYPE_CHECKING:
    import torch

ARCHIVES = (".pth", ".pt", ".bin", ".ckpt")
SUFFIXES = (".safetensors", ".gguf", *ARCHIVES)


class TensorFile:
    """One file of tensors.

    Attributes:
        path: of the file.
        header: names, shapes, dtypes and metadata; read when it is first asked for.

    Raises (every method):
        InputError: the file is damaged, truncated or of an unsupported kind.
    """

    def __init__(self, path: Path, model_id: object):
        self.path, self.model_id = path, model_id

    @cached_property
    def header(self) -> Header:
        raise NotImplementedError

    @property
    def names(self) -> list[str]:
        return list(self.header.entries)

    def entry(self, name: str) -> Entry:
        """Shape, dtype and size of a tensor."""
        return self.header.entries[name]

    def check(self) -> None:
        """Checks that the file is complete; takes milliseconds."""
        _ = self.header

    def open(self) -> "Callable[[str], torch.Tensor]":
        """A function that reads tensors by name from one mapping of the file, as long as it or a tensor is alive."""
        with refusing(self.model_id, f"{self.path.name} cannot be read"):
            read = self._open()

        def guarded(name: str) -> "torch.Tensor":
            with refusing(self.model_id, f"{self.path.name}: {name} cannot be read"):
                return read(name)

        return guarded

    def read(self, name: str) -> "torch.Tensor":
        """A tensor as stored, on the CPU: in its dtype; a quantised GGUF matrix as uint8 ``[rows, bytes of a row]``."""
        return self.open()(name)

    def read_bytes(self, name: str) -> bytes:
        """The data of a small tensor of uint8."""
        return bytes(self.read(name).tolist())

    def _open(self) -> "Callable[[str], torch.Tensor]":
        raise NotImplementedError


class SafetensorsFile(TensorFile):
    @cached_property
    def header(self) -> Header:
        return safetensors_header(self.path, self.model_id)

    def read_bytes(self, name: str) -> bytes:
        """The data of a small tensor, without torch."""
        entry = self.entry(name)
        with self.path.open("rb") as stream:
            stream.seek(entry.offset)
            return stream.read(entry.nbytes)

    def _open(self) -> "Callable[[str], torch.Tensor]":
        from safetensors import safe_open

        return safe_open(self.path, framework="pt").get_tensor


class GGUFFile(TensorFile):
    @cached_property
    def header(self) -> Header:
        return gguf_header(self.path, self.model_id)

    def _open(self) -> "Callable[[str], torch.Tensor]":
        import torch

        # Private pages: a tensor that is written to leaves the file alone.
        data = torch.from_file(str(self.path), shared=False, size=self.path.stat().st_size, dtype=torch.uint8)

        def read(name: str) -> torch.Tensor:
            entry = self.entry(name)
            stored = data[entry.offset : entry.offset + entry.nbytes]
            if entry.dtype in QUANTIZED:
                return stored.view(math.prod(entry.shape[:-1]), -1)
            return stored.view(torch_dtypes()[entry.dtype]).view(entry.shape)

        return read


class ArchiveFile(TensorFile):
    """A ``.pth`` file: a dict of tensors, unpickled with ``weights_only``, so that no code in it runs."""

    @cached_property
    def header(self) -> Header:
        names = {dtype: name for name, dtype in torch_dtypes().items()}
        entries = {}
        for name, tensor in self._tensors().items():
            if str(tensor.layout) != "torch.strided" or tensor.device.type != "cpu" or tensor.is_quantized:
                raise refusal(self.model_id, f"{self.path.name} has {name} in a form that is not supported")
            # A stride of 0 makes a small storage a tensor of any size.
            if tensor.nbytes > tensor.untyped_storage().nbytes():
                raise refusal(self.model_id, f"{self.path.name} is damaged: {name} is larger than its storage")
            dtype = names.get(tensor.dtype, str(tensor.dtype).removeprefix("torch."))
            entries[name] = Entry(tuple(tensor.shape), dtype, 0, tensor.nbytes)
        return Header(entries)

    def check(self) -> None:
        check_archive(self.path, self.model_id)

    def _tensors(self) -> "dict[str, torch.Tensor]":
        import torch

        check_archive(self.path, self.model_id)
        try:
            tensors = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged pickle can raise anything
            reason = "a plain dict of tensors, opened without running code, was expected"
            raise refusal(
                self.model_id, f"{self.path.name} was refused ({reason}): {first_line(error, 120)}"
            ) from error
        if not is_dict_of_tensors(tensors):
            raise refusal(self.model_id, f"{self.path.name} is not a plain dict of tensors")
        return tensors

    def _open(self) -> "Callable[[str], torch.Tensor]":
        return self._tensors().__getitem__


def open_tensor_file(path: Path, model_id: object) -> TensorFile:
    """The file in the class of its form; its header is not read yet."""
    start = beginning(path, 8, model_id)
    if start[:4] == MAGIC:
        return GGUFFile(path, model_id)
    if start[:4] == b"PK\x03\x04" or path.suffix in ARCHIVES:
        return ArchiveFile(path, model_id)
    return SafetensorsFile(path, model_id)


def check_file(path: Path, model_id: object) -> None:
    """Raises an `InputError` if a file of tensors is damaged or truncated, by its header or directory alone."""
    open_tensor_file(path, model_id).check()


def torch_dtypes() -> "dict[str, torch.dtype]":
    """safetensors' names of the dtypes that torch has."""
    import torch

    theirs = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
    theirs |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64", "U8": "uint8"}
    theirs |= {f"I{bits}": f"int{bits}" for bits in (8, 16, 32, 64)}
    assert theirs.keys() <= SIZES.keys()
    return {name: getattr(torch, dtype) for name, dtype in theirs.items()}
