"""One training loop for every stage: deterministic batches, EMA, atomic checkpoints, a log, several processes.

A batch is a function of (seed, step, rank), so a run that was stopped and resumed equals one that was not, and batches
can be drawn ahead by other processes.
"""

import copy
import json
import math
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, Dataset

Figures = dict[str, torch.Tensor | float]


@dataclass(frozen=True)
class Task:
    """What a stage learns.

    Attributes:
        draw: (step, generator of this rank's batch) -> batch, on the CPU and from the generator alone.
        loss: batch -> loss, and what to log beside it.
    """

    draw: Callable[[int, np.random.Generator], Any]
    loss: Callable[[Any], tuple[torch.Tensor, Figures]]

    def __call__(self, step: int, draws: np.random.Generator) -> tuple[torch.Tensor, Figures]:
        return self.loss(self.draw(step, draws))


class Results(Dataset):
    """A function's results, by its argument."""

    def __init__(self, function: Callable[[Any], Any]):
        self.function = function

    def __getitem__(self, argument: Any) -> Any:
        return self.function(argument)


def ahead(function: Callable[[Any], Any], arguments: Sequence, workers: int) -> Iterable[Any]:
    """A function's results in the order of its arguments, computed ahead by `workers` processes, or here by 0."""
    return DataLoader(
        Results(function),
        sampler=arguments,
        batch_size=None,
        collate_fn=lambda result: result,
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # what the function reads is shared, not copied
        generator=torch.Generator(),
        worker_init_fn=lambda worker: end_with_parent(),
    )


def end_with_parent() -> None:
    """From now on this process ends when the one that started it has ended, however: else it would go on.

    The SIGINT that torch has its processes sent then is not enough, since what a script starts in the background
    ignores that; and who draws batches ahead would wait for ever to hand them over, with the lock of the stage.
    """

    def follow() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@dataclass(frozen=True)
class Recipe:
    """How a stage is trained.

    Attributes:
        steps: updates in all; the learning rate falls to 0 over the last `decay` of them.
        muon: learning rate of weights with two and more dimensions (Muon), 0: AdamW takes them too.
        adamw: learning rate of all others.
        warmup: steps until the full learning rate.
        ema: share of the average that stays at every step; early on less, so that the start is forgotten.
        clip: largest norm of the gradient.
    """

    steps: int
    muon: float
    adamw: float
    decay: float = 0.45
    warmup: int = 20
    ema: float = 0.997
    clip: float = 1.0
    seed: int = 0

    def rate(self, step: int) -> float:
        """Share of the learning rates at a step, 0 to 1."""
        falling = max(1.0, self.decay * self.steps)
        return min(1.0, (step + 1) / self.warmup, (self.steps - step) / falling)


class Muon(torch.optim.Muon if hasattr(torch.optim, "Muon") else torch.optim.Optimizer):
    """torch's Muon without weight decay, in which all matrices of one shape are made orthogonal together.

    One by one, a hundred small matrices are two thousand launches a step: more than all else of it on a GPU.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            params, grads, momenta = [], [], []
            self._init_group(group, params, grads, momenta)
            torch._foreach_lerp_(momenta, grads, 1 - group["momentum"])
            updates = torch._foreach_lerp(grads, momenta, group["momentum"])  # Nesterov's
            shapes = [p.shape for p in params]
            for shape in dict.fromkeys(shapes):
                chosen = [i for i, other in enumerate(shapes) if other == shape]
                update = orthogonal(torch.stack([updates[i] for i in chosen]), group["ns_coefficients"], group["eps"])
                rate = 0.2 * math.sqrt(max(shape)) * group["lr"]  # the RMS of AdamW's updates (Liu et al. 2025)
                torch._foreach_add_([params[i] for i in chosen], list(update.float().unbind()), alpha=-rate)


def orthogonal(x: torch.Tensor, coefficients: tuple[float, float, float], eps: float, steps: int = 5) -> torch.Tensor:
    """About the orthogonal matrix next to each of x ``[N, rows, columns]``: Newton-Schulz iterations in bfloat16."""
    a, b, c = coefficients
    wide = x.shape[1] <= x.shape[2]
    x = (x if wide else x.mT).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Optimizers:
    """Muon (Jordan et al. 2024) for matrices and convolutions, AdamW for the rest.

    torch's Muon takes matrices only; a convolution's weights are handed to it as one, ``[out, in * kernel]``, that
    shares their memory.
    """

    def __init__(self, module: nn.Module, recipe: Recipe):
        trained = [p for p in module.parameters() if p.requires_grad]
        tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}  # rows, not a map

        def is_map(p: nn.Parameter) -> bool:
            return p.ndim >= 2 and min(p.shape[0], p[0].numel()) > 1 and id(p) not in tables

        large = [p for p in trained if is_map(p)] if recipe.muon else []
        chosen = {id(p) for p in large}
        small = [p for p in trained if id(p) not in chosen]
        self.large = [(p, nn.Parameter(p.data.view(len(p), -1))) for p in large]
        self.parts: list[tuple[torch.optim.Optimizer, float]] = []
        if large:
            matrices = [matrix for _, matrix in self.large]
            self.parts.append((Muon(matrices, lr=recipe.muon), recipe.muon))
        if small:
            adamw = torch.optim.AdamW(small, lr=recipe.adamw, betas=(0.9, 0.99), weight_decay=0.0)
            self.parts.append((adamw, recipe.adamw))

    def step(self, rate: float) -> None:
        for weight, matrix in self.large:
            matrix.grad = None if weight.grad is None else weight.grad.reshape(matrix.shape)
        for optimizer, full in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = full * rate
            optimizer.step()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer, _ in self.parts]

    def load_state_dict(self, states: list[dict]) -> None:
        for (optimizer, _), state in zip(self.parts, states, strict=True):
            optimizer.load_state_dict(state)


class Average:
    """Exponential moving average of a module's trained parameters."""

    def __init__(self, module: nn.Module, keep: float):
        self.keep, self.updates = keep, 0
        self.values = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        keep = min(self.keep, (1 + self.updates) / (10 + self.updates))
        parameters = dict(module.named_parameters())
        torch._foreach_lerp_([self.values[name] for name in parameters], list(parameters.values()), 1 - keep)


def save(path: Path, content: object) -> None:
    """Writes beside the final name first, so that a stop never leaves half a file under it."""
    part = path.with_suffix(".part")
    torch.save(content, part)
    os.replace(part, path)


def barrier() -> None:
    """Waits for all processes, if there are several."""
    if dist.is_initialized():
        dist.barrier()


def average_gradients(module: nn.Module) -> None:
    """The mean over all processes; with one, nothing to do."""
    if not dist.is_initialized():
        return
    # A parameter that this rank's batch did not use may have been used elsewhere.
    trained = [p for p in module.parameters() if p.requires_grad]
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in trained]
    for p, grad in zip(trained, grads, strict=True):
        p.grad = grad
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, mean in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def fit(
    module: nn.Module,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    workers: int = 0,
    minutes: float = math.inf,
    every: float = 120.0,
    judge: Callable[[nn.Module], dict[str, float]] | None = None,
    log_every: int = 20,
) -> bool:
    """Trains until `recipe.steps`, from the checkpoint in `folder` if there is one; then the module gets the average.

    Args:
        task: its loss closes over `module`.
        workers: processes that draw batches ahead; 0: they are drawn in between.
        folder: gets ``checkpoint.pt`` (resume) and ``log.jsonl``.
        minutes: stops by itself after so long, with a checkpoint.
        every: seconds between checkpoints.
        judge: figures of the averaged model, taken with each checkpoint.

    Returns:
        whether all steps are done.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "checkpoint.pt"
    optimizers, average, first = Optimizers(module, recipe), Average(module, recipe.ema), 0
    if path.exists():
        state = torch.load(path, map_location="cpu", weights_only=False)
        module.load_state_dict(state["module"])
        optimizers.load_state_dict(state["optimizers"])
        average.updates, first = state["updates"], state["step"]
        average.values = {name: value.to(average.values[name].device) for name, value in state["average"].items()}
    began = saved = time.monotonic()
    seen: dict[str, list[torch.Tensor | float]] = {}

    def checkpoint(step: int) -> None:
        if rank:
            return
        state = {"module": module.state_dict(), "optimizers": optimizers.state_dict(), "average": average.values}
        save(path, state | {"updates": average.updates, "step": step, "seconds": time.monotonic() - began})
        if judge is not None:
            note(folder, {"step": step} | judge(averaged(module, average)))

    def draw(step: int) -> Any:
        return task.draw(step, np.random.default_rng((recipe.seed, step, rank)))

    for step, batch in enumerate(ahead(draw, range(first, recipe.steps), workers), first):
        value, figures = task.loss(batch)
        module.zero_grad(set_to_none=True)
        value.backward()
        average_gradients(module)
        norm = nn.utils.clip_grad_norm_(module.parameters(), recipe.clip)
        optimizers.step(recipe.rate(step))
        average.update(module)
        if rank == 0:
            for name, figure in (figures | {"loss": value.detach(), "norm": norm}).items():
                seen.setdefault(name, []).append(figure)  # read when it is written: reading is to wait for a GPU
        if rank == 0 and (step + 1) % log_every == 0:
            means = {name: float(np.mean([float(value) for value in values])) for name, values in seen.items()}
            note(folder, {"step": step + 1, "seconds": time.monotonic() - began} | means)
            print(f"step {step + 1}/{recipe.steps} " + " ".join(f"{k} {v:.4f}" for k, v in means.items()), flush=True)
            seen = {}
        stop = torch.tensor(
            [time.monotonic() - began > 60 * minutes, time.monotonic() - saved > every], dtype=torch.int
        )
        if world > 1:
            dist.broadcast(stop, 0)
        if stop[1]:
            checkpoint(step + 1)
            saved = time.monotonic()
        if stop[0]:
            checkpoint(step + 1)
            return False
    if first < recipe.steps:
        checkpoint(recipe.steps)
    barrier()  # the others read what rank 0 has written
    module.load_state_dict(average_of(folder), strict=False)
    return True


def averaged(module: nn.Module, average: Average) -> nn.Module:
    """A copy of the module with the averaged parameters, for judging."""
    twin = copy.deepcopy(module).eval().requires_grad_(False)
    twin.load_state_dict(average.values, strict=False)
    return twin


def average_of(folder: Path) -> dict[str, torch.Tensor]:
    """The averaged parameters of a stage's checkpoint."""
    return torch.load(folder / "checkpoint.pt", map_location="cpu", weights_only=False)["average"]


def note(folder: Path, figures: dict[str, float]) -> None:
    with (folder / "log.jsonl").open("a") as log:
        log.write(json.dumps({name: round(value, 6) for name, value in figures.items()}) + "\n")
