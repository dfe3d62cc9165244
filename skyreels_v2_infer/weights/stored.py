"""The tensors of one part as its files store them: names without prefix, scales beside the weights they belong to.

Needs no torch until tensors are read, so that a part can be recognised, checked and measured before.
"""

import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skyreels_v2_infer.weights.gguf_header import QUANTIZED
from skyreels_v2_infer.weights.headers import refusing
from skyreels_v2_infer.weights.key_tables import LORA, MARKERS, OTHER_PARTS, PREFIXES, STYLES, Style, renamed
from skyreels_v2_infer.weights.layouts import LABELS, Part, refusal
from skyreels_v2_infer.weights.tensor_files import TensorFile, open_tensor_file

if TYPE_CHECKING:
    import torch

    from skyreels_v2_infer.modules.quantized import Quantized

# Pages of a mapped file count as resident until the mapping is closed. While tensors are converted the file is
# therefore reopened after each such fraction of it, which keeps the peak near the size of the result.
MAPPED_AT_ONCE = 1 / 16

DENSE = {"F64", "F32", "F16", "BF16"}
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SCALED = {**FLOAT8, "I8": "int8"}

TOKENS = "shared.weight"  # a text encoder's embedding of tokens

# Suffixes of the tensors that belong to a weight X.weight, X being the layer.
SCALES = (".scale_weight", ".weight_scale", ".weight._scale")  # ComfyUI and musubi; LightX2V and ComfyUI; quanto
ACTIVATIONS = (".scale_input", ".input_scale", ".output_scale")  # for products in float8, which are not made here
QUANTO_DATA = ".weight._data"
COMFY = ".comfy_quant"
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2", "int8_tensorwise")

# Suffixes that only formats have that are not supported.
UNSUPPORTED = {
    ".weight_scale_2": "nvfp4",
    ".pre_quant_scale": "awq",
    ".qweight": "awq",
    ".qzeros": "awq",
    ".wscales": "svdquant",
    ".weight.absmax": "bitsandbytes",
    ".weight.quant_map": "bitsandbytes",
}


@dataclass(frozen=True)
class Source:
    """One tensor to load, and where its numbers are.

    Attributes:
        file, name: where, and under which name there.
        shape, dtype, nbytes: as stored, see `Entry`; the scale's bytes count.
        scale: the tensor that its numbers are multiplied by; None if they mean themselves.
    """

    file: TensorFile
    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    scale: "Source | None" = None

    @property
    def form(self) -> str | None:
        """The format, as in `Quantized`, if it stays quantised when it is a layer's matrix; else None."""
        if len(self.shape) != 2:
            return None
        if self.dtype in QUANTIZED:
            return self.dtype
        return FLOAT8.get(self.dtype) or ("int8" if self.dtype == "I8" and self.scale else None)

    @property
    def stored_bytes(self) -> int:
        """Without the scale."""
        return self.nbytes - (0 if self.scale is None else self.scale.nbytes)

    def tiles(self) -> tuple[int, int]:
        """Rows and columns of the scale: into so many equal tiles it divides the matrix; (0, 0) if it does not."""
        shape = list(self.scale.shape)
        if len(shape) == 3 and shape[2] == 1:
            shape = shape[:2]
        shape += [1] * (2 - len(shape))
        if shape == [1, 1]:
            return 1, 1
        if len(shape) == len(self.shape) == 2 and all(n and not m % n for m, n in zip(self.shape, shape, strict=True)):
            return tuple(shape)
        return 0, 0

    def read(self, reader: "Callable[[TensorFile], Callable[[str], torch.Tensor]]") -> "torch.Tensor | Quantized":
        """The tensor: dense in a dtype of its own, or `Quantized`.

        Args:
            reader: opens a file for reading, see `TensorFile.open`.
        """
        from skyreels_v2_infer.modules.quantized import Quantized, tiled

        tensor = reader(self.file)(self.name)
        scale = None if self.scale is None else reader(self.scale.file)(self.scale.name).reshape(self.tiles())
        if self.form in QUANTIZED:
            return Quantized(self.form, tensor)
        if self.form is not None:
            import torch

            return Quantized(self.form, tensor.view(torch.uint8), scale)
        if scale is None:
            return tensor
        return tiled(tensor.float(), scale.float()) if tensor.ndim == 2 else tensor.float() * scale.float().reshape(())


class Weights:
    """The tensors of one part of a checkpoint.

    Args:
        part: its files.
        name: of the part (`PARTS`).

    Attributes:
        style: how its tensors are named.
        sources: the tensors to load, by the names of that style.
        markers: tensors that are no weights, by name (``spiece_model``).
        metadata: of its files.

    Raises:
        InputError: the files are damaged, are no such part, or are stored in an unsupported format.
    """

    def __init__(self, part: Part, name: str, model_id: object):
        self.model_id, self.label = model_id, LABELS[name]
        files = [open_tensor_file(file, model_id) for file in part.files]
        self.files = files
        found = {}
        self.metadata: dict = {}
        for file in files:
            self.metadata |= file.header.metadata
            for tensor in file.names:
                if tensor in found:
                    both = f"{found[tensor].file.path.name} and {file.path.name}"
                    raise refusal(model_id, f"{tensor} is in two files: {both}")
                entry = file.entry(tensor)
                found[tensor] = Source(file, tensor, entry.shape, entry.dtype, entry.nbytes)
        found = joined(found, self.metadata, model_id)
        style = recognised(found, name)
        if style is None and part.layout == "file":
            raise refusal(model_id, f"is no {self.label}: {described(found, name, self.metadata)}")
        prefix, self.style = style or ("", default_style(name, part.layout))
        self.sources: dict[str, Source] = {}
        self.markers: dict[str, Source] = {}
        for tensor, source in found.items():
            if prefix and not tensor.startswith(prefix) and tensor.startswith(OTHER_PARTS):
                continue  # of another part of the same model
            bare = tensor.removeprefix(prefix)
            (self.markers if MARKERS.search(bare) else self.sources)[bare] = source

    def drop(self, patterns: list[str]) -> None:
        """Excludes tensors whose name matches any of the patterns from loading."""
        for name in [name for name in self.sources if any(re.search(pattern, name) for pattern in patterns)]:
            del self.sources[name]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: source.shape for name, source in self.sources.items()}

    @property
    def nbytes(self) -> int:
        """Of all tensors to load, as stored."""
        return sum(source.nbytes for source in self.sources.values())

    @property
    def is_quantized(self) -> bool:
        """Whether any matrix stays quantised when it is loaded as stored."""
        return any(source.form is not None for source in self.sources.values())

    def loaded_bytes(self, weight_bytes: int, one_byte: re.Pattern | None = None) -> int:
        """Bytes of the loaded tensors, quantised matrices as stored and the largest of them expanded.

        Args:
            weight_bytes: per number of all others.
            one_byte: parameters that are rounded to one byte per number.
        """
        total = expanded = 0
        for name, source in self.sources.items():
            ours = renamed(name, self.style.table)
            count = math.prod(source.shape)
            if one_byte is not None and one_byte.search(ours):
                total += count
            elif source.form is None:
                total += count * weight_bytes
            else:
                total += source.nbytes
                if ours != TOKENS:  # of which only some rows are expanded
                    expanded = max(expanded, count * weight_bytes)
        return total + expanded

    def check_formats(self) -> None:
        """Raises an `InputError` for the first tensor whose numbers cannot be used: integers without scales, say."""
        for name, source in self.sources.items():
            legal = source.dtype in DENSE or source.dtype in FLOAT8 or source.form is not None
            if not legal and source.dtype[0] in "IU":
                raise refusal(self.model_id, f"{name} is stored as integers ({source.dtype}) without a scale")
            if not legal:
                raise refusal(self.model_id, f"{name} is stored as {source.dtype}, which is not supported")
            if source.scale is None:
                continue
            if source.scale.dtype not in DENSE:
                raise refusal(self.model_id, f"the scale of {name} is stored as {source.scale.dtype}: not supported")
            if source.tiles() == (0, 0):
                shapes = f"{list(source.scale.shape)} for a weight {list(source.shape)}"
                raise refusal(self.model_id, f"the scale of {name} has shape {shapes}; it must divide it evenly")

    def __iter__(self) -> "Iterator[tuple[str, torch.Tensor | Quantized]]":
        """(name, tensor) pairs on the CPU; the tensors are views of the mapped files."""
        for file in self.files:
            names = [name for name, source in self.sources.items() if source.file is file]
            yield from self.read(names, file.path.stat().st_size * MAPPED_AT_ONCE)

    def read(self, names: Iterable[str], mapped: float) -> "Iterator[tuple[str, torch.Tensor | Quantized]]":
        """(name, tensor) pairs as above, in the order of `names`.

        Args:
            mapped: bytes after which the files are mapped anew.
        """
        waiting = deque(names)
        while waiting:
            reads: dict[TensorFile, Callable] = {}
            used = 0

            def reader(file: TensorFile, reads=reads):
                if file not in reads:
                    reads[file] = file.open()
                return reads[file]

            while waiting and used <= mapped:
                name = waiting.popleft()
                used += self.sources[name].nbytes
                yield name, self.sources[name].read(reader)


def joined(found: dict[str, Source], metadata: dict, model_id: object) -> dict[str, Source]:
    """The tensors of files, each scale put beside its weight. An `InputError` names formats that are not supported."""
    for name in found:
        for suffix, form in UNSUPPORTED.items():
            if name.endswith(suffix):
                raise unsupported(form, name, model_id)
    result = {name.replace(QUANTO_DATA, ".weight"): source for name, source in found.items()}
    declared = declared_formats(metadata, model_id)
    for name in found:
        if name.endswith(COMFY):
            declared[name.removesuffix(COMFY)] = comfy_format(found[name], model_id)
            del result[name]
        elif name.endswith(ACTIVATIONS):
            del result[name]
        elif suffix := next((suffix for suffix in SCALES if name.endswith(suffix)), None):
            weight = name.removesuffix(suffix) + ".weight"
            if weight in result:
                source, scale = result[weight], result.pop(name)
                nbytes = source.nbytes + scale.nbytes
                result[weight] = Source(source.file, source.name, source.shape, source.dtype, nbytes, scale)
    for layer, form in declared.items():
        weight = result.get(f"{layer}.weight")
        if form not in COMFY_FORMATS:
            raise unsupported(form, layer, model_id)
        if weight is not None and weight.dtype in SCALED and weight.scale is None:
            raise refusal(model_id, f"{layer} is stored as {form}, but has no weight_scale")
    return result


def unsupported(form: str, name: str, model_id: object):
    supported = "float8, float8 and int8 with scales, and GGUF are"
    return refusal(model_id, f"{name} is stored as {form}, which is not supported; {supported}")


def declared_formats(metadata: dict, model_id: object) -> dict[str, str]:
    """Layer -> format, from the metadata of a safetensors file that ComfyUI has quantised."""
    if "_quantization_metadata" not in metadata:
        return {}
    with refusing(model_id, "_quantization_metadata cannot be read"):
        layers = json.loads(metadata["_quantization_metadata"])["layers"]
        return {layer: named_format(about) for layer, about in layers.items()}


def comfy_format(source: Source, model_id: object) -> str:
    """The format in a tensor of uint8 that holds a json object."""
    with refusing(model_id, f"{source.name} cannot be read"):
        if source.dtype != "U8" or source.nbytes > 2**16:
            raise ValueError("it is no json object in uint8")
        return named_format(json.loads(source.file.read_bytes(source.name)))


def named_format(about: dict) -> str:
    """The format of a layer; one that has been rotated (convrot) is named so, whatever it is stored in."""
    return "convrot" if about.get("convrot") else str(about["format"])


def recognised(found: dict[str, Source], name: str) -> tuple[str, Style] | None:
    """The prefix and the style of a part's tensors, by the styles' anchors; None if none is there."""
    for style in STYLES[name]:
        for prefix in PREFIXES[name]:
            if prefix + style.anchor in found:
                return prefix, style
    return None


def default_style(name: str, layout: str) -> Style:
    """The style that a layout's folder is expected to have."""
    return next(style for style in STYLES[name] if style.name == (layout if layout == "diffusers" else "original"))


def described(found: dict[str, Source], name: str, metadata: dict) -> str:
    """What a file that is not a given part is instead, as far as its tensors say."""
    if any(LORA.search(tensor) for tensor in found):
        return "it is a LoRA or another adapter, which is added to a model and does not replace it"
    for other, label in LABELS.items():
        if other in STYLES and other != name and recognised(found, other):
            return f"its tensors are those of a {label}"
    if architecture := metadata.get("general.architecture"):
        return f"it is a GGUF file of architecture {str(architecture)[:60]!r}"
    shown = ", ".join(list(found)[:3])
    return (
        f"its tensors have other names ({shown}{', ...' if len(found) > 3 else ''})" if found else "it has no tensors"
    )
