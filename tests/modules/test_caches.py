"""EasyCache and MagCache against their formulas written out frame by frame in float64, in every mode; what is counted,
and what passes from one window, pass or run to another (nothing)."""

import functools

import numpy as np
import pytest
import torch
from peers import small_model, small_vae

from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.modules.caches.base import WindowCache, WindowRows
from skyreels_v2_infer.modules.caches.easycache import EasyCache, VelocityCache
from skyreels_v2_infer.modules.caches.magcache import MagCache, Recording
from skyreels_v2_infer.pipelines.denoise import Guided, denoise, rows_of
from skyreels_v2_infer.pipelines.history import Resume
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.scheduler import SOLVERS, ad_schedule, flow_sigmas, flow_timesteps

STEPS, FRAMES = 12, 6
HELD = {
    "none": np.zeros(FRAMES, bool),
    "history": np.arange(FRAMES) < 2,
    "history and end": np.array([1, 0, 0, 0, 0, 1], bool),
}
# (ar_step, causal_block_size, block-causal attention, held frames)
MODES = {
    "synchronous": (0, 1, False, "none"),
    "synchronous, history": (0, 1, False, "history"),
    "asynchronous": (2, 1, False, "none"),
    "asynchronous, history and end": (5, 1, False, "history and end"),
    "causal": (3, 2, True, "none"),
    "causal, history": (4, 2, True, "history"),
    "one frame after the other": (STEPS, 1, False, "none"),
}


class Window:
    """A window of small latents and two passes of a made-up model, whose frames see each other."""

    def __init__(self, mode: str, seed: int = 0):
        ar_step, block, causal, held = MODES[mode]
        self.sigmas = flow_sigmas(STEPS, 3.0)
        self.schedule = ad_schedule(FRAMES, flow_timesteps(self.sigmas), ar_step, HELD[held], block)
        self.rows = rows_of(self.schedule, torch.device("cpu"), block if causal else None)
        draw = torch.Generator().manual_seed(seed)
        self.start = torch.randn(1, 3, FRAMES, 4, 4, generator=draw)
        self.target = torch.randn(2, 1, 3, FRAMES, 4, 4, generator=draw)
        self.calls = [0, 0]

    def velocity(self, branch: int, x, t):
        """Drawn to a target, a little by the mean of all frames, less at low noise."""
        self.calls[branch] += 1
        frames = x.shape[2]
        t = t.reshape(1, -1).expand(1, frames)
        pull = 0.3 + 0.7 * (t / 1000).to(x)[:, None, :, None, None] ** 2
        return pull * (x - self.target[branch][:, :, :frames].to(x)) + 0.2 * x.mean(dim=2, keepdim=True)

    def about(self, agree=lambda x: x) -> WindowRows:
        return WindowRows(self.rows, self.schedule, None, agree)

    def denoised(self, cache: WindowCache, scale: float = 3.0) -> torch.Tensor:
        passes = (functools.partial(self.velocity, branch) for branch in range(2))
        guided = Guided(*passes, scale, around=cache.velocities)
        return denoise(guided, SOLVERS["euler"](self.sigmas), self.schedule, self.rows, self.start)


def easycache_written_out(window: Window, threshold: float, retention: float, scale: float):
    """The formula, frame by frame in float64 -> (latents, rows that call the model, errors where that was open)."""
    x = window.start.double().clone()
    steps, update = window.schedule.steps, window.schedule.update
    first = max(1, int(retention * STEPS))
    computed, errors = [], {}
    before = last = k = None  # last: (row, x, [v of each pass])
    error = 0.0

    def mean(values, frames):
        return float(np.mean([values[:, :, f].abs().mean() for f in frames]))

    for row, (t, frames) in enumerate(window.rows):
        now = x[:, :, :frames].clone()
        moving = [f for f in range(frames) if update[row, f]]
        due = any(steps[row, f] < first or steps[row, f] == STEPS - 1 for f in moving)
        if not due and k is not None:
            change = mean(now - before, moving)
            error += k * change / mean(last[2][0], moving)
            errors[row] = error
            due = not error < threshold
        elif not due:
            due = True
        if due:
            made = [window.velocity(b, now, t) for b in range(1 if scale <= 1 else 2)]
            k = None
            if last is not None:
                both = [f for f in moving if update[last[0], f]]
                if both:
                    seen = last[1].shape[2]
                    k = mean(made[0][:, :, :seen] - last[2][0], both) / mean(now[:, :, :seen] - last[1], both)
            last, error = (row, now, made), 0.0
        else:
            made = [now + (v - last[1]) for v in last[2]]
        before = now
        computed.append(due)
        v = made[0] if len(made) == 1 else made[1] + scale * (made[0] - made[1])
        sigma = window.sigmas.astype(np.float64)
        for f in moving:
            s = steps[row, f]
            x[:, :, f] += (sigma[s + 1] - sigma[s]) * v[:, :, f]
    return x, computed, errors


def threshold_between(errors: list[float], share: float) -> float:
    """A threshold far from all errors, so that float32 decides alike."""
    ordered = sorted(errors)
    at = int(share * (len(ordered) - 1))
    gaps = [(ordered[i + 1] / ordered[i], i) for i in range(max(0, at - 2), min(len(ordered) - 1, at + 3))]
    _, i = max(gaps)
    return (ordered[i] * ordered[i + 1]) ** 0.5


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("mode", MODES)
class TestEasyCache:
    def test_it_is_the_formula(self, mode, scale):
        window = Window(mode)
        _, _, errors = easycache_written_out(window, 1e9, 0.1, scale)
        if not errors:
            assert mode == "asynchronous"  # some frame takes its first or last step in every row
            return
        threshold = threshold_between(list(errors.values()), 0.3)
        latents, expected, errors = easycache_written_out(window, threshold, 0.1, scale)
        assert all(abs(error / threshold - 1) > 1e-3 for error in errors.values())
        window.calls = [0, 0]
        cache = EasyCache(threshold, 0.1).window(window.about())
        made = window.denoised(cache, scale)
        assert cache.computed == expected
        assert window.calls == [sum(expected), 0 if scale == 1 else sum(expected)]
        assert 0 < sum(expected) < len(expected)
        torch.testing.assert_close(made.double(), latents, rtol=1e-4, atol=1e-5)

    def test_ends_are_computed_and_all_else_skipped(self, mode, scale):
        """Of every frame the first and the last steps, however it lags; where nothing is known yet, one more row."""
        window = Window(mode)
        cache = EasyCache(1e9, 0.25).window(window.about())
        window.denoised(cache, scale)
        ends = np.zeros(len(window.rows), bool)
        for f in range(FRAMES):
            rows = np.flatnonzero(window.schedule.update[:, f])
            ends[[*rows[:3], *rows[-1:]]] = True
        assert cache.computed == ends.tolist()

    def test_threshold_zero_is_no_cache_bit_for_bit(self, mode, scale):
        window = Window(mode)
        cache = EasyCache(0.0, 0.0).window(window.about())
        assert torch.equal(window.denoised(cache, scale), window.denoised(WindowCache(), scale))
        assert all(cache.computed)


def magcache_written_out(window: Window, ratios, threshold: float, skips: int, retention: float) -> list[bool]:
    """The formula, with a product and an error for every frame."""
    update, steps = window.schedule.update, window.schedule.steps
    first = max(1, int(retention * STEPS))
    product, error, skipped, computed = [1.0] * FRAMES, [0.0] * FRAMES, 0, []
    for row in range(len(update)):
        moving = [f for f in range(FRAMES) if update[row, f]]
        for f in moving:
            product[f] *= ratios[steps[row, f]]
            error[f] += abs(1 - product[f])
        skipped += 1
        due = any(steps[row, f] < first for f in moving)
        due = due or skipped > skips or any(not error[f] < threshold for f in moving)
        if due:
            product, error, skipped = [1.0] * FRAMES, [0.0] * FRAMES, 0
        computed.append(due)
    return computed


RATIOS = tuple(1 - 0.02 * i**1.5 / STEPS for i in range(STEPS))
OTHERS = tuple(1 - 0.03 * i / STEPS for i in range(STEPS))


@pytest.mark.parametrize("mode", MODES)
class TestMagCache:
    @pytest.mark.parametrize(("threshold", "skips"), [(0.05, 5), (0.12, 2), (1e9, 3)])
    def test_it_is_the_formula_for_each_pass(self, mode, threshold, skips):
        window = Window(mode)
        cache = MagCache(threshold, skips, 0.2, (RATIOS, OTHERS)).window(window.about())
        expected = [magcache_written_out(window, ratios, threshold, skips, 0.2) for ratios in (RATIOS, OTHERS)]
        assert cache.decisions == expected
        if mode.startswith("synchronous"):
            assert sum(expected[0]) < len(expected[0]) and (threshold > 0.1 or expected[0] != expected[1])

    def test_threshold_zero_computes_every_row(self, mode):
        ratios = (1.0,) * STEPS
        cache = MagCache(0.0, 4, 0.0, (ratios, ratios)).window(Window(mode).about())
        assert all(map(all, cache.decisions))


def test_a_table_for_another_number_of_steps_is_refused():
    with pytest.raises(ValueError, match=f"must be {STEPS}, one for each step, not 3"):
        MagCache(0.1, 4, 0.2, ((1.0,) * 3,) * 2).window(Window("synchronous").about())


@pytest.mark.parametrize("mode", MODES)
def test_ratios_are_measured_for_the_frames_that_move(mode):
    """Blocks that add what only depends on a frame's step, and something wild to frames that stand."""
    window = Window(mode)
    sizes = np.cumprod([3.0, *RATIOS[1:]])
    recording = Recording(STEPS)
    cache = recording.window(window.about())
    recorder = cache.blocks(0)
    for row, (_, frames) in enumerate(window.rows):
        moving = torch.from_numpy(window.schedule.update[row, :frames])
        added = torch.from_numpy(sizes[window.schedule.steps[row, :frames]])
        added = torch.where(moving, added, 1 + 100 * torch.rand(frames).double()).float()
        tokens = torch.zeros(2, frames, 4, 8)
        recorder(tokens, None, None, lambda x, added=added: x + added[:, None, None])
    (measured,) = recording.ratios()
    np.testing.assert_allclose(measured, RATIOS, atol=1e-4)


@functools.cache
def parts():
    return small_model(), small_vae()


def pipeline(cache=None, ranks: Ranks | None = None) -> DiffusionForcingPipeline:
    return DiffusionForcingPipeline.from_parts(*parts(), hooks=Hooks(cache=cache, ranks=ranks or Ranks()))


def plan_of(guidance: float = 4.0, **arguments):
    given = {"height": 32, "width": 48, "base_num_frames": 17, "overlap_history": 5, "addnoise": 20, "seed": 1}
    return make_plan(41, 8, 5.0, guidance_scale=guidance, **given | arguments)


def embeds() -> Inputs:
    drawn = torch.randn(2, 8, 24, generator=torch.Generator().manual_seed(3))
    return Inputs(prompt_embeds=drawn[:1], negative_prompt_embeds=drawn[1:])


class Kept:
    """A cache that keeps what it makes for every window."""

    def __init__(self, cache):
        self.cache, self.windows = cache, []

    def window(self, rows: WindowRows) -> WindowCache:
        self.windows.append(self.cache.window(rows))
        return self.windows[-1]


CACHES = {
    "easycache": EasyCache(2.0, 0.2),
    "magcache": MagCache(0.2, 2, 0.2, (RATIOS[:8], OTHERS[:8])),
}


@pytest.mark.parametrize(
    ("guidance", "arguments"),
    [(4.0, {}), (1.0, {"ar_step": 2, "causal_block_size": 2, "causal_attention": True})],
    ids=["guided, synchronous", "single pass, causal"],
)
@pytest.mark.parametrize("name", CACHES)
def test_forwards_of_three_windows(name, arguments, guidance):
    """As many as decided, for each pass; every window begins anew, and so does every run."""
    kept, counted = Kept(CACHES[name]), []
    hook = parts()[0].blocks[0].register_forward_pre_hook(lambda _, given: counted.append(len(given[0])))
    plan = plan_of(guidance, **arguments)
    made = [part.latents for part in pipeline(kept).execute(plan, embeds())]
    forwards = sum(counted)
    hook.remove()
    assert len(kept.windows) == len(plan.windows) == 3
    branches = 1 if guidance == 1 else 2
    expected = 0
    for window, planned in zip(kept.windows, plan.windows, strict=True):
        decisions = window.decisions[:branches] if name == "magcache" else [window.computed] * branches
        assert all(len(each) == len(planned.schedule) and each[0] for each in decisions)
        expected += sum(map(sum, decisions))
    assert forwards == expected < branches * plan.rows
    again = [part.latents for part in pipeline(kept).execute(plan, embeds())]
    assert all(map(torch.equal, made, again))
    exact = [part.latents for part in pipeline().execute(plan, embeds())]
    assert not torch.equal(made[0], exact[0])


@pytest.mark.parametrize("name", CACHES)
def test_a_window_is_the_same_whether_the_run_begins_with_it(name):
    """What --resume does after an interruption in the middle of the second window."""
    plan, states, whole = plan_of(), [], []
    for part in pipeline(CACHES[name]).execute(plan, embeds()):
        list(part.pieces)
        states.append(part.history.state())
        whole.append(part.latents)
    resumed = pipeline(CACHES[name]).execute(plan, embeds(), Resume(1, history=states[0]))
    assert all(map(torch.equal, whole[1:], [part.latents for part in resumed]))


@pytest.mark.parametrize("name", CACHES)
def test_all_ranks_take_the_decisions_of_the_first(name):
    """Here the first one's are the opposite where they are open; a fixed number of exchanges for a row."""
    asked = []

    def opposite(tensor):
        if tensor.dtype != torch.bool:
            return tensor
        asked.append(tensor)
        turned = ~tensor
        turned[..., 0] |= name == "magcache"  # the first row has to run
        return turned

    own, turned = Window("synchronous"), Window("synchronous")
    if name == "magcache":
        mine, theirs = (CACHES[name].__class__(0.05, 5, 0.2, (RATIOS, OTHERS)) for _ in range(2))
        mine, theirs = mine.window(own.about()), theirs.window(turned.about(opposite))
        assert [[not d for d in each[1:]] for each in mine.decisions] == [each[1:] for each in theirs.decisions]
        assert len(asked) == 1
        return
    mine: VelocityCache = EasyCache(1e9, 0.2).window(own.about())
    theirs: VelocityCache = EasyCache(1e9, 0.2).window(turned.about(opposite))
    own.denoised(mine)
    turned.denoised(theirs)
    assert all(theirs.computed) and mine.computed == [True, True, *[False] * 9, True]
    assert len(asked) == 9
