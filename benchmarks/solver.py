"""A row of diffusion forcing in the solver, each frame at its own step, beside diffusers' solver frame by frame."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import torch

from benchmarks import peer
from benchmarks.measure import Run, alternate, relative_error
from benchmarks.table import Row, row
from skyreels_v2_infer.scheduler import FlowUniPCMultistepScheduler, flow_sigmas, flow_timesteps

LATENTS = (25, 68, 120)  # 97 frames at 540P, whatever the size of the model
LEAST_RUNS = 10


def ours(steps: int, start: torch.Tensor, velocity: torch.Tensor) -> Callable[[], torch.Tensor]:
    """Each call is the next row: every frame one step behind the frame before it."""
    solver, x, rows = FlowUniPCMultistepScheduler(), start.clone(), itertools.count()
    solver.set_timesteps(steps, shift=8.0)

    def advance() -> torch.Tensor:
        at = next(rows) - np.arange(start.shape[2])  # below 0: not begun
        return solver.step_frames(velocity, at.clip(0), x, at >= 0)

    return advance


def theirs(steps: int, start: torch.Tensor, velocity: torch.Tensor) -> Callable[[], torch.Tensor]:
    """The same with a solver of diffusers for each frame."""
    from diffusers import UniPCMultistepScheduler

    frames, rows = start.shape[2], itertools.count(1)
    sigmas = flow_sigmas(steps, 8.0)
    solvers = [UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True) for _ in range(frames)]
    for solver in solvers:
        solver.set_timesteps(steps, device=start.device)
        solver.sigmas, solver.timesteps = torch.from_numpy(sigmas), torch.from_numpy(flow_timesteps(sigmas))
        solver.set_begin_index(0)
    y = [start[:, :, f].clone() for f in range(frames)]

    def advance() -> torch.Tensor:
        for f, solver in enumerate(solvers[: next(rows)]):
            y[f] = solver.step(velocity[:, :, f], 0, y[f], return_dict=False)[0]
        return torch.stack(y, dim=2)

    return advance


def rows(run: Run) -> Iterator[Row]:
    frames, runs = LATENTS[0], max(run.runs, LEAST_RUNS)
    steps = frames + runs + 1
    start, velocity = (run.random(1, 16, *LATENTS, dtype=torch.float32, seed=i) for i in range(2))
    works = {"ours": ours(steps, start, velocity)}
    if peer.installed():
        works["diffusers"] = theirs(steps, start, velocity)
    for _ in range(frames - 1):  # until all frames have begun
        for work in works.values():
            work()
    results = [work().clone() for work in works.values()]
    times = alternate(works, run.device, runs)
    both = len(works) == 2
    more = {"diffusers_/_it": times["diffusers"] / times["ours"], "error": relative_error(*results)} if both else {}
    for name, took in times.items():
        yield row(f"a row of {frames} frames, {name}", took, "ms", **(more if name == "ours" else {}))
