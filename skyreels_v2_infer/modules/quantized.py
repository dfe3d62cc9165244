"""Quantised weights: kept on the device as a file stores them, expanded layer by layer in the forward pass.

Formats: ``float8_e4m3fn``, ``float8_e5m2`` and ``int8``, each optionally with scales, and the block formats of GGUF
(`GGUF`). In GGUF a row of a matrix is a sequence of blocks, each a few scales and the packed numbers; the layouts are
those of the structs in ggml's ``ggml-common.h``. N blocks, R rows, C columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

# Numbers expanded at a time, which bounds the temporaries: few on a CPU, for its caches; many on a GPU, whose kernels
# take time to start.
CHUNK = {"cpu": 2**18}
CHUNK_ELSEWHERE = 2**22

BYTE_FORMATS = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2, "int8": torch.int8}

# The 16 values that a number of IQ4_NL and IQ4_XS indexes.
IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


# ------------------------------------------------------------------- GGUF: uint8 [N, bytes] -> float32 [N, numbers]


def half(blocks: torch.Tensor, at: int) -> torch.Tensor:
    """The float16 at a byte offset, as float32 ``[N, 1]``."""
    return blocks[:, at : at + 2].contiguous().view(torch.float16).float()


def nibbles(packed: torch.Tensor) -> torch.Tensor:
    """``[..., n]`` -> ``[..., 2n]``: all low halves of the bytes, then all high halves."""
    return torch.cat([packed & 15, packed >> 4], dim=-1)


def fields(packed: torch.Tensor, width: int, count: int) -> torch.Tensor:
    """``[..., n]`` -> ``[..., count, n]``: field i is bits ``width * i`` and following of every byte."""
    return torch.stack([packed >> width * i & (1 << width) - 1 for i in range(count)], dim=-2)


def fifth_bits(packed: torch.Tensor) -> torch.Tensor:
    """``[N, 4]`` -> ``[N, 32]``: the bits, lowest first."""
    return fields(packed, 1, 8).transpose(1, 2).flatten(1)


def q4_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * (nibbles(b[:, 2:]).float() - 8)


def q4_1(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * nibbles(b[:, 4:]) + half(b, 2)


def q5_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * ((nibbles(b[:, 6:]) | fifth_bits(b[:, 2:6]) << 4).float() - 16)


def q5_1(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * (nibbles(b[:, 8:]) | fifth_bits(b[:, 4:8]) << 4) + half(b, 2)


def q8_0(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * b[:, 2:].view(torch.int8)


def q2_k(b: torch.Tensor) -> torch.Tensor:
    """16 groups of 16 numbers, each with a 4-bit scale and a 4-bit minimum."""
    scale, least = half(b, 80) * (b[:, :16] & 15), half(b, 82) * (b[:, :16] >> 4)
    numbers = fields(b[:, 16:80].unflatten(1, (2, 32)), 2, 4).reshape(-1, 16, 16)
    return (scale.unsqueeze(2) * numbers - least.unsqueeze(2)).flatten(1)


def q3_k(b: torch.Tensor) -> torch.Tensor:
    """16 groups of 16 numbers with 6-bit scales: 2 bits of a number in one table, the third in another."""
    low, high = nibbles(b[:, 96:104]), fields(b[:, 104:108], 2, 4).flatten(1)
    scale = half(b, 108) * ((low | high << 4).float() - 32)
    numbers = fields(b[:, 32:96].unflatten(1, (2, 32)), 2, 4).flatten(1)
    third = fields(b[:, :32], 1, 8).flatten(1)
    return (scale.unsqueeze(2) * ((numbers | third << 2).float() - 4).unflatten(1, (16, 16))).flatten(1)


def scales_and_minima(b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of Q4_K and Q5_K, float32 ``[N, 8, 1]``: twice eight numbers of 6 bits, packed into 12 bytes."""
    first, second, rest = b[:, 4:8], b[:, 8:12], b[:, 12:16]
    scale = torch.cat([first & 63, rest & 15 | (first >> 6) << 4], dim=1)
    least = torch.cat([second & 63, rest >> 4 | (second >> 6) << 4], dim=1)
    return (half(b, 0) * scale).unsqueeze(2), (half(b, 2) * least).unsqueeze(2)


def q4_k(b: torch.Tensor) -> torch.Tensor:
    scale, least = scales_and_minima(b)
    return (scale * nibbles(b[:, 16:].unflatten(1, (4, 32))).reshape(-1, 8, 32) - least).flatten(1)


def q5_k(b: torch.Tensor) -> torch.Tensor:
    scale, least = scales_and_minima(b)
    numbers = nibbles(b[:, 48:].unflatten(1, (4, 32))).reshape(-1, 8, 32) | fields(b[:, 16:48], 1, 8) << 4
    return (scale * numbers - least).flatten(1)


def q6_k(b: torch.Tensor) -> torch.Tensor:
    """Two halves of 128 numbers: 4 low bits in 64 bytes, 2 high bits in 32; a scale of 8 bits for 16 numbers."""
    low = nibbles(b[:, :128].unflatten(1, (2, 64))).flatten(1)
    high = fields(b[:, 128:192].unflatten(1, (2, 32)), 2, 4).flatten(1)
    scale = half(b, 208) * b[:, 192:208].view(torch.int8)
    return (scale.unsqueeze(2) * ((low | high << 4).float() - 32).unflatten(1, (16, 16))).flatten(1)


def iq4_values(numbers: torch.Tensor) -> torch.Tensor:
    return torch.tensor(IQ4_VALUES, dtype=torch.float32, device=numbers.device)[numbers.int()]


def iq4_nl(b: torch.Tensor) -> torch.Tensor:
    return half(b, 0) * iq4_values(nibbles(b[:, 2:]))


def iq4_xs(b: torch.Tensor) -> torch.Tensor:
    """8 groups of 32 numbers with 6-bit scales: 4 low bits in 4 bytes, 2 high bits in 2 bytes."""
    low = fields(b[:, 4:8], 4, 2).transpose(1, 2).flatten(1)
    high = fields(b[:, 2:4], 2, 4).transpose(1, 2).flatten(1)
    scale = half(b, 0) * ((low | high << 4).float() - 32)
    return (scale.unsqueeze(2) * iq4_values(nibbles(b[:, 8:].unflatten(1, (8, 16))))).flatten(1)


# Type -> (numbers in a block, bytes of a block, expansion).
GGUF: dict[str, tuple[int, int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "Q4_0": (32, 18, q4_0),
    "Q4_1": (32, 20, q4_1),
    "Q5_0": (32, 22, q5_0),
    "Q5_1": (32, 24, q5_1),
    "Q8_0": (32, 34, q8_0),
    "Q2_K": (256, 84, q2_k),
    "Q3_K": (256, 110, q3_k),
    "Q4_K": (256, 144, q4_k),
    "Q5_K": (256, 176, q5_k),
    "Q6_K": (256, 210, q6_k),
    "IQ4_NL": (32, 18, iq4_nl),
    "IQ4_XS": (256, 136, iq4_xs),
}


# ------------------------------------------------------------------------------------------------------- matrices


@dataclass(frozen=True)
class Quantized:
    """A quantised matrix ``[R, C]``.

    Attributes:
        form: its format: a key of `BYTE_FORMATS` or of `GGUF`.
        stored: uint8 ``[R, bytes of a row]``; whatever the format, so that a module's ``.to(dtype)`` leaves it alone.
        scale: ``[r, c]``, r dividing R and c dividing C: what each of r x c equal tiles is multiplied by; or None.
    """

    form: str
    stored: torch.Tensor
    scale: torch.Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, row_bytes = self.stored.shape
        if self.form in BYTE_FORMATS:
            return rows, row_bytes
        numbers, size, _ = GGUF[self.form]
        return rows, row_bytes // size * numbers

    @property
    def nbytes(self) -> int:
        return self.stored.nbytes + (0 if self.scale is None else self.scale.nbytes)

    def to(self, device: str | torch.device) -> "Quantized":
        return replace(self, stored=self.stored.to(device), scale=None if self.scale is None else self.scale.to(device))

    def rows(self, index: slice | torch.Tensor) -> "Quantized":
        """Some of the rows, as a matrix of its own."""
        scale = self.scale
        if scale is not None and len(scale) > 1:
            scale = scale.repeat_interleave(len(self.stored) // len(scale), 0)[index]
        return replace(self, stored=self.stored[index], scale=scale)

    def chunk(self, count: int) -> list["Quantized"]:
        """Equal parts of consecutive rows."""
        size = len(self.stored) // count
        return [self.rows(slice(i * size, (i + 1) * size)) for i in range(count)]

    def dequantize(self, dtype: torch.dtype, chunk: int | None = None) -> torch.Tensor:
        """The matrix, computed in float32 and rounded once, to `dtype`.

        Args:
            chunk: how many numbers are expanded at a time; None: as suits the device.
        """
        if self.form in BYTE_FORMATS and self.scale is None:
            return self.stored.view(BYTE_FORMATS[self.form]).to(dtype)
        rows, columns = self.shape
        out = torch.empty(rows, columns, dtype=dtype, device=self.stored.device)
        step = max(1, (chunk or CHUNK.get(out.device.type, CHUNK_ELSEWHERE)) // columns)
        for first in range(0, rows, step):
            part = self.rows(slice(first, min(first + step, rows)))
            out[first : first + step] = part._expand()
        return out

    def _expand(self) -> torch.Tensor:
        """float32 ``[R, C]``; makes temporaries of several times that size."""
        if self.form in GGUF:
            _, size, expand = GGUF[self.form]
            return expand(self.stored.reshape(-1, size)).view(self.shape)
        return tiled(self.stored.view(BYTE_FORMATS[self.form]).float(), self.scale.float())


def tiled(values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Values ``[R, C]``, each tile multiplied by its number of scale ``[r, c]``."""
    scale = scale.repeat_interleave(len(values) // len(scale), 0)
    return (values.unflatten(1, (scale.shape[1], -1)) * scale.unsqueeze(2)).flatten(1)


# --------------------------------------------------------------------------------------------------------- layers


class QuantizedLayer(nn.Module):
    """A layer whose weight is a `Quantized` matrix.

    Args:
        weight: the matrix; on the meta device it gives sizes only, and `hold` fills it in.
        dtype: of the expanded weight.
    """

    def __init__(self, weight: Quantized, dtype: torch.dtype):
        super().__init__()
        self.form, self.shape, self.dtype = weight.form, weight.shape, dtype
        self.hold(weight)

    def hold(self, weight: Quantized) -> None:
        """Takes over a matrix of the format and size that the layer was made for."""
        assert (weight.form, weight.shape) == (self.form, self.shape)
        self.register_buffer("stored", weight.stored)
        self.register_buffer("scale", weight.scale)

    @property
    def quantized(self) -> Quantized:
        return Quantized(self.form, self.stored, self.scale)

    @property
    def weight(self) -> torch.Tensor:
        """Shape and dtype of the expanded weight, for code that asks for them; on the meta device, without values."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def dequantize(self) -> torch.Tensor:
        """The expanded weight."""
        return self.quantized.dequantize(self.dtype)

    def extra_repr(self) -> str:
        return f"{self.shape[0]} x {self.shape[1]}, {self.form}, computed in {self.dtype}"


class QuantizedLinear(QuantizedLayer):
    """A linear layer that expands its weight for every forward pass and frees it again.

    Args:
        bias: dense ``[R]`` in `dtype`, or None.
    """

    def __init__(self, weight: Quantized, bias: nn.Parameter | None, dtype: torch.dtype):
        super().__init__(weight, dtype)
        self.out_features, self.in_features = self.shape
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.to(self.dtype), self.dequantize(), self.bias)


class QuantizedEmbedding(QuantizedLayer):
    """An embedding that expands only the rows it looks up."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        rows = self.quantized.rows(ids.flatten())
        return rows.dequantize(self.dtype).view(*ids.shape, self.shape[1])
