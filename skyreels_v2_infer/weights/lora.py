"""LoRAs on a model: applied, and applied again with other strengths.

Weights that are dense get the changes added, computed in float32. To layers whose weights are quantised, or to all
linear layers on request, the changes are added in the forward pass. Either way a strength of 0 leaves every bit of the
weights as it was, and of the output, but for float32 layers on a CPU to whose output changes are added: these are no
longer computed as in `modules.dense`.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32
from skyreels_v2_infer.weights.lora_file import LoraFile
from skyreels_v2_infer.weights.lora_names import Change, Shape

DENSE = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # what a change can be added to


class Added(nn.Module):
    """A child of a linear layer that adds changes of its weight to its output.

    Its tensors are buffers, so that they go where the layer goes, and are not part of the state dict. Setting strengths
    writes into them, so that a compiled or offloaded layer stays as it is.

    Args:
        terms: of each change a kind and its factors, float32, the last of which carries the strength: ``"product"``
            down ``[r, in]`` and up ``[out, r]``; ``"kron"`` w2 and w1; ``"full"`` the change itself ``[out, in]``.
        dtype: what they are kept and computed in.
    """

    def __init__(self, terms: Sequence[tuple], dtype: torch.dtype):
        super().__init__()
        self.active = True
        self.terms = []  # kind, names of the buffers
        for i, (kind, *factors) in enumerate(terms):
            names = [f"term_{i}_{j}" for j in range(len(factors))]
            for name, factor in zip(names, factors, strict=True):
                self.register_buffer(name, factor.to(dtype), persistent=False)
            self.terms.append((kind, *names))

    def set_strengths(self, strengths: Sequence[float], unscaled: Callable[[int], torch.Tensor]) -> None:
        """Scales every term.

        Args:
            unscaled: the last factor of a term at strength 1.
        """
        self.active = any(strengths)
        if self.active:
            for i, strength in enumerate(strengths):
                last = getattr(self, self.terms[i][-1])
                last.copy_(unscaled(i).to(last.device) * strength)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """x ``[..., in]``, the layer's input; y ``[..., out]``, its output -> y with the changes added."""
        if not self.active:
            return y
        for kind, *names in self.terms:
            factors = [getattr(self, name) for name in names]
            change = CHANGES_OF_OUTPUT[kind](x.to(factors[0].dtype), *factors)
            y = y + change.to(y.dtype)
        return y


def through_kron(x: torch.Tensor, w2: torch.Tensor, w1: torch.Tensor) -> torch.Tensor:
    """``kron(w1, w2) x``: with x as a matrix X, the rows of ``w1 X w2^T``."""
    return (w1 @ F.linear(x.unflatten(-1, (w1.shape[1], -1)), w2)).flatten(-2)


CHANGES_OF_OUTPUT = {
    "product": lambda x, down, up: F.linear(F.linear(x, down), up),
    "kron": through_kron,
    "full": F.linear,
}


def add_in_forward(layer: nn.Module, added: Added) -> Callable[[], None]:
    """Makes a layer add to its output; returns what undoes it."""
    layer.add_module("lora", added)
    hook = layer.register_forward_hook(lambda module, args, output: module.lora(args[0], output))

    def undo() -> None:
        hook.remove()
        del layer.lora

    return undo


# -------------------------------------------------------------------------------------------------------- on a model


def is_linear(module: nn.Module) -> bool:
    return isinstance(getattr(module, "in_features", None), int) and isinstance(
        getattr(module, "out_features", None), int
    )


def targets(model: nn.Module) -> tuple[dict[str, Shape], frozenset[str]]:
    """(names and shapes of what a LoRA can change, those of them that are not dense).

    The weight of a linear layer that is not dense has the shape that it stands for.
    """
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items() if tensor.dtype in DENSE}
    packed = set()
    for name, module in model.named_modules():
        weight = f"{name}.weight"
        if is_linear(module) and tuple(shapes.get(weight, ())) != (module.out_features, module.in_features):
            shapes[weight] = (module.out_features, module.in_features)
            packed.add(weight)
    return shapes, frozenset(packed)


class Applied:
    """LoRAs on a model; `apply` makes it.

    Attributes:
        strengths: of each LoRA, as last set; None before, and after a change that did not finish.
        reports: of each LoRA.
    """

    def __init__(self, model: nn.Module, loras: Sequence[LoraFile], merge: bool, changeable: bool):
        self.model, self.loras, self.merge, self.changeable = model, tuple(loras), merge, changeable
        shapes, self._packed = targets(model)
        self.reports = [lora.matched(shapes, self._packed) for lora in self.loras]
        self.strengths: list[float] | None = None
        self._is_changed = False  # the weights may not be the original ones
        self._originals: dict[str, torch.Tensor] = {}
        self._added: dict[str, tuple[Added, Callable[[], None]]] = {}

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Changes the model from its original weights to the given strengths.

        Keys and values of prompts (`WanModel.prepare_context`) that were made before are of the former weights.

        Raises:
            ValueError: a strength is not finite, or they are set a second time though not `changeable`.
        """
        if len(strengths) != len(self.loras) or not all(map(math.isfinite, strengths)):
            raise ValueError(f"strengths {list(strengths)}: must be {len(self.loras)} finite numbers")
        strengths = [float(strength) for strength in strengths]
        if strengths == self.strengths:
            return
        if not self.changeable and self._is_changed:
            raise ValueError("strengths: apply with changeable=True to set them again")
        self._is_changed |= any(strengths)
        self.strengths = None
        names = dict.fromkeys(name for report in self.reports for name in report.parameters)
        with torch.no_grad():
            for name in names:
                changes = [report.of(name) for report in self.reports]
                if self._in_forward(name, changes):
                    self._set_added(name, changes, strengths)
                else:
                    self._set_merged(name, changes, strengths)
        self.strengths = strengths

    def remove(self) -> None:
        """The model as it was before `apply`, bit for bit.

        Raises:
            ValueError: changes were merged and not `changeable`, so that the originals are gone.
        """
        self.set_strengths([0.0] * len(self.loras))
        for _, undo in self._added.values():
            undo()
        self._added.clear()
        self._originals.clear()

    def _in_forward(self, name: str, changes: list[list[Change]]) -> bool:
        """Whether a parameter's changes are added in the forward pass, not merged."""
        if name in self._packed:
            return True
        layer, _, leaf = name.rpartition(".")
        needs_base = any(change.needs_base for some in changes for change in some)
        return not self.merge and leaf == "weight" and is_linear(self.model.get_submodule(layer)) and not needs_base

    def _set_merged(self, name: str, changes: list[list[Change]], strengths: list[float]) -> None:
        layer, _, leaf = name.rpartition(".")
        parameter = getattr(self.model.get_submodule(layer), leaf)
        present = [(lora, some, s) for lora, some, s in zip(self.loras, changes, strengths, strict=True) if some and s]
        original = self._originals.get(name)
        if not present:
            if original is not None:
                parameter.copy_(original)
            return
        if original is None and self.changeable:
            original = self._originals[name] = parameter.detach().to("cpu", copy=True)
        base = (parameter if original is None else original.to(parameter.device)).float()
        total = base.clone()
        for lora, some, strength in present:
            total.add_(lora.delta(some, base, parameter.device), alpha=strength)
        parameter.copy_(total)

    def _set_added(self, name: str, changes: list[list[Change]], strengths: list[float]) -> None:
        layer = self.model.get_submodule(name.rpartition(".")[0])
        each = [
            (lora, change, strength)
            for lora, some, strength in zip(self.loras, changes, strengths, strict=True)
            for change in some
            if self.changeable or strength
        ]
        if not each:
            return
        if name not in self._added:
            dtype = torch.float32 if KEEP_FLOAT32.search(name) else self.model.dtype
            device = next((tensor.device for tensor in [*layer.parameters(), *layer.buffers()]), self.model.device)
            added = Added([lora.terms(change) for lora, change, _ in each], dtype).to(device)
            self._added[name] = added, add_in_forward(layer, added)
        added, _ = self._added[name]
        added.set_strengths([strength for *_, strength in each], lambda i: each[i][0].terms(each[i][1])[-1])


def apply(
    model: nn.Module, loras: Sequence[tuple[LoraFile, float]], *, merge: bool = True, changeable: bool = False
) -> Applied:
    """Applies LoRAs, whose changes add up, to a model with loaded weights. Before it is compiled or offloaded.

    Args:
        loras: files with their strengths, any finite number.
        merge: False: changes of linear layers are added in the forward pass even where weights are dense.
        changeable: whether strengths will be set again; costs a copy of every merged parameter in the host's memory.

    Raises:
        InputError: named `lora`; a file does not fit the model.
    """
    applied = Applied(model, [lora for lora, _ in loras], merge, changeable)
    applied.set_strengths([strength for _, strength in loras])
    return applied


def identity(loras: Sequence[tuple[Path, float]], fingerprint: Callable[[Path], str]) -> list[dict]:
    """What of LoRAs makes a run what it is: content and strength of each file, in order.

    Args:
        fingerprint: of a file's content.
    """
    return [{"file": path.name, "fingerprint": fingerprint(path), "strength": float(s)} for path, s in loras]
