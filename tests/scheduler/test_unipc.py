"""The solver against diffusers' UniPC on the same levels; frames at their own steps against frames alone."""

import numpy as np
import pytest
import torch
from peers import EXACT, PeerScheduler, apart

from skyreels_v2_infer.scheduler import FlowUniPCMultistepScheduler, ad_schedule, flow_sigmas, flow_timesteps
from skyreels_v2_infer.scheduler.unipc import UniPC

STEPS, SHIFTS = [1, 2, 3, 4, 8, 30, 50, 150], [3.0, 5.0, 8.0]


def solver(steps: int, shift: float = 8.0) -> FlowUniPCMultistepScheduler:
    made = FlowUniPCMultistepScheduler()
    made.set_timesteps(steps, shift=shift)
    return made


def velocity(x: torch.Tensor, sigma) -> torch.Tensor:
    """A field that is not linear, mixes channels of a frame and moves with the noise level."""
    mix = torch.linspace(-1, 1, x.shape[1] ** 2).view(x.shape[1], -1).sin()
    return torch.einsum("bc...,cd->bd...", x, mix).tanh() + sigma * x


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_trajectory_equals_diffusers(steps, shift):
    """150 steps at shift 8 have a duplicate timestep, at which the published run fails."""
    ours, theirs = solver(steps, shift), PeerScheduler(shift)
    theirs.set_timesteps(steps)
    x = y = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    for sigma, t in zip(ours.sigmas, ours.timesteps, strict=False):
        x = ours.step(velocity(x, sigma), t, x, return_dict=False, generator=None)[0]  # as published
        y = theirs.step(velocity(y, sigma), t, y, return_dict=False)[0]
        assert apart(x, y) <= EXACT


def test_noise_levels_are_the_published_ones():
    """linspace(0.999, 0, N + 1) without its last, then shift."""
    even = torch.linspace(0.999, 0, 31, dtype=torch.float64)[:-1]
    expected = torch.cat([8 * even / (1 + 7 * even), torch.zeros(1, dtype=torch.float64)])
    made = solver(30)
    assert made.sigmas.dtype == torch.float32
    assert made.timesteps.dtype == torch.int64
    assert torch.allclose(made.sigmas.double(), expected, rtol=0, atol=1e-7)
    assert made.timesteps.tolist() == (1000 * expected[:-1]).long().tolist()
    assert len(set(flow_timesteps(flow_sigmas(150, 8.0)))) == 148  # neighbours may be equal


@pytest.mark.parametrize("steps", [1, 4, 30])
@pytest.mark.parametrize("ar_step", [1, 2, 5])
def test_frames_at_their_own_steps_equal_frames_alone(ar_step, steps):
    frames, held = 7, np.array([1, 0, 0, 0, 0, 0, 1], dtype=bool)
    made = solver(steps)
    rows = ad_schedule(frames, flow_timesteps(made.sigmas.numpy()), ar_step, held, causal_block_size=2)
    start = torch.randn(2, 4, frames, 3, 3, generator=torch.Generator().manual_seed(0))
    x = start.clone()
    for row in range(len(rows)):
        sigma = made.sigmas[torch.from_numpy(rows.steps[row])].view(1, 1, -1, 1, 1)
        x = made.step_frames(velocity(x, sigma), rows.steps[row], x, rows.update[row])
    for f in range(frames):
        alone, y = solver(steps), start[:, :, f]
        for k in range(0 if held[f] else steps):
            y = alone.step(velocity(y, alone.sigmas[k]), alone.timesteps[k], y, return_dict=False)[0]
        assert apart(x[:, :, f], y) <= EXACT


def test_a_row_takes_one_update_however_many_frames(monkeypatch):
    made, calls = solver(4), []
    real = UniPC._advance
    monkeypatch.setattr(UniPC, "_advance", staticmethod(lambda *a, **k: (calls.append(1), real(*a, **k))))
    x = torch.randn(1, 4, 200, 2, 2)
    for k in range(4):
        made.step_frames(x.clone(), np.full(200, k), x, np.ones(200, dtype=bool))
    assert len(calls) == 4


def test_state_is_float32_and_the_sample_keeps_its_dtype():
    made = solver(4)
    x = torch.randn(1, 4, 2, 2).bfloat16()
    out = made.step(x, made.timesteps[0], x).prev_sample
    assert out.dtype == torch.bfloat16
    assert all(part.dtype == torch.float32 for part in made._solver._state)


def test_set_timesteps_starts_anew():
    made, fresh = solver(8), solver(8)
    x = torch.randn(1, 4, 2, 2)
    for t in made.timesteps:
        made.step(x, t, x)
    made.set_timesteps(8, shift=8.0)
    for k in range(8):
        again = made.step(x * k, made.timesteps[k], x)
        assert torch.equal(again.prev_sample, fresh.step(x * k, fresh.timesteps[k], x).prev_sample)


def test_misuse_is_named():
    with pytest.raises(ValueError, match="set_timesteps"):
        FlowUniPCMultistepScheduler().step(torch.zeros(1), 999, torch.zeros(1))
    made = solver(3)
    with pytest.raises(ValueError, match=f"timestep 5: after 0 calls timestep {int(made.timesteps[0])} is due"):
        made.step(torch.zeros(1), 5, torch.zeros(1))
    for t in made.timesteps:
        made.step(torch.zeros(1), t, torch.zeros(1))
    with pytest.raises(ValueError, match="no further step"):
        made.step(torch.zeros(1), made.timesteps[-1], torch.zeros(1))
    for bad in (
        {"num_inference_steps": 0, "shift": 3.0},
        {"num_inference_steps": 3, "shift": 0.0},
        {"num_inference_steps": 3, "shift": 1000.0},
    ):
        with pytest.raises(ValueError, match=r"num_inference_steps 0|shift (0|1000)\.0"):
            made.set_timesteps(**bad)
    with pytest.raises(ValueError, match="num_train_timesteps"):
        FlowUniPCMultistepScheduler(num_train_timesteps=500)
