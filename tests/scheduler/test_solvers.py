"""Every solver against diffusers, against frames alone, and against a flow whose solution is known."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler
from peers import EXACT, apart

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.scheduler import (
    SOLVERS,
    FlowUniPCMultistepScheduler,
    ad_schedule,
    check_sigmas,
    flow_sigmas,
    flow_timesteps,
)

FOUR_STEPS = [1.0, 0.9375, 0.8333, 0.625]
LEVELS = {
    "1 step": flow_sigmas(1, 5.0),
    "4 steps": check_sigmas(FOUR_STEPS),
    "30 steps": flow_sigmas(30, 8.0),
    "150 steps": flow_sigmas(150, 8.0),
}


def velocity(x: torch.Tensor, sigma) -> torch.Tensor:
    """A field that is not linear, mixes the channels of a frame and depends on the noise level."""
    mix = torch.linspace(-1, 1, x.shape[1] ** 2).view(x.shape[1], -1).sin()
    return torch.einsum("bc...,cd->bd...", x, mix).tanh() + sigma * x


def noise_of(row: int, like: torch.Tensor) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(1000 + int(row)))


def solve(name: str, sigmas: np.ndarray, x: torch.Tensor, field=velocity) -> torch.Tensor:
    """All frames together from the first level to 0."""
    solver, x = SOLVERS[name](sigmas), x.clone()
    for k in range(len(sigmas) - 1):
        everything = np.ones(x.shape[2], dtype=bool)
        v = field(x, float(sigmas[k]))
        solver.step_frames(v, np.full(x.shape[2], k), x, everything, noise_of(k, x))
    return x


def start(*shape: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


# Against diffusers


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", ["euler", "lcm"])
def test_trajectory_equals_diffusers(name, levels, monkeypatch):
    sigmas = LEVELS[levels]
    peer = {"euler": FlowMatchEulerDiscreteScheduler, "lcm": FlowMatchLCMScheduler}[name]()
    peer.set_timesteps(sigmas=sigmas[:-1].tolist())
    assert torch.equal(peer.sigmas, torch.from_numpy(sigmas))
    ours, x, rows = SOLVERS[name](sigmas), start(2, 4, 3, 5, 6), iter(range(len(sigmas)))
    y = x.clone()
    monkeypatch.setattr(
        "diffusers.schedulers.scheduling_flow_match_lcm.randn_tensor", lambda *_, **__: noise_of(next(rows), y)
    )
    peer.set_begin_index(0)
    for k, t in enumerate(peer.timesteps):
        y = peer.step(velocity(y, sigmas[k]), t, y, return_dict=False)[0]
        v = velocity(x, sigmas[k])
        out = ours.step_frames(v, np.full(3, k), x, np.ones(3, dtype=bool), noise_of(k, x))
        assert out is x
        assert apart(x, y) <= EXACT


def test_the_published_class_is_unipc_bit_for_bit():
    sigmas, published, x = flow_sigmas(12, 8.0), FlowUniPCMultistepScheduler(), start(1, 4, 3, 5, 6)
    published.set_timesteps(12, shift=8.0)
    ours, y, z = SOLVERS["unipc"](sigmas), x.clone(), x.clone()
    frames = FlowUniPCMultistepScheduler()
    frames.set_timesteps(12, shift=8.0)
    for k, t in enumerate(published.timesteps):
        row = np.full(3, k), np.ones(3, dtype=bool)
        ours.step_frames(velocity(x, sigmas[k]), row[0], x, row[1])
        y = published.step(velocity(y, sigmas[k]), t, y).prev_sample
        frames.step_frames(velocity(z, sigmas[k]), row[0], z, row[1])
        assert torch.equal(x, y)
        assert torch.equal(x, z)


# Frames at their own steps


@pytest.mark.parametrize("levels", ["1 step", "4 steps", "30 steps"])
@pytest.mark.parametrize("ar_step", [0, 1, 5])
@pytest.mark.parametrize("name", SOLVERS)
def test_frames_at_their_own_steps_equal_frames_alone(name, ar_step, levels):
    """Held frames keep their bits, and what lies behind the last frame to update has no part in it."""
    sigmas, frames = LEVELS[levels], 7
    held = np.array([1, 0, 0, 0, 0, 0, 1], dtype=bool)
    rows = ad_schedule(frames, flow_timesteps(sigmas), ar_step, held, causal_block_size=2)
    begun = start(2, 4, frames, 3, 3)
    solver, x = SOLVERS[name](sigmas), begun.clone()
    for row, reach in enumerate(rows.reach(2)):
        sigma = torch.from_numpy(sigmas[rows.steps[row, :reach]]).view(1, 1, -1, 1, 1)
        v = velocity(x[:, :, :reach], sigma)
        x = solver.step_frames(v, rows.steps[row], x, rows.update[row], noise_of(row, begun))
    for f in range(frames):
        alone, y = SOLVERS[name](sigmas), begun[:, :, f : f + 1].clone()
        for row in np.flatnonzero(rows.update[:, f]):
            k = rows.steps[row, f]
            noise = noise_of(row, begun)[:, :, f : f + 1]
            alone.step_frames(velocity(y, sigmas[k]), np.array([k]), y, np.array([True]), noise)
        assert torch.equal(y, begun[:, :, f : f + 1]) == held[f]
        assert apart(x[:, :, f : f + 1], y) <= 1e-6


@pytest.mark.parametrize("name", SOLVERS)
def test_a_bfloat16_velocity_advances_float32_latents(name):
    sigmas, x = flow_sigmas(4, 5.0), start(1, 4, 2, 3, 3)
    v, row = velocity(x, 1.0).bfloat16(), (np.zeros(2, dtype=int), np.ones(2, dtype=bool))
    expected = SOLVERS[name](sigmas).step_frames(v.float(), row[0], x.clone(), row[1], noise_of(0, x))
    assert torch.equal(SOLVERS[name](sigmas).step_frames(v, row[0], x, row[1], noise_of(0, x)), expected)
    assert x.dtype == torch.float32


# A flow whose solution is known: data that are normal with a mean and a deviation of their own in every place


class Normal:
    """``x = (1 - sigma) data + sigma noise`` with data ~ N(mean, deviation^2), independent in every place."""

    def __init__(self, shape: tuple[int, ...], deviation: float = 0.5):
        self.mean, self.deviation = torch.linspace(-2, 2, shape[-1]).double().expand(shape), deviation

    def spread(self, sigma: float) -> float:
        return ((1 - sigma) ** 2 * self.deviation**2 + sigma**2) ** 0.5

    def velocity(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """E[noise - data | x]."""
        gain = (1 - sigma) * self.deviation**2 / self.spread(sigma) ** 2
        data = self.mean + gain * (x - (1 - sigma) * self.mean)
        return (x - data) / sigma

    def solution(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Where the flow takes `x` from a level to 0."""
        return self.mean + self.deviation * (x.double() - (1 - sigma) * self.mean) / self.spread(sigma)


def error(name: str, sigmas: np.ndarray) -> float:
    """The largest error of a solver over the levels of a run."""
    x = start(1, 4, 3, 8, 8)
    flow = Normal(tuple(x.shape))
    return apart(solve(name, sigmas, x, flow.velocity), flow.solution(x, float(sigmas[0])))


@pytest.mark.parametrize("first", [0.999, 1.0])
@pytest.mark.parametrize(("name", "order"), [("unipc", 2), ("euler", 1)])
def test_the_error_falls_with_the_order_of_the_solver(name, order, first):
    """Also from pure noise on, where distilled models start and UniPC's log of the signal is infinite."""
    even = [np.linspace(first, 0, n + 1) for n in (256, 512)]
    coarse, fine = (error(name, check_sigmas(3 * grid / (1 + 2 * grid))) for grid in even)
    assert np.log2(coarse / fine) == pytest.approx(order, abs=0.15)
    assert fine < 0.01


def test_solvers_agree_as_steps_grow():
    """On a field without a known solution."""
    x = start(1, 4, 3, 5, 6)
    gaps = [apart(solve("euler", s, x), solve("unipc", s, x)) for s in (flow_sigmas(n, 5.0) for n in (25, 100, 400))]
    assert gaps[1] < 0.4 * gaps[0]
    assert gaps[2] < 0.4 * gaps[1]
    assert gaps[2] < 0.02


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("name", SOLVERS)
def test_data_that_are_one_point_are_found_in_any_number_of_steps(name, levels):
    """What a perfectly distilled model predicts: the same data from every level."""
    x = start(1, 4, 3, 5, 6)
    flow = Normal(tuple(x.shape), deviation=0.0)
    assert apart(solve(name, LEVELS[levels], x, flow.velocity), flow.mean) <= EXACT


def test_lcm_does_not_solve_the_flow_of_a_model_that_is_not_distilled():
    """It tends to the right mean with too small a spread; see docs/numerics.md."""
    x = start(1, 4, 3, 64, 64)
    flow = Normal(tuple(x.shape))
    made = solve("lcm", flow_sigmas(1000, 1.0), x, flow.velocity) - flow.mean
    assert abs(float(made.mean())) < 0.01
    assert float(made.std()) / flow.deviation == pytest.approx(0.5**0.5, abs=0.03)


# Noise levels


def test_a_list_of_levels_becomes_a_run():
    sigmas = check_sigmas(FOUR_STEPS)
    assert sigmas.dtype == np.float32
    assert sigmas.tolist() == np.array([*FOUR_STEPS, 0], dtype=np.float32).tolist()
    assert check_sigmas([*FOUR_STEPS, 0.0]).tolist() == sigmas.tolist()
    assert check_sigmas(["0.5"]).tolist() == [0.5, 0]
    assert flow_timesteps(sigmas).tolist() == [1000, 937, 833, 625]


@pytest.mark.parametrize(
    "bad",
    [
        [],
        [0],
        [0, 0],
        [1.1, 0.5],
        [1000, 750],
        [0.5, 0.5],
        [0.5, 0.7],
        [0.5, -0.1],
        ["x"],
        [None],
        [float("nan")],
        [1, 0, 0],
    ],
)
def test_levels_that_make_no_run_are_refused(bad):
    with pytest.raises(InputError, match="above 0 and at most 1") as refused:
        check_sigmas(bad)
    assert refused.value.name == "sigmas"
    assert refused.value.value == " ".join(map(str, bad))


# The table


def test_names_are_listed_without_torch():
    code = "import sys; from skyreels_v2_infer.scheduler import SOLVERS; print(*SOLVERS, 'torch' in sys.modules)"
    listed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert listed.split() == ["unipc", "euler", "lcm", "False"]
    with pytest.raises(KeyError):
        SOLVERS["heun"]


def test_only_lcm_draws_and_does_not_run_without():
    assert {name: SOLVERS[name].stochastic for name in SOLVERS} == {"unipc": False, "euler": False, "lcm": True}
    x = start(1, 4, 2, 3, 3)
    with pytest.raises(ValueError, match="noise"):
        SOLVERS["lcm"](flow_sigmas(4, 5.0)).step_frames(x, np.zeros(2, dtype=int), x, np.ones(2, dtype=bool))
