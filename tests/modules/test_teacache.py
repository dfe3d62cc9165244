"""TeaCache: when the blocks run, step by step, in every mode; and that nothing is seen of it but speed."""

import functools
import itertools
import json
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest
import script_runs
import torch
from peers import small_model, small_vae
from script_runs import FORCING, GENERATE
from small_checkpoints import write_diffusers

from skyreels_v2_infer import DiffusionForcingPipeline, Text2VideoPipeline
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.caches import teacache as feature_cache
from skyreels_v2_infer.modules.caches.base import FeatureCache, WindowCache, WindowRows
from skyreels_v2_infer.modules.caches.teacache import TeaCache, predicted
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan import caching
from skyreels_v2_infer.plan.caching import choose_coefficients
from skyreels_v2_infer.run import calibrate

IDENTITY = (0.0, 0.0, 0.0, 1.0, 0.0)  # predicts the change of the embedding itself
NOTHING = (0.0, 0.0, 0.0, 0.0, 0.0)  # predicts no change at all
SMALL = {"height": 32, "width": 48, "shift": 5.0, "seed": 1}


@functools.cache
def parts():
    return small_model(), small_vae()


def embeds(batch: int = 1) -> dict:
    drawn = torch.randn(2 * batch, 8, 24, generator=torch.Generator().manual_seed(3))
    return {"prompt_embeds": drawn[:batch], "negative_prompt_embeds": drawn[batch:]}


class Around(WindowCache):
    """One function around the block stack of every pass."""

    def __init__(self, around=None):
        self.around = around

    def window(self, rows: WindowRows) -> WindowCache:
        return self

    def blocks(self, branch: int):
        return self.around


class Watched(WindowCache):
    """A `TeaCache` that keeps every branch, in the order in which they were made."""

    def __init__(self, threshold: float, coefficients=IDENTITY, use_ret_steps: bool = False):
        self.settings = TeaCache(threshold, coefficients, use_ret_steps)
        self.branches: list[FeatureCache] = []

    def window(self, rows: WindowRows) -> WindowCache:
        self.of_window = self.settings.window(rows)
        return self

    def blocks(self, branch: int) -> FeatureCache:
        self.branches.append(self.of_window.blocks(branch))
        return self.branches[-1]

    @property
    def computed(self) -> list[list[int]]:
        """For each branch the steps in which the blocks ran."""
        return [np.flatnonzero(branch.computed).tolist() for branch in self.branches]


def rows_of(model, embed, agree=lambda decisions: decisions) -> WindowRows:
    return WindowRows(model, None, embed, agree)


def run(kind, cache=None, **arguments):
    pipeline = kind.from_parts(*parts(), hooks=Hooks(cache=cache))
    return pipeline(
        **SMALL | {"output_type": "latent", "num_frames": 17, "num_inference_steps": 8} | embeds() | arguments
    )


def simulate(signals: list[torch.Tensor], threshold: float, coefficients, first: int, last: bool, begun) -> list[int]:
    """Which steps are computed, by the published rule, with steps counted as steps and frames that stand left out."""
    computed, total = [], 0.0
    for i, signal in enumerate(signals):
        if i < first or i in begun or (last and i == len(signals) - 1):
            run = True
        else:
            new, old = (each[0].numpy() for each in torch.broadcast_tensors(signal, signals[i - 1]))
            pairs = [(a, b) for a, b in zip(new, old, strict=True) if (a != b).any()]
            change = sum(np.abs(a - b).sum() for a, b in pairs) / sum(np.abs(b).sum() for _, b in pairs)
            total += max(0.0, float(np.polyval(coefficients, change)))
            run = total >= threshold
        if run:
            computed.append(i)
            total = 0.0
    return computed


MODES = {
    "together": (Text2VideoPipeline, {}),
    "diffusion forcing": (DiffusionForcingPipeline, {"ar_step": 0}),
    "asynchronous": (DiffusionForcingPipeline, {"ar_step": 2}),
    "causal": (DiffusionForcingPipeline, {"ar_step": 2, "causal_block_size": 2, "causal_attention": True}),
}


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("mode", MODES)
class TestModes:
    def test_threshold_zero_is_no_cache_bit_for_bit(self, mode, guidance):
        kind, arguments = MODES[mode]
        arguments = arguments | {"guidance_scale": guidance}
        cache = Watched(0.0, (1.0, -5.0, 1.0, -3.0, -1.0))  # one that swings below 0
        assert torch.equal(run(kind, cache, **arguments), run(kind, **arguments))
        assert all(all(branch.computed) for branch in cache.branches)

    def test_first_and_last_step_run_and_steps_are_steps(self, mode, guidance):
        """The published code counts forwards: with guidance its last step never comes."""
        kind, arguments = MODES[mode]
        cache = Watched(1.0, NOTHING)
        latents = run(kind, cache, guidance_scale=guidance, **arguments)
        branches = 1 if guidance == 1 else 2
        assert len(cache.branches) == branches
        rows = len(cache.branches[0].computed)
        assert rows == 8 + (0 if not arguments.get("ar_step") else 2 * (4 if mode == "asynchronous" else 2))
        begun = [2, 4] if mode == "causal" else []  # a block of frames of which nothing is known yet
        assert cache.computed == [[0, *begun, rows - 1]] * branches
        assert not torch.equal(latents, run(kind, guidance_scale=guidance, **arguments))

    def test_retained_steps(self, mode, guidance):
        kind, arguments = MODES[mode]
        cache = Watched(1.0, NOTHING, use_ret_steps=True)
        run(kind, cache, guidance_scale=guidance, **arguments)
        assert all(steps == [0, 1, 2, 3, 4] for steps in cache.computed)

    @pytest.mark.parametrize("use_ret_steps", [False, True])
    def test_steps_between_follow_the_rule(self, mode, guidance, use_ret_steps):
        kind, arguments = MODES[mode]
        signals, frames = [], []

        def around(tokens, time, modulation, run):
            signals.append(modulation if use_ret_steps else time)
            frames.append(tokens.shape[1])
            return run(tokens)

        asked = arguments | {"guidance_scale": guidance, "num_inference_steps": 9}
        run(kind, Around(around), **asked)
        signals, frames = (each[:: 1 if guidance == 1 else 2] for each in (signals, frames))
        begun = [i for i, (a, b) in enumerate(itertools.pairwise(frames), start=1) if a != b]
        assert bool(begun) == (mode == "causal")
        changes = [
            float(feature_cache.change_of_moving(b, a))
            for i, (a, b) in enumerate(itertools.pairwise(signals), start=1)
            if i not in begun
        ]
        threshold = 1.7 * float(np.median(changes))
        cache = Watched(threshold, IDENTITY, use_ret_steps)
        run(kind, cache, **asked)
        expected = simulate(signals, threshold, IDENTITY, 5 if use_ret_steps else 1, not use_ret_steps, begun)
        assert 2 < len(expected) < len(signals)
        assert all(steps == expected for steps in cache.computed)


def test_every_window_starts_anew():
    cache = Watched(1.0, NOTHING)
    windows = {"num_frames": 33, "base_num_frames": 17, "overlap_history": 5, "ar_step": 0}
    latents = run(DiffusionForcingPipeline, cache, guidance_scale=4.0, **windows)
    assert cache.computed == [[0, 7]] * 6  # three windows, two branches each
    assert torch.equal(latents, run(DiffusionForcingPipeline, Watched(1.0, NOTHING), guidance_scale=4.0, **windows))


def test_a_branch_reuses_its_own_and_not_the_others():
    """With one state for both, guidance would add the same twice, and nothing would be left of it."""
    cached = run(Text2VideoPipeline, Watched(1.0, NOTHING), guidance_scale=4.0)
    unguided = run(Text2VideoPipeline, Watched(1.0, NOTHING), guidance_scale=1.0)
    assert not torch.allclose(cached, unguided)
    signal, tokens = torch.ones(1, 1, 4), torch.zeros(1, 1, 2, 4)
    rows = [(torch.zeros(1), 1)] * 3
    window = TeaCache(1.0, NOTHING).window(rows_of(rows, lambda t: (signal, signal)))
    one, other = window.blocks(0), window.blocks(1)
    for branch, added in ((one, 1.0), (other, 2.0)):
        assert branch(tokens, signal, signal, lambda x, added=added: x + added).mean() == added
    for branch, added in ((one, 1.0), (other, 2.0)):
        assert branch(tokens + 5, signal, signal, lambda x: 1 / 0).mean() == 5 + added


class TestWindow:
    """All decisions of a window are made before its first row."""

    ARGUMENTS = MODES | {
        "noised history": (
            DiffusionForcingPipeline,
            {"ar_step": 0, "num_frames": 33, "base_num_frames": 17, "overlap_history": 5, "addnoise_condition": 20},
        ),
        "noised history, causal": (
            DiffusionForcingPipeline,
            MODES["causal"][1]
            | {"num_frames": 33, "base_num_frames": 17, "overlap_history": 5, "addnoise_condition": 20},
        ),
    }

    @pytest.mark.parametrize("mode", ARGUMENTS)
    def test_rows_are_known_as_the_model_sees_them(self, mode, monkeypatch):
        """The timesteps and frames of every forward, and the embeddings to the bit."""
        kind, arguments = self.ARGUMENTS[mode]
        foreseen, seen = [], []

        def window(rows):
            foreseen.extend((t.tolist(), frames, *rows.embed(t[None])) for t, frames in rows.model)
            return Around(around)

        def around(tokens, time, modulation, run):
            seen.append((None, tokens.shape[1], time, modulation))
            return run(tokens)

        forward = type(parts()[0]).forward

        def watched(model, x, t, *others, **more):
            result = forward(model, x, t, *others, **more)
            seen[-1] = (t.reshape(1, -1)[0].tolist(), *seen[-1][1:])
            return result

        monkeypatch.setattr(type(parts()[0]), "forward", watched)
        run(kind, SimpleNamespace(window=window), guidance_scale=1.0, **arguments)
        assert len(foreseen) == len(seen) > 7
        for (t, frames, *embedded), (t_seen, frames_seen, *embedded_seen) in zip(foreseen, seen, strict=True):
            assert (t, frames) == (t_seen, frames_seen)
            assert all(map(torch.equal, embedded, embedded_seen))

    def test_all_ranks_take_the_decisions_of_the_first(self):
        """Which another rank's own sums would have made otherwise; an exchange per window and none per row."""
        asked = []

        def of_rank_0(decisions):
            asked.append(decisions)
            return torch.tensor([[True, False, False, True]] * 2)

        rows = [(torch.tensor([t]), 1) for t in (900.0, 600.0, 300.0, 0.0)]
        window = TeaCache(0.0, IDENTITY).window(rows_of(rows, lambda t: (t[..., None], t[..., None]), of_rank_0))
        (own,) = asked
        assert own.tolist() == [[True] * 4] * 2
        for branch in map(window.blocks, range(2)):
            results = [branch(torch.zeros(1, 1, 2, 4), None, None, lambda x: x + 1).mean() for _ in rows]
            assert results == [1.0] * 4 and branch.computed == (True, False, False, True)

    def test_one_transfer_from_the_device_per_window(self, monkeypatch):
        """On a GPU each is a wait for everything that was queued before."""
        waits = []
        for name in ("tolist", "item", "__float__", "__bool__", "cpu", "numpy"):
            kept = getattr(torch.Tensor, name)

            def counted(tensor, *args, kept=kept, name=name):
                if tensor.is_floating_point():  # what comes from the embedding; decisions are on the host already
                    waits.append(name)
                return kept(tensor, *args)

            monkeypatch.setattr(torch.Tensor, name, counted)
        rows = [(torch.tensor([t]), 1) for t in np.linspace(999, 1, 20)]
        window = TeaCache(3.0, IDENTITY).window(rows_of(rows, functools.partial(parts()[0].embed_time, fps=None)))
        branch = window.blocks(0)
        for _ in rows:
            branch(torch.zeros(1, 1, 2, 4), None, None, lambda x: x + 1)
        assert waits == ["tolist"] and 1 < sum(branch.computed) < 20

    def test_the_layers_are_on_the_device_while_decisions_are_made(self):
        """With --offload the first forward brings them, which comes later."""
        model, resident = parts()[0], set()

        @contextmanager
        def at_work(module, memory=None):
            resident.update(module.parameters())
            yield
            resident.clear()

        def window(rows):
            assert {*model.time_embedding.parameters(), *model.time_projection.parameters()} <= resident
            return WindowCache()

        pipeline = Text2VideoPipeline.from_parts(*parts(), hooks=Hooks(cache=SimpleNamespace(window=window)))
        pipeline.at_work = at_work
        pipeline(**SMALL | {"output_type": "latent", "num_frames": 5, "num_inference_steps": 1} | embeds())

    def test_a_decision_needs_no_more_than_one_video_of_a_batch(self):
        batch = embeds(2) | {"guidance_scale": 4.0}
        one, two = (Watched(0.3), Watched(0.3))
        run(Text2VideoPipeline, one, guidance_scale=4.0)
        run(Text2VideoPipeline, two, **batch)
        assert one.computed == two.computed


def test_only_frames_that_move_count():
    before, after = torch.ones(1, 4, 8), torch.ones(1, 4, 8)
    assert feature_cache.change_of_moving(after, before) == 0
    after[:, 3] = 2.0  # one frame of four has moved on
    assert feature_cache.change_of_moving(after, before) == pytest.approx(1.0)
    assert feature_cache.change_of_moving(after, before[:, :1]) == pytest.approx(1.0)  # after a shared timestep
    after[:, 2] = 1.5
    assert feature_cache.change_of_moving(after, before) == pytest.approx(0.75)


@pytest.mark.parametrize("use_ret_steps", [False, True])
def test_a_window_computes_as_many_steps_with_a_history_as_without(use_ret_steps):
    """The history stands still, so the mean over all frames would have predicted next to no change."""
    long = {"num_frames": 33, "base_num_frames": 17, "overlap_history": 13, "ar_step": 0, "num_inference_steps": 12}
    cache = Watched(2.0, IDENTITY, use_ret_steps)
    run(DiffusionForcingPipeline, cache, guidance_scale=1.0, **long)
    first, *others = cache.computed
    assert 5 <= len(first) < 12 and len(others) == 4 and all(steps == first for steps in others)


def test_the_polynomial():
    coefficients = caching.COEFFICIENTS[("t2v", 1536)]
    assert predicted(0.1, coefficients) == pytest.approx(float(np.polyval(coefficients, 0.1)))
    assert predicted(0.1, (0, 0, 0, -1, 0)) == 0


class TestCoefficients:
    @pytest.mark.parametrize(
        ("kind", "dim", "size", "first", "retained"),
        [
            ("t2v", 1536, (544, 960), 2.39676752e03, -5.21862437e04),
            ("t2v", 5120, (720, 1280), -5784.54975374, -3.03318725e05),
            ("i2v", 5120, (544, 960), -3.02331670e02, 2.57151496e05),
            ("i2v", 1536, (960, 544), -3.02331670e02, 2.57151496e05),
            ("i2v", 5120, (1280, 720), -114.36346466, 8.10705460e03),
        ],
    )
    def test_by_architecture_and_task(self, kind, dim, size, first, retained, tmp_path):
        config = {"model_type": kind, "dim": dim}
        assert choose_coefficients(config, tmp_path, *size, use_ret_steps=False)[0] == first
        assert choose_coefficients(config, tmp_path, *size, use_ret_steps=True)[0] == retained

    def test_unknown_ones_are_refused_with_those_that_are_known(self, tmp_path):
        with pytest.raises(InputError, match=r"width 64.*T2V and DF 14B.*--teacache_coefficients"):
            choose_coefficients({"model_type": "t2v", "dim": 64}, tmp_path, 544, 960, use_ret_steps=False)

    def test_a_checkpoint_may_have_its_own(self, tmp_path):
        config = {"model_type": "t2v", "dim": 1536}
        (tmp_path / caching.FILE).write_text(json.dumps({"coefficients": [1, 2, 3, 4, 5]}))
        assert choose_coefficients(config, tmp_path, 64, 64, use_ret_steps=False) == (1, 2, 3, 4, 5)
        with pytest.raises(InputError, match="ret_steps_coefficients"):
            choose_coefficients(config, tmp_path, 64, 64, use_ret_steps=True)
        (tmp_path / caching.FILE).write_text("{")
        with pytest.raises(InputError, match=r"teacache\.json"):
            choose_coefficients(config, tmp_path, 64, 64, use_ret_steps=False)
        for unusable in ([], [1, 2, 3, 4], [1, 2, 3, 4, float("inf")]):
            (tmp_path / caching.FILE).write_text(json.dumps({"coefficients": unusable}))
            with pytest.raises(InputError, match="must be 5 numbers"):
                choose_coefficients(config, tmp_path, 64, 64, use_ret_steps=False)


class TestFit:
    def test_what_changes_from_step_to_step_is_recorded(self):
        """Of the time, of its projection, and of what the blocks add, not of what comes out of them."""
        recorder, tokens = feature_cache.Recorder(), torch.ones(2, 3)
        for k in (1.0, 2.0):
            recorder(tokens, torch.tensor([k]), torch.tensor([k**2]), lambda x, k=k: x + k**3)
        assert recorder.changes == [(1.0, 3.0, 7.0)]

    def test_a_polynomial_is_found_again(self):
        wanted = (3.0, -2.0, 1.0, 0.5, 0.01)
        changes = np.linspace(0.02, 0.6, 40)
        found = feature_cache.fit([(x, 2 * x, float(np.polyval(wanted, x))) for x in changes])
        np.testing.assert_allclose(found["coefficients"], wanted, rtol=1e-6, atol=1e-8)
        assert predicted(0.4, found["ret_steps_coefficients"]) == pytest.approx(float(np.polyval(wanted, 0.2)))

    def test_the_command_writes_what_the_scripts_read(self, tmp_path, capsys):
        folder = write_diffusers(tmp_path / "df", "df")
        argv = ["--model_id", str(folder), "--height=32", "--width=48", "--num_frames=5", "--inference_steps=6"]
        assert calibrate.main([*argv, "--prompt", "a swan", "a kite", "--device=cpu"]) == 0
        assert capsys.readouterr().out.strip() == str(folder / caching.FILE)
        config = {"model_type": "t2v", "dim": 64}
        for use_ret_steps in (False, True):
            found = choose_coefficients(config, folder, 32, 48, use_ret_steps)
            assert len(found) == 5 and all(np.isfinite(found))

    def test_what_could_not_be_fitted_or_written_is_refused_before_the_work(self, tmp_path, capsys):
        argv = ["--model_id", str(write_diffusers(tmp_path / "df", "df"))]
        for more, line in (
            (["--inference_steps=5"], "--inference_steps 5: must be at least 6"),
            (["--out", str(tmp_path / "no" / "where.json")], "must be a folder that can be written to"),
        ):
            with pytest.raises(SystemExit) as stop:
                calibrate.main([*argv, *more])
            assert stop.value.code == 2 and line in capsys.readouterr().err

    def test_a_wrong_model_ends_in_one_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as stop:
            calibrate.main(["--model_id", str(tmp_path / "nowhere")])
        assert stop.value.code == 2
        assert "no such folder" in capsys.readouterr().err.splitlines()[-1]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_diffusers(tmp_path_factory.mktemp("df"), "df")


class TestScripts:
    ASKED = ("--height=32", "--width=48", "--num_frames=5", "--inference_steps=6", "--seed=1")

    @pytest.mark.parametrize("script", [pytest.param(GENERATE, marks=pytest.mark.slow), FORCING])
    def test_the_flags_reach_the_blocks(self, script, checkpoint, tmp_path):
        def made(*argv):
            return script_runs.run(script, "--model_id", checkpoint, *self.ASKED, *argv, cwd=tmp_path).frames

        plain = made()
        every, few = "--teacache_coefficients=0,0,0,0,9", "--teacache_coefficients=0,0,0,0,0"
        assert np.array_equal(made("--teacache", "--teacache_thresh", 0.3, every), plain)
        skipped = made("--teacache", "--teacache_thresh", 0.3, few)
        assert not np.array_equal(skipped, plain)
        assert not np.array_equal(made("--teacache", "--use_ret_steps", few), skipped)

    def test_the_shipped_model_has_coefficients_of_its_own(self, tmp_path):
        argv = ["--model_id", "tiny", "--num_frames=17", "--seed=1", "--teacache", "--teacache_thresh=0.1"]
        made = script_runs.run(GENERATE, *argv, cwd=tmp_path)
        assert made.frames.shape == (17, 64, 64, 3)


def test_image_to_video_takes_one_too():
    """Its blocks are called in the same place."""
    model = small_model(task="i2v")
    called = []

    def around(tokens, time, modulation, run):
        called.append((tokens.shape, time.shape, modulation.shape))
        return run(tokens)

    x, y = torch.randn(1, 16, 3, 4, 6), torch.randn(1, 20, 3, 4, 6)
    model(x, torch.tensor([500.0]), torch.randn(1, 4, 24), torch.randn(1, 5, 20), y, around=around)
    assert called == [((1, 3, 6, 64), (1, 1, 64), (1, 1, 6, 64))]
