"""LoRA files and the like: opened, and the changes that they make to weights computed, in float32.

With W the weight: a product of B (up) and A (down) of rank r adds ``alpha/r B A``, or ``B A`` without an alpha; LoHa
``alpha/r (w1_a w1_b) * (w2_a w2_b)``, elementwise; LoKr ``kron(w1, w2)``, times alpha/r if a factor is decomposed. With
DoRA, ``V = W + change`` becomes ``dora_scale / |V| V``, |V| per row or per column.
"""

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.weights.headers import check_archive, check_number, is_dict_of_tensors, refusing
from skyreels_v2_infer.weights.layouts import Given
from skyreels_v2_infer.weights.lora_names import Change, Report, Shapes, match

ARCHIVES = (".pth", ".pt", ".bin", ".ckpt")
FOLDER_FILES = ("adapter_model.safetensors", "pytorch_lora_weights.safetensors")  # PEFT's and diffusers' names


class LoraFile:
    """One file of changes to a model's weights. Tensors are read when they are asked for.

    Attributes:
        path: of the file.
        shapes: of its tensors, by their names in the file.
        config: of PEFT, which may have alphas that the tensors do not; empty where the file comes without.
    """

    def __init__(self, path: Path, shapes: Shapes, read: Callable[[str], torch.Tensor], config: Mapping):
        self.path, self.shapes, self._read, self.config = path, shapes, read, config

    @classmethod
    def open(cls, path: str | Path) -> "LoraFile":
        """A ``.safetensors`` file, a ``.pth`` file (opened so that no code in it can run), or a folder with one.

        Raises:
            InputError: named `lora`; there is no such file, or it is cut, damaged, or of another kind.
        """
        file = Path(path).expanduser()
        if file.is_dir():
            found = [file / name for name in FOLDER_FILES if (file / name).is_file()]
            if not found:
                raise InputError("lora", path, f"is a folder without {' or '.join(FOLDER_FILES)}")
            file = found[0]
        if not file.is_file():
            raise InputError("lora", path, "no such file")
        if file.suffix == ".safetensors":
            return cls._open_safetensors(file)
        if file.suffix in ARCHIVES:
            return cls._open_archive(file)
        raise InputError("lora", path, f"must be .safetensors or {', '.join(ARCHIVES)}")

    @classmethod
    def _open_safetensors(cls, file: Path) -> "LoraFile":
        with refusing(Given(file, "lora"), "is no whole safetensors file"):
            handle = safe_open(file, framework="pt")  # which compares the header with the file's length
            check_number(len(handle.keys()))
            shapes = {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        return cls(file, shapes, handle.get_tensor, peft_config(file, handle.metadata() or {}))

    @classmethod
    def _open_archive(cls, file: Path) -> "LoraFile":
        check_archive(file, Given(file, "lora"))
        try:
            tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a damaged pickle can raise anything
            raise InputError("lora", file, f"was refused: {first_line(error, 120)}") from error
        if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
            tensors = tensors["state_dict"]
        if not is_dict_of_tensors(tensors):
            raise InputError("lora", file, "must hold a dict of tensors")
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        return cls(file, shapes, tensors.__getitem__, peft_config(file, {}))

    def matched(self, parameters: Shapes, packed: frozenset[str] = frozenset()) -> Report:
        """What of the file fits a model, see `match`; needs no weights but of which shapes they are.

        Raises:
            InputError: named `lora`; nothing fits, or the file belongs to another model or is no LoRA.
        """
        return match(self.shapes, parameters, self.path, packed)

    def delta(
        self, changes: Sequence[Change], base: torch.Tensor | None = None, device: str | torch.device = "cpu"
    ) -> torch.Tensor:
        """The sum of changes to one parameter at strength 1: float32, of the parameter's shape.

        Args:
            changes: what the report has of the parameter, ``report.of(name)``.
            base: the parameter without any change; needed where `Change.needs_base`.
        """
        return sum(self._delta(change, base, device) for change in changes)

    def _delta(self, change: Change, base: torch.Tensor | None, device) -> torch.Tensor:
        part = self._parts(change, device)
        if change.kind == "set":
            return part["set"].view(change.shape) - base.to(device, torch.float32)
        value = VALUES[change.kind](part) * self._scale(change)
        value = spread(value, change)
        if "dora" not in part:
            return value
        base = base.to(device, torch.float32)
        changed = base + value
        magnitude, axis = part["dora"].flatten(), 0 if part["dora"].shape[0] == change.shape[0] else 1
        norm = torch.linalg.vector_norm(changed.transpose(0, axis).flatten(1), dim=1)
        ratio = (magnitude / norm).view([-1 if i == axis else 1 for i in range(changed.ndim)])
        return ratio * changed - base

    def terms(self, change: Change, device: str | torch.device = "cpu") -> tuple[torch.Tensor, ...]:
        """A change to a linear layer's weight, in the factors that `Added` takes, as small as they come."""
        part, scale = self._parts(change, device), self._scale(change)
        if change.kind == "product" and "mid" not in part:
            return "product", part["down"].flatten(1), part["up"].flatten(1) * scale
        if change.kind == "kron":
            w1, w2 = kron_factors(part)
            return "kron", w2.flatten(1), w1 * scale
        if change.kind == "hada" and "hada_t1" not in part:
            b, d = part["hada_w1_b"].flatten(1), part["hada_w2_b"].flatten(1)
            down = (b.unsqueeze(1) * d).flatten(0, 1)
            up = (part["hada_w1_a"].unsqueeze(2) * part["hada_w2_a"].unsqueeze(1)).flatten(1)
            if down.numel() + up.numel() < math.prod(change.shape):
                return "product", down, up * scale
        return "full", self._delta(change, None, device)

    def _parts(self, change: Change, device) -> dict[str, torch.Tensor]:
        parts = {}
        for role, name in change.tensors.items():
            tensor = self._read(name)
            if role != "alpha" and not tensor.dtype.is_floating_point:
                raise InputError("lora", self.path, f"{name} holds integers ({tensor.dtype}); floats are needed")
            parts[role] = tensor.to(device).float()
            if not parts[role].isfinite().all():
                raise InputError("lora", self.path, f"is damaged: {name} has NaN or infinity in it")
        return parts

    def _scale(self, change: Change) -> float:
        """alpha / rank; 1 where nothing is decomposed or no alpha is given (or 0, which says nothing)."""
        if change.rank is None:
            return 1.0
        if "alpha" in change.tensors:
            alpha = self._read(change.tensors["alpha"])
            if alpha.numel() != 1:
                raise InputError("lora", self.path, f"{change.tensors['alpha']} must be one number")
            alpha = float(alpha)
            return alpha / change.rank if alpha else 1.0
        alpha = alpha_of(self.config, change.module)
        if not alpha:
            return 1.0
        return alpha / (math.sqrt(change.rank) if self.config.get("use_rslora") else change.rank)


def peft_config(file: Path, metadata: Mapping[str, str]) -> dict:
    """PEFT's configuration: in the metadata, as diffusers writes it, or in the file beside, as PEFT does."""
    try:
        if "lora_adapter_metadata" in metadata:
            config = json.loads(metadata["lora_adapter_metadata"])
            return checked({name.removeprefix("transformer."): value for name, value in config.items()})
        beside = file.with_name("adapter_config.json")
        if file.stem == "adapter_model" and beside.is_file():
            return checked(dict(json.loads(read_small(beside))))
    except (OSError, ValueError, AttributeError, TypeError, OverflowError, RecursionError) as error:
        raise InputError("lora", file, f"its configuration cannot be read: {first_line(error, 120)}") from None
    return {}


def checked(config: dict) -> dict:
    """PEFT's configuration if what is used of it can be used; ValueError otherwise."""
    special = config.get("alpha_pattern") or {}
    for alpha in (config.get("lora_alpha") or 0, *special.values()):
        if not isinstance(alpha, int | float) or not math.isfinite(float(alpha)):
            raise ValueError(f"alpha {str(alpha)[:40]} is no finite number")
    for pattern in special:
        # Any other regular expression could take for ever.
        if not re.fullmatch(r"\^?(\w|-|\\?\.)+", pattern):
            raise ValueError(f"alpha_pattern {pattern[:40]!r} is not the name of a module")
    return config


def alpha_of(config: Mapping, module: str) -> float | None:
    """A module's alpha by PEFT's configuration, whose ``alpha_pattern`` names modules by the end of their names.

    A name that begins with ``^`` is a whole one.
    """
    for pattern, alpha in (config.get("alpha_pattern") or {}).items():
        name = pattern.replace("\\.", ".")
        if module == name.removeprefix("^") or module.endswith(f".{name}"):
            return alpha
    return config.get("lora_alpha")


# ------------------------------------------------------------------------------------------------------ arithmetic


def product_value(part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    up, down = part["up"].flatten(1), part["down"].flatten(1)
    if "mid" in part:
        return torch.einsum("or,rs...,si->oi...", up, part["mid"], down)
    return up @ down


def tucker(core: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """core ``[r, s, ...]``, a ``[r, out]``, b ``[s, in]`` -> ``[out, in, ...]``."""
    return torch.einsum("rs...,ro,si->oi...", core, a, b)


def hada_value(part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    a, b, c, d = (part[f"hada_{name}"] for name in ("w1_a", "w1_b", "w2_a", "w2_b"))
    if "hada_t1" in part:
        return tucker(part["hada_t1"], a, b) * tucker(part["hada_t2"], c, d)
    return (a @ b.flatten(1)) * (c @ d.flatten(1))


def kron_factors(part: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    factors = []
    for side in ("w1", "w2"):
        if f"lokr_{side}" in part:
            factors.append(part[f"lokr_{side}"])
            continue
        a, b = part[f"lokr_{side}_a"], part[f"lokr_{side}_b"]
        if side == "w2" and "lokr_t2" in part:
            factors.append(tucker(part["lokr_t2"], a, b))
        else:
            factors.append((a @ b.flatten(1)).view(len(a), *b.shape[1:]))
    return factors[0], factors[1]


def kron_value(part: Mapping[str, torch.Tensor]) -> torch.Tensor:
    w1, w2 = kron_factors(part)
    return torch.kron(w1[(..., *[None] * (w2.ndim - 2))], w2)


# Kind of a change -> what makes its value of its tensors, by role.
VALUES = {
    "product": product_value,
    "hada": hada_value,
    "kron": kron_value,
    "bias": lambda part: part["up_bias"],
    "diff": lambda part: next(iter(part.values())),
}


def spread(value: torch.Tensor, change: Change) -> torch.Tensor:
    """A value in the parameter's shape: zeros for input channels behind those that it changes."""
    if change.channels is None:
        return value.reshape(change.shape)
    out, channels, *kernel = change.shape
    value = value.reshape(out, change.channels, *kernel)
    return torch.cat([value, value.new_zeros(out, channels - change.channels, *kernel)], dim=1)
