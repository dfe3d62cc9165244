"""The transformer's stages: what a batch holds, losses that fall, the image model's first step, what is exported."""

import copy
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import types
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.modules import WanVAE, get_image_encoder, get_text_encoder, get_transformer, get_vae
from skyreels_v2_infer.modules.transformer import Float32Linear
from skyreels_v2_infer.scheduler import flow_sigmas
from skyreels_v2_infer.weights.locate import Checkpoint
from training import clips, command, decoder, dit, evaluate, export, judge, loop, products, text, timesteps, vae, world
from training.clips import Clips

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or later")

VAE = {"dim": 4, "z_dim": 16, "multipliers": (1, 2, 4, 8), "blocks": 1}
SMALL = dit.SHAPE | {"dim": 32, "ffn_dim": 48, "num_heads": 2, "freq_dim": 32}
CPU = torch.device("cpu")


@functools.cache
def small_vae() -> WanVAE:
    torch.manual_seed(0)
    return WanVAE(**VAE).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training")


@pytest.fixture(scope="module")
def tokenizer(folder):
    text.train_tokenizer(folder / "tokenizer", count=400)
    return folder / "tokenizer"


@pytest.fixture(scope="module")
def store(folder) -> Clips:
    return clips.load_or_encode(small_vae(), folder / "clips", 20, seed=1)


@pytest.fixture(scope="module")
def image_store(folder) -> Clips:
    return clips.load_or_encode(small_vae(), folder / "clips", 10, 2, clips.STARTS, with_channels=True)


@pytest.fixture
def model(tokenizer, monkeypatch) -> dit.Trained:
    monkeypatch.setattr(dit, "SHAPE", SMALL)
    return dit.new_model(tokenizer, 2)


def test_clips_are_latents_of_the_world(store, folder):
    clip = world.sample_clip(1, 3, clips.FRAMES, clips.MIX)
    video = clips.video_of([clip])
    torch.testing.assert_close(store.latents[3].float(), small_vae().encode(video)[0], rtol=0, atol=2e-3)
    for k, frame in enumerate((16, 32)):
        alone = small_vae().encode(video[:, :, frame : frame + 1])[0, :, 0]
        torch.testing.assert_close(store.ends[3, k].float(), alone, rtol=0, atol=2e-3)
    assert store.facts[3] == clip.facts
    assert (store.history > 0).any() and not (store.history > 0).all()
    going_on = torch.from_numpy(store.history > 0)
    assert store.has_again[going_on].any() and store.has_again[~going_on].any() and not store.has_again.all()
    again = clips.load_or_encode(small_vae(), folder / "clips", 20, seed=1)
    assert torch.equal(again.latents, store.latents)


def test_another_decoder_makes_other_histories(store, folder):
    """They are kept under another name, though the encoder, so the clips, are the same."""
    other = copy.deepcopy(small_vae())
    other.conv2.bias.data += 0.1
    made = clips.load_or_encode(other, folder / "clips", 20, seed=1)
    assert torch.equal(made.latents, store.latents) and not torch.equal(made.again, store.again)


def test_a_shard_is_known_by_all_its_clips(monkeypatch):
    """A change of the world gives another name to those with a clip that it changes, and to no others."""
    names = {}
    mix = replace(clips.MIX, sizes=0.1)
    for radius in (12.0, 12.1):
        monkeypatch.setitem(world.SIZES, "big", radius)
        names[radius] = clips.shard_names(
            small_vae(), [range(first, first + 10) for first in range(0, 300, 10)], 4, mix, False
        )
        bigs = [[world.sample_clip(4, i, clips.FRAMES, mix).scene.radius == radius for i in range(300)]]
    changed = [one != other for one, other in zip(*names.values(), strict=True)]
    assert changed == np.reshape(bigs, (30, 10)).any(axis=1).tolist() and 0 < sum(changed) < 30
    assert len(set(names[12.1])) == 30


def test_a_history_strays_and_ends_where_the_clip_goes_on():
    """In speed, and in size also on the whole: what goes on from it has a size to come back to."""
    paces, sizes, wholes = [], [], []
    for i in range(12):
        clip = world.sample_clip(3, i, clips.FRAMES, world.CORE)
        strayed = judge.judge(clips.straying(clip, np.random.default_rng(i))).first
        true = judge.judge(clip.render()[: clips.HISTORY]).first
        assert np.abs(strayed.position[-1] - true.position[-1]).max() < 0.3
        wholes.append(strayed.size.mean() / true.size.mean())
        assert (strayed.shape, strayed.colour) == (true.shape, true.colour)
        sizes.append(np.ptp(strayed.size) / np.ptp(true.size).clip(0.05))
        if clip.scene.motion != "still":
            paces.append(np.abs(strayed.pace / true.pace - 1))
    assert np.median(sizes) > 2 and 0.03 < np.mean(paces) < 0.3
    assert 0.01 < np.std(wholes) < 0.05 and 0.9 < min(wholes) < 0.98 < 1.01 < max(wholes) < 1.1


def drawn(store, seed, size, mix):
    return dit.draw(store, np.random.default_rng(seed), size, mix, dit.draw_length(seed, mix))


def test_what_strays_is_given_only_as_a_whole(store):
    """The clip goes on where such a history ends, so a part of it would end elsewhere."""
    assert store.has_strayed.any() and not store.has_strayed.all()
    assert (store.strayed.flatten(1).abs().sum(dim=1) > 0).equal(store.has_strayed)
    marked, met = replace(store, strayed=store.strayed + 100), 0
    for seed in range(60):
        batch = drawn(marked, seed, 6, dit.DF_MIX)
        for latents, held, levels in zip(batch.latents, batch.held, batch.levels, strict=True):
            strayed = (latents > 50).all(dim=(0, 2, 3))
            if strayed.any():
                met += 1
                assert strayed.tolist() == [True] * 5 + [False] * (len(held) - 5)
                assert (levels[:5] <= 0.12).all() and (held[:5] | (levels[:5] > 0)).all()
    assert met > 3


def test_a_prompt_is_worded_anew_each_time(store):
    rng = np.random.default_rng(0)
    assert len({store.prompt(0, rng, {}) for _ in range(12)}) > 6


def test_what_a_history_tells_the_prompt_often_leaves_out(store):
    facts = {"colour": "purple", "shape": "square", "motion": "left", "speed": "fast", "background": "navy"}
    told, given = {True: 0, False: 0}, {True: 0, False: 0}
    plain = replace(store, facts=[facts] * len(store))
    words = ("left", "purple", "violet")  # of the motion, of the colour
    for seed in range(80):
        batch = drawn(plain, seed, 6, dit.DF_MIX)
        for prompt, held, levels in zip(batch.prompts, batch.held, batch.levels, strict=True):
            if prompt:
                long = len(levels) > 1 and bool(held[1] or 0 < levels[1] <= 0.12)
                given[long] += 1
                told[long] += sum(word in prompt.lower() for word in words) == 2
    assert min(given.values()) > 80
    assert told[True] / given[True] < 0.53 < told[False] / given[False]


def test_what_a_batch_of_diffusion_forcing_holds(store):
    seen = set()
    for seed in range(60):
        batch = drawn(store, seed, 6, dit.DF_MIX)
        levels, held = batch.levels, batch.held
        assert not held.all(dim=1).any()
        assert (levels[held] <= 0.12).all()
        frames = levels.shape[1]
        for i, index in enumerate(batch.indices):
            given = int((levels[i] <= 0.12).int().cumprod(0).sum()) if held[i, 0] else 0
            end = bool(held[i, -1])
            free = levels[i, given : frames - end]
            if not len(free):
                continue
            assert (free.diff() >= 0).all()  # never falls
            assert given >= store.history[index]
            seen |= {
                ("end", end),
                ("given", min(given, 2)),
                ("shared", bool((free == free[0]).all())),
                ("told noise", bool(given and 0 < levels[i, 0] <= 0.12)),
                ("block", batch.block is not None),
                ("frames", frames),
            }
            assert not (end and batch.block)  # no frame would see it
    names = [name for name, _ in seen]
    assert all(names.count(name) == 2 for name in ("end", "shared", "told noise", "block"))
    assert names.count("given") == 3
    assert names.count("frames") >= 6


def test_pure_noise_is_met_as_often_as_half_of_the_draws_lie_where_inference_starts(store):
    rng = np.random.default_rng(0)
    levels = np.array([dit.draw_levels(rng, 5, dit.T2V_MIX, None)[0] for _ in range(4000)])
    assert 0.07 < (levels > 0.95).mean() < 0.1


def test_all_processes_train_on_clips_of_the_same_length(store, model):
    frames = {0: [], 1: []}
    loss = dit.text_loss(model, store, 2, replace(dit.DF_MIX, end=0.0), CPU)
    for rank, seen in frames.items():
        model.transformer.forward = lambda x, t, context, causal_block_size, seen=seen: seen.append(x.shape[2]) or x
        for step in range(12):
            loss(step, np.random.default_rng((1, step, rank)))
    assert frames[0] == frames[1] and len(set(frames[0])) > 1


def test_gradients_are_the_mean_over_all_processes(monkeypatch):
    """Also of a parameter that this process's batch did not use."""
    monkeypatch.setattr(loop.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(loop.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(loop.dist, "all_reduce", lambda flat: flat.add_(2))  # the other's gradients are all 2
    layer = torch.nn.Linear(2, 1)
    layer.weight.grad = torch.ones(1, 2)
    loop.average_gradients(layer)
    assert layer.weight.grad.tolist() == [[1.5, 1.5]] and layer.bias.grad.tolist() == [1]


def test_text_to_video_shares_its_level(store):
    for seed in range(10):
        batch = drawn(store, seed, 4, dit.T2V_MIX)
        assert (batch.levels == batch.levels[:, :1]).all()
        assert not batch.held.any()
        assert (store.history[batch.indices] == 0).all()


def test_no_loss_comes_from_what_is_given(store):
    batch = next(b for s in range(50) if (b := drawn(store, s, 4, dit.DF_MIX)).held.any())
    truth = batch.noise - batch.latents
    wrong = truth + 9 * batch.held[:, None, :, None, None]
    assert dit.flow_loss(batch, lambda x, t: wrong) == 0
    assert dit.flow_loss(batch, lambda x, t: truth + 1).item() == pytest.approx(1)


def test_an_error_counts_the_more_the_less_the_clips_differ_there(store):
    batch = next(b for s in range(50) if (b := drawn(store, s, 4, dit.T2V_MIX)).levels.shape[1] == 9)
    spread = store.latents.float().var(dim=0).mean(dim=(0, 2, 3))
    torch.testing.assert_close(batch.weights, 1 / spread)
    for frame in (0, 8):
        fault = torch.zeros_like(batch.noise)
        fault[:, :, frame] = 1
        loss = dit.flow_loss(batch, lambda x, t: batch.noise - batch.latents + fault)  # noqa: B023
        assert loss.item() == pytest.approx((1 / spread[frame] / (1 / spread).sum()).item())


def test_the_model_is_shown_what_its_levels_say(store):
    batch = drawn(store, 3, 2, dit.DF_MIX)

    def predict(x, t):
        sigma = (t / 1000)[:, None, :, None, None]
        torch.testing.assert_close(x, (1 - sigma) * batch.latents + sigma * batch.noise)
        return x

    dit.flow_loss(batch, predict)


QUICK = loop.Recipe(steps=40, muon=1e-2, adamw=5e-3, warmup=3)


def mean_loss(loss: loop.Task) -> float:
    with torch.no_grad():
        return float(np.mean([loss(0, np.random.default_rng(100 + i))[0].item() for i in range(6)]))


@pytest.mark.parametrize("stage", ["t2v", "df"])
def test_a_stage_lowers_its_loss_and_goes_on_from_the_one_before(stage, store, model, tmp_path):
    mix = {"t2v": dit.T2V_MIX, "df": dit.DF_MIX}[stage]
    if stage == "df":
        assert dit.train_text_stage("t2v", tmp_path, store, model, CPU, 60, 4, recipe=QUICK)
    loss = dit.text_loss(model, store, 4, mix, CPU)
    before = mean_loss(loss)
    assert dit.train_text_stage(stage, tmp_path, store, model, CPU, 60, 4, recipe=QUICK)
    assert mean_loss(loss) < before * (0.9 if stage == "t2v" else 1)
    notes = [json.loads(line) for line in (tmp_path / stage / "log.jsonl").read_text().splitlines()]
    assert notes[-1]["loss"] < notes[0]["loss"]


@pytest.mark.parametrize("in_bfloat16", [False, True])
def test_a_resumed_stage_equals_an_uninterrupted_one(in_bfloat16, store, tokenizer, monkeypatch, tmp_path):
    monkeypatch.setattr(products, "worth_it", lambda device: in_bfloat16)
    monkeypatch.setattr(dit, "SHAPE", SMALL)
    recipe = loop.Recipe(steps=6, muon=1e-2, adamw=5e-3, warmup=3)
    whole = dit.new_model(tokenizer, 2)
    assert dit.train_text_stage("t2v", tmp_path / "whole", store, whole, CPU, 60, 2, recipe=recipe)
    stops = 0
    while not dit.train_text_stage(
        "t2v", tmp_path / "parts", store, parts := dit.new_model(tokenizer, 2), CPU, 0, 2, recipe=recipe
    ):
        stops += 1
    assert stops >= 3
    kind = products.Bfloat16Linear if in_bfloat16 else torch.nn.Linear
    assert type(whole.transformer.head.head) is type(parts.transformer.head.head) is kind
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, parts.state_dict()[name]), name


def test_the_image_model_starts_as_the_text_model(image_store, model):
    source = model.transformer
    torch.nn.init.normal_(source.head.head.weight, std=0.1)
    image_model = dit.to_image_model(source)
    x = torch.randn(2, 16, 3, 8, 8)
    t = torch.tensor([300.0, 700.0])
    words = torch.randn(2, 5, SMALL["text_dim"])
    y = torch.randn(2, 20, 3, 8, 8)
    features = dit.ImageEncoder(dit.new_tower()).encode(torch.rand(2, 3, 64, 64))
    torch.testing.assert_close(image_model(x, t, words, features, y), source(x, t, words))


def test_the_image_stage_lowers_its_loss_and_keeps_the_text_encoder(image_store, model, tmp_path):
    before = {name: tensor.clone() for name, tensor in model.encoder.state_dict().items()}
    made, done = dit.train_image_stage(tmp_path, image_store, model, CPU, 60, 4, recipe=QUICK)
    assert done
    notes = [json.loads(line) for line in (tmp_path / "i2v" / "log.jsonl").read_text().splitlines()]
    assert notes[-1]["loss"] < 0.9 * notes[0]["loss"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.encoder.state_dict().items())
    start = dit.to_image_model(model.transformer)
    moved = [name for name, p in made.transformer.named_parameters() if not torch.equal(p, start.state_dict()[name])]
    assert any("v_img" in name for name in moved) and "patch_embedding.weight" in moved


class Straight(torch.nn.Module):
    """A model that knows where all noise leads: to 2 with a prompt, to 1 without."""

    def prepare_context(self, words):
        return words

    def forward(self, x, t, goal):
        sigma = (t / 1000)[:, None, :, None, None]
        return torch.where(sigma > 0, (x - goal) / sigma.clamp(min=1e-6), 100.0)


class Goals:
    def encode(self, prompts: list[str], length: int):
        return 2.0 if prompts[0] else 1.0


def test_what_a_model_makes_of_a_clip_is_guided_and_spares_what_is_given():
    model = types.SimpleNamespace(transformer=Straight(), encoder=Goals())
    latents, noise = torch.randn(2, 2, 16, 5, 8, 8)
    made = decoder.remade(model, latents, noise, ["a", "b"], 2, flow_sigmas(20, dit.SHIFT)[-5:])
    assert torch.equal(made[:, :, :2], latents[:, :, :2])
    goal = 1 + TINY.guidance_scale * (2 - 1)
    torch.testing.assert_close(made[:, :, 2:], torch.full_like(made[:, :, 2:], goal))


def test_a_round_trip_is_what_a_window_does_to_its_history():
    latents = torch.randn(1, 16, 3, 8, 8)
    coder = small_vae()
    frames = coder.decode(latents).add(1).mul(127.5).round().div(127.5).sub(1)
    expected = coder.encode(frames)
    far = (decoder.round_trip(coder, latents) - expected).abs().mean() / expected.std()  # in bfloat16
    assert far < 0.05 * (latents - expected).abs().mean() / expected.std()


def test_the_decoder_learns_and_latents_keep_their_meaning(model, tmp_path, monkeypatch):
    torch.manual_seed(0)
    coder = WanVAE(**VAE)
    before = {name: tensor.clone() for name, tensor in coder.state_dict().items()}
    shares = {"REMADE": 0.4, "ROUNDS": 0.3}
    for name, share in shares.items():
        monkeypatch.setattr(decoder, name, share)
    quick = loop.Recipe(steps=24, muon=1e-2, adamw=5e-3, warmup=3, decay=0.9)
    assert decoder.train(tmp_path, coder, model, CPU, 60, 1, recipe=quick)
    moved = {name.split(".")[0] for name, tensor in coder.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {"conv2", "decoder"}
    first = WanVAE(**VAE)
    first.load_state_dict(before)
    assert vae.judged(coder, 2, 5)["held_out_psnr"] > vae.judged(first, 2, 5)["held_out_psnr"] + 1


def peer_of(folder, part: str):
    import diffusers

    kind = {"transformer": "SkyReelsV2Transformer3DModel", "vae": "AutoencoderKLWan"}[part]
    return getattr(diffusers, kind).from_pretrained(folder, subfolder=part).eval()


def test_what_is_exported_is_read_by_the_real_loader_and_by_diffusers(image_store, model, tmp_path):
    torch.nn.init.normal_(model.transformer.head.head.weight, std=0.1)
    image_model = dit.Trained(dit.to_image_model(model.transformer), model.encoder, dit.new_tower())
    for name, trained in (("df", model), ("i2v", image_model)):
        place = tmp_path / name
        export.write(place, trained, small_vae(), VAE, dit.TOWER, dit.SHIFT)
        checkpoint = Checkpoint.open(place)
        transformer = get_transformer(checkpoint, "cpu", torch.float32)
        for key, tensor in trained.transformer.state_dict().items():
            torch.testing.assert_close(transformer.state_dict()[key], tensor, rtol=2e-3, atol=1e-6)
        vae = get_vae(checkpoint, "cpu")
        encoder = get_text_encoder(checkpoint, "cpu", torch.float32)
        words = encoder.encode("a red circle moves left", transformer.text_len)
        expected = trained.encoder.embed(*trained.encoder.tokenize(["a red circle moves left"], text.TEXT_LEN))
        torch.testing.assert_close(words[:, : expected.shape[1]], expected, rtol=0, atol=2e-2)
        assert not words[:, expected.shape[1] :].any()

        x, t = torch.randn(1, transformer.in_dim, 3, 8, 8), torch.tensor([500])
        if name == "i2v":
            tower = get_image_encoder(checkpoint, "cpu", torch.float32)
            image = torch.rand(1, 3, 64, 64)
            features, expected = tower.encode(image), trained.image_encoder.encode(image)
            assert features.shape == (1, 17, dit.TOWER["hidden_size"])
            torch.testing.assert_close(features, expected, rtol=0, atol=2e-2)
            # diffusers tells image from text by counting 512 text tokens, so its model would take ours apart wrongly.
            assert peer_of(place, "transformer").config.image_dim == features.shape[2]
            continue
        theirs = peer_of(place, "transformer")(x, t, words, return_dict=False)[0]
        ours = transformer(x, t, words)
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
        latents = torch.randn(1, 16, 3, 4, 4)
        mean, std = vae.statistics()
        theirs = peer_of(place, "vae").decode(latents * std + mean).sample
        torch.testing.assert_close(vae.decode(latents), theirs, rtol=1e-4, atol=1e-5)


def test_levels_reach_where_every_video_starts():
    rng = np.random.default_rng(0)
    levels = np.array([dit.draw_levels(rng, 5, dit.T2V_MIX, None)[0] for _ in range(4000)])
    assert np.median(levels) == pytest.approx(timesteps.shifted(0.5, dit.SHIFT), abs=0.03)
    assert (levels > flow_sigmas(20, dit.SHIFT)[2]).mean() > 0.01


def test_a_model_gets_more_layers_and_predicts_the_same(model):
    few = model.transformer.requires_grad_(False)
    torch.nn.init.normal_(few.head.head.weight)
    many = dit.deepened(few, 5).requires_grad_(False)
    assert [many.num_layers, len(many.blocks), few.num_layers] == [5, 5, 2]
    x, t, words = torch.randn(2, 16, 3, 4, 4), torch.tensor([[0.0, 300, 900], [10, 10, 10]]), torch.randn(2, 7, 64)
    predicted = [net(x, t, net.prepare_context(words)) for net in (few, many)]
    assert predicted[0].std() > 0.1
    torch.testing.assert_close(*predicted)
    assert [dit.layers_in(dit.Trained(net, torch.nn.Identity()).state_dict()) for net in (few, many)] == [2, 5]
    # ... and what is new can learn: its outputs, and then all else.
    assert not many.blocks[1].ffn[2].weight.any() and many.blocks[1].ffn[0].weight.any()
    assert torch.equal(many.blocks[3].self_attn.q.weight, few.blocks[1].self_attn.q.weight)


def test_every_section_can_be_asked_for():
    assert tuple(evaluate.SECTIONS) == command.SECTIONS


def test_settings_are_those_of_training():
    assert TINY.shift == dit.SHIFT
    assert TINY.base_num_frames == TINY.num_frames == clips.FRAMES
    assert TINY.overlap_history == clips.HISTORY
    assert TINY.height == TINY.width == clips.SIDE


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["t2v"], "--out nothing: t2v needs vae/vae.json there, which the stage vae makes"),
        (["decoder"], "--out nothing: decoder needs tiny/df/model_index.json there, which the stage df makes"),
        (["df", "--start", "nowhere"], f"--start nowhere: must hold a finished df/, as {embedded.FOLDER} does"),
        (["sheet", "--model", "nowhere"], f"--model nowhere: must hold a finished df/, as {embedded.FOLDER} does"),
        (["curves", "--runs", "nowhere"], "--runs nowhere: must hold what the stages wrote, as their --out does"),
        (["df", "--steps", "0"], "argument --steps: 0: must be a whole number, at least 1"),
        (
            ["df", "--start", str(embedded.FOLDER), "--layers", "9"],
            "--layers 9: must be at least the 10 of the model that df begins with",
        ),
        (["vae", "--batch", "5"], "--batch 5: must be a multiple of --processes 2, which share it"),
        (["vae", "--device", "gpu"], "--device gpu: cannot be used on this machine (Expected one of cpu, cuda"),
    ],
)
def test_a_stage_that_cannot_begin_says_why_at_once(argv, line, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["training", *argv, "--out", "nothing"])
    monkeypatch.setattr(command, "run_stage", lambda args: pytest.fail("it has begun"))
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_df_takes_no_layers_from_what_t2v_made(tmp_path):
    (tmp_path / "t2v").mkdir()
    (tmp_path / "t2v" / command.ORIGIN).write_text('{"layers": "5"}')
    faults = [
        command.too_few_layers(types.SimpleNamespace(start=None, out=tmp_path, layers=layers)) for layers in (4, 5, 6)
    ]
    assert faults == ["--layers 4: must be at least the 5 of the model that df begins with", None, None]


@pytest.mark.parametrize(("device", "processes", "draw_ahead"), [("cpu", 2, False), ("meta", 1, True)])
def test_a_stage_suits_its_device(device, processes, draw_ahead, monkeypatch, tmp_path):
    """On a CPU a process a core; else one, for which others draw batches."""
    begun = []
    monkeypatch.setattr(command, "run_stage", lambda args: begun.append(args) or 0)
    monkeypatch.setattr("sys.argv", ["training", "vae", "--device", device, "--out", str(tmp_path)])
    assert command.main() == 0
    (args,) = begun
    assert (args.processes, args.batch, args.workers > 0) == (processes, 6, draw_ahead)


def test_a_checkpoint_that_began_elsewhere_is_not_gone_on_from(monkeypatch, tmp_path, capsys):
    """Else what --start names would be passed by without a word."""
    began = []
    monkeypatch.setattr(command, "run_stage", lambda args: began.append(args) or 0)
    for name in ("one", "other"):
        (tmp_path / name / "df" / "vae").mkdir(parents=True)
        (tmp_path / name / "df" / "model_index.json").touch()
        (tmp_path / name / "df" / "transformer").mkdir()
        (tmp_path / name / "df" / "transformer" / "config.json").write_text('{"num_layers": 4}')
        (tmp_path / name / "df" / "vae" / "weights.safetensors").write_text(name)

    def runs(*start, stage="decoder"):
        monkeypatch.setattr("sys.argv", ["training", stage, "--out", str(tmp_path), *start])
        before = len(began)
        try:
            assert command.main() == 0
        except SystemExit as stopped:
            assert stopped.code == 2
            line = capsys.readouterr().err.splitlines()[-1]
            assert f"--out {tmp_path}: the checkpoint of {stage} there did not begin with" in line
        return len(began) > before

    one, other = (("--start", str(tmp_path / name)) for name in ("one", "other"))
    (tmp_path / "tiny" / "df").mkdir(parents=True)
    (tmp_path / "tiny" / command.FINISHED).touch()
    assert runs(*other) and runs(*one)  # no checkpoint yet
    (tmp_path / "decoder" / "checkpoint.pt").touch()
    assert runs(*one) and not runs(*other) and not runs()
    (tmp_path / "decoder" / command.ORIGIN).unlink()  # made before origins were kept, by the stages themselves
    assert runs() and not runs(*one)

    assert runs(*one, stage="df")  # videos that what is shipped has not met, since none are named
    (tmp_path / "df" / "checkpoint.pt").touch()
    assert runs(*one, "--seed", str(command.SEED_FURTHER), stage="df") and runs(*one, stage="df")
    for other in ("--seed", "1"), ("--clips", "400"), ("--layers", "5"):
        assert not runs(*one, *other, stage="df")


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def alive(pid: int) -> bool:
    state = Path(f"/proc/{pid}/stat")
    try:
        return state.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="reads Linux's list of processes")
@pytest.mark.parametrize("shared", [["--processes", "2"], ["--processes", "1", "--workers", "2"]])
def test_a_run_ends_as_a_whole_and_no_second_one_joins_it(shared, tmp_path):
    command_line = [sys.executable, "-m", "training", "vae", "--out", str(tmp_path), *shared]
    # As a script's background jobs are: without the signal of Ctrl-C.
    ignoring = f"trap '' INT; exec {shlex.join(command_line)}"
    with subprocess.Popen(["sh", "-c", ignoring], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as run:
        try:
            deadline = time.monotonic() + 120
            while len(children(run.pid)) < 2 or not (tmp_path / "vae" / "lock").exists():
                assert run.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            second = subprocess.run(command_line, capture_output=True, text=True)
            time.sleep(5)  # so that they have begun
        finally:
            workers = children(run.pid)
            run.kill()
    deadline = time.monotonic() + 60
    while (left := [pid for pid in workers if alive(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert len(workers) >= 2 and not left
    assert second.returncode == 2
    assert second.stderr.splitlines()[-1].endswith(f"--out {tmp_path}: another run trains vae there")


def test_products_in_bfloat16_are_about_those_in_float32(store, model):
    """Losses and all gradients; what is compared with is the same model before."""
    torch.nn.init.normal_(model.transformer.head.head.weight, std=0.1)
    task = dit.text_loss(model, store, 4, dit.DF_MIX, CPU)

    def learned() -> dict[str, torch.Tensor]:
        model.zero_grad()
        value, _ = task(3, np.random.default_rng(0))
        value.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        return grads | {"loss": value.detach()}

    exact, parameters = learned(), dict(model.named_parameters())
    seen = mean_loss(task)
    products.use_bfloat16(model)
    about = learned()
    assert {name: id(p) for name, p in model.named_parameters()} == {name: id(p) for name, p in parameters.items()}
    assert exact.keys() == about.keys() and len(exact) > 60
    for name, value in exact.items():
        distance = (about[name] - value).norm() / value.norm()
        assert distance < 0.05, name
    assert (about["loss"] - exact["loss"]).abs() < 0.005 * exact["loss"] and about["loss"] != exact["loss"]
    assert mean_loss(task) == seen  # without gradients nothing has changed
    kinds = {name: type(layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)}
    assert kinds["transformer.blocks.1.self_attn.q"] == kinds["transformer.head.head"] == products.Bfloat16Linear
    assert kinds["transformer.time_embedding.0"] is Float32Linear  # is told exact levels


def test_products_in_bfloat16_are_for_cpus_that_have_them(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    assert products.worth_it(CPU) and not products.worth_it(torch.device("cuda"))
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True}, raising=False)
    assert not products.worth_it(CPU)


@pytest.mark.slow
def test_the_command_trains_all_stages_in_order(monkeypatch, tmp_path):
    """``python -m training STAGE`` for each, at sizes of seconds, up to videos by the pipelines."""
    brief = loop.Recipe(steps=2, muon=1e-3, adamw=1e-3)
    monkeypatch.setattr(vae, "SHAPE", VAE)
    monkeypatch.setattr(vae, "RECIPES", (brief, brief, brief))
    monkeypatch.setattr(vae, "judged", functools.partial(vae.judged, clips=1, frames=5))
    monkeypatch.setattr(vae, "latent_statistics", functools.partial(vae.latent_statistics, clips=2))
    for name in ("T2V", "DF", "I2V"):
        monkeypatch.setattr(dit, name, brief)
    monkeypatch.setattr(decoder, "RECIPE", brief)
    monkeypatch.setattr(decoder, "growth", functools.partial(decoder.growth, count=1, rounds=1))
    monkeypatch.setattr(dit, "SHAPE", SMALL)
    monkeypatch.setattr(text, "SENTENCES", 300)
    monkeypatch.setattr(command, "CLIPS", 10)
    monkeypatch.setattr(command, "TURNS", 100)
    monkeypatch.setattr(command, "IMAGE_CLIPS", 10)
    monkeypatch.setattr(evaluate, "quick", functools.partial(evaluate.quick, count=4))
    monkeypatch.setattr(command, "LAYERS", 1)

    def runs(stage: str, *argv: str, out: Path = tmp_path) -> bool:
        argv = ("training", stage, "--out", str(out), "--processes", "1", "--batch", "2", *argv)
        monkeypatch.setattr("sys.argv", argv)
        return command.main() == 0

    deeper = {"df": ("--layers", "2")}  # than what t2v has trained
    for stage in command.STAGES:
        assert runs(stage, *deeper.get(stage, ()))
    # A stage that is run again keeps what later ones have made.
    decoded = (tmp_path / "tiny/df/vae/diffusion_pytorch_model.safetensors").read_bytes()
    assert runs("df", *deeper["df"])
    assert (tmp_path / "tiny/df/vae/diffusion_pytorch_model.safetensors").read_bytes() == decoded

    models = evaluate.Models(tmp_path / "tiny")
    asked = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 1, "seed": 0, "prompt": "a red circle"}
    assert models(evaluate.DiffusionForcingPipeline)(**asked)[0].shape == (5, 16, 16, 3)
    picture = np.zeros((16, 16, 3), np.uint8)
    assert models(evaluate.Image2VideoPipeline)(**asked, image=picture)[0].shape == (5, 16, 16, 3)
    gates = [json.loads(line) for line in (tmp_path / "df" / "log.jsonl").read_text().splitlines()]
    assert "colour" in gates[-1] and "motion" in gates[-1]

    # What is finished can be gone on from where nothing else is left of its training, also with more layers.
    start = ("--start", str(tmp_path / "tiny"))
    assert runs("df", *start, "--steps", "1", "--layers", "3", out=tmp_path / "further")
    (further,) = [json.loads(line) for line in (tmp_path / "further" / "df" / "log.jsonl").read_text().splitlines()]
    assert further["step"] == 1
    before, after = (dit.load_finished(place / "df")[0] for place in (tmp_path / "tiny", tmp_path / "further/tiny"))
    assert (before.transformer.num_layers, after.transformer.num_layers) == (2, 3)
    before, after = dit.deepened(before.transformer, 3).state_dict(), after.transformer.state_dict()
    distance = max((before[name] - after[name]).abs().max().item() for name in before)
    assert 0 < distance < 0.01
