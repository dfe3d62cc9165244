"""Converts a transformer between its forms; `convert` has the command line.

Names, shapes and dtypes of the result follow from the source's headers. Then tensor after tensor is read, expanded,
changed by LoRAs, rounded and written, so that memory holds one of them at a time, whatever the size of the model.
"""

import inspect
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from skyreels_v2_infer.console import say
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.linear import FP8, FP8_LARGEST
from skyreels_v2_infer.modules.quantized import Quantized
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.weights import key_tables
from skyreels_v2_infer.weights.config import diffusers_config, original_config
from skyreels_v2_infer.weights.filling import check_finite, compare
from skyreels_v2_infer.weights.layouts import CONFIG_KEY, Given
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.lora_file import LoraFile
from skyreels_v2_infer.weights.lora_names import Report
from skyreels_v2_infer.weights.stored import DENSE, Source, Weights
from skyreels_v2_infer.weights.tensor_files import torch_dtypes
from skyreels_v2_infer.weights.tensor_writer import (
    Planned,
    file_names,
    in_shards,
    write_index,
    write_tensors,
)
from skyreels_v2_infer.weights.verify import check_files

FORMS = ("original", "diffusers", "file")
SCALED = "fp8_scaled"
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", SCALED: "F8_E4M3"}
STEMS = {"original": "model", "diffusers": "diffusion_pytorch_model"}
SHARD_SIZE = 5.0  # GB
MAPPED = 2**28  # bytes of the source that are mapped at a time
SINGLE = "model.safetensors"  # a single file's name until it is complete
SCALED_MARKER = Planned("scaled_fp8", (0,), "F8_E4M3")


@dataclass(frozen=True)
class Target:
    """One parameter on its way.

    Attributes:
        source: its name in the source.
        ours: its name in `WanModel`.
        written: what is written; for a weight with a scale, the weight.
        scale: the scale to write beside it, or None.
        changes: (LoRA, what it does to the parameter, strength).
    """

    source: str
    ours: str
    written: Planned
    scale: Planned | None
    changes: tuple[tuple[LoraFile, Report, float], ...]


def convert(
    source: str | Path,
    out: Path,
    to: str,
    dtype: str | None = None,
    loras: Sequence[tuple[Path, float]] = (),
    shard_size: float = SHARD_SIZE,
    progress: Callable[[int, int], object] = lambda done, total: None,
) -> Path:
    """Writes a transformer in another form; `out` appears once it is complete.

    Args:
        source: folder, file or hub id of a transformer, or of a model that has one, in any form that is read.
        out: the folder (``"original"``, ``"diffusers"``) or file (``"file"``) to write, which must not exist.
        to: one of `FORMS`. A file has the original names, without prefix.
        dtype: one of `DTYPES`; None: as stored, quantised weights as bfloat16. Time, fps, modulation and norms keep
            what they are stored in, or become float32. ``"fp8_scaled"``: float8_e4m3fn with one scale per weight for
            the blocks' linear layers, all else as stored; for files only.
        loras: files and strengths, which are added in float32.
        shard_size: of a folder's files, in 10**9 bytes.
        progress: called with the bytes written so far, and in all.

    Raises:
        InputError: the source or a LoRA cannot be used, `out` exists or cannot be written, too little space.
        OSError: writing failed; nothing is left.
    """
    check_out(out, to, dtype)
    checkpoint = Checkpoint.open(Given(source, "source"), ("transformer",))
    check_files(checkpoint)
    weights = Weights(checkpoint.parts["transformer"], "transformer", checkpoint.model_id)
    with torch.device("meta"):
        model = WanModel(**checkpoint.transformer_config)
    compare(model, weights)
    weights.check_formats()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    targets = planned(weights, shapes, to, dtype, opened(loras, shapes))
    config = arguments_in_full(checkpoint.transformer_config)
    config = diffusers_config(config) if to == "diffusers" else original_config(config)
    total = sum(tensor.nbytes for target in targets for tensor in (target.written, target.scale) if tensor)
    if (free := shutil.disk_usage(out.absolute().parent).free) < total:
        raise InputError("out", out, f"needs {total / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")
    with appearing(out, to) as folder:
        done = 0
        for size in written(folder, weights, targets, config, to, int(shard_size * 1e9)):
            done += size
            progress(done, total)
    return out


def check_out(out: Path, to: str, dtype: str | None) -> None:
    """Raises an `InputError` if `out` cannot be written, or not in this form."""
    if dtype == SCALED and to != "file":
        raise InputError("dtype", dtype, "is for --to file, since no folder layout has scales")
    if os.path.lexists(out):
        raise InputError("out", out, "exists already; nothing is overwritten")
    if (to == "file") != (out.suffix == ".safetensors"):
        kind = "a file, whose name ends in .safetensors" if to == "file" else "a folder, not a .safetensors file"
        raise InputError("out", out, f"--to {to} writes {kind}")
    if not os.access(out.absolute().parent, os.W_OK | os.X_OK):
        raise InputError("out", out, "must be in an existing folder that can be written to")


def opened(loras: Sequence[tuple[Path, float]], shapes: dict) -> list[tuple[LoraFile, Report, float]]:
    """LoRAs with what of them fits the model, which is printed; those of strength 0 are checked and left out."""
    found = []
    for path, strength in loras:
        lora = LoraFile.open(path)
        report = lora.matched(shapes)
        say(report.line())
        if strength:
            found.append((lora, report, strength))
    return found


def planned(weights: Weights, shapes: dict, to: str, dtype: str | None, loras: list) -> list[Target]:
    """What to write, in the order of the source."""
    table = key_tables.TO_DIFFUSERS_TRANSFORMER if to == "diffusers" else []
    targets = []
    for name, source in weights.sources.items():
        ours = key_tables.renamed(name, weights.style.table)
        changes = tuple(lora for lora in loras if ours in lora[1].parameters)
        kind = stored_as(ours, source, dtype, bool(changes))
        called = key_tables.renamed(ours, table)
        scale = Planned(f"{called.removesuffix('.weight')}.scale_weight", (), "F32") if kind == DTYPES[SCALED] else None
        targets.append(Target(name, ours, Planned(called, shapes[ours], kind), scale, changes))
    return targets


def stored_as(ours: str, source: Source, dtype: str | None, changed: bool) -> str:
    """safetensors' name of the dtype that a parameter is written in."""
    if dtype == SCALED and key_tables.BLOCK_LINEAR.search(ours):
        return DTYPES[SCALED]
    dense = source.dtype if source.dtype in DENSE - {"F64"} and source.scale is None else None
    if key_tables.KEEP_FLOAT32.search(ours):
        return dense if dense and not changed and dtype != "float32" else "F32"
    if dtype in (None, SCALED):
        return dense or ("F32" if source.dtype == "F64" else "BF16")
    return DTYPES[dtype]


def written(
    folder: Path, weights: Weights, targets: list[Target], config: dict, to: str, shard_size: int
) -> Iterator[int]:
    """Writes all files of a form into a folder; yields the bytes of each tensor."""
    if to == "file":
        metadata = {"format": "pt", CONFIG_KEY: json.dumps(config)}
        yield from write_tensors(folder / SINGLE, as_planned(targets), values(weights, targets), metadata)
        return
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    by_name = {target.written.name: target for target in targets}
    shards = in_shards((target.written for target in sorted(targets, key=sorting)), shard_size)
    files = dict(zip(file_names(STEMS[to], len(shards)), shards, strict=True))
    for name, tensors in files.items():
        some = [by_name[tensor.name] for tensor in tensors]
        yield from write_tensors(folder / name, tensors, values(weights, some), {"format": "pt"})
    if len(files) > 1:
        write_index(folder, STEMS[to], files)


def as_planned(targets: list[Target]) -> list[Planned]:
    """The tensors of a single file: weights, scales, and the marker that tells ComfyUI of these."""
    scales = [target.scale for target in targets if target.scale]
    return [*(target.written for target in targets), *scales, *([SCALED_MARKER] if scales else [])]


def sorting(target: Target) -> str:
    """Sorts parameters block after block, as in published shards."""
    return re.sub(r"\d+", lambda match: match[0].rjust(6, "0"), target.ours)


def values(weights: Weights, targets: list[Target]) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of all that is written for some parameters."""
    if any(target.scale for target in targets):
        yield SCALED_MARKER.name, torch.empty(0, dtype=FP8)
    stored = weights.read([target.source for target in targets], MAPPED)
    for target, (name, tensor) in zip(targets, stored, strict=True):
        check_finite(name, tensor, weights, check_all=False)
        value, scale = value_of(target, tensor)
        del tensor
        if scale is not None:
            yield target.scale.name, scale
        yield target.written.name, value
        del value


def value_of(target: Target, stored: torch.Tensor | Quantized) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A tensor in the dtype that it is written in, and its scale if it has one."""
    wanted = torch_dtypes()[target.written.dtype]
    if target.scale is not None and not target.changes and (kept := as_scaled(stored)) is not None:
        return kept
    if isinstance(stored, Quantized):
        stored = stored.dequantize(torch.float32 if target.changes or target.scale else wanted)
    value = stored.reshape(target.written.shape)
    if target.changes:
        base = value.float()
        value = base.clone()
        for lora, report, strength in target.changes:
            value.add_(lora.delta(report.of(target.ours), base), alpha=strength)
        del base
    if target.scale is not None:
        return scaled(value)
    value = value.to(wanted)
    if wanted is torch.float16 and not value.isfinite().all():
        reason = f"{target.source} has numbers beyond its range of 65504; bfloat16 has them"
        raise InputError("dtype", "float16", reason)
    return value, None


def as_scaled(stored: torch.Tensor | Quantized) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A weight that is float8_e4m3fn already, and its one scale; None if it is stored otherwise."""
    if not isinstance(stored, Quantized) or stored.form != "float8_e4m3fn":
        return None
    if stored.scale is None:
        return stored.stored.view(FP8), torch.ones(())
    return (stored.stored.view(FP8), stored.scale.float().reshape(())) if stored.scale.numel() == 1 else None


def scaled(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A dense weight in float8_e4m3fn, whose largest number the scale makes the largest of the format."""
    largest = weight.abs().max().float()
    scale = largest / FP8_LARGEST if largest > 0 else torch.ones(())
    return (weight.float() / scale).to(FP8), scale


@contextmanager
def appearing(out: Path, to: str) -> Iterator[Path]:
    """Context manager with a new folder beside `out`, which then becomes `out`, or whose one file does.

    It is removed if the context raises.
    """
    folder = out.absolute().parent / f".{out.name}.{os.getpid()}.part"
    folder.mkdir()
    try:
        yield folder
        if to != "file":
            if os.path.lexists(out):  # made by another process meanwhile; a rename replaces empty folders
                raise FileExistsError(17, "exists already", str(out))
            folder.rename(out)
            return
        file = folder / SINGLE
        try:
            os.link(file, out)  # fails if the name exists, unlike a rename
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            file.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def arguments_in_full(config: dict) -> dict:
    """The arguments of `WanModel` with its defaults."""
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(WanModel).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return defaults | config
