"""The training loop and the stages on it: losses fall, and a stopped run goes on as if nothing had happened."""

import functools
import json
import os

import numpy as np
import pytest
import torch
from torch import nn

from skyreels_v2_infer.modules import WanVAE
from training import loop, vae, world

pytestmark = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="training needs torch 2.9 or later")


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.SiLU(), nn.Conv2d(4, 1, 3, padding=1))


def small_loss(net: nn.Module) -> loop.Task:
    """To learn: a blur."""

    def draw(step: int, draws: np.random.Generator):
        return step, torch.from_numpy(draws.standard_normal((8, 1, 8, 8), dtype=np.float32))

    def loss(batch):
        step, x = batch
        target = nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        return (net(x) - target).pow(2).mean(), {"seen": float(step)}

    return loop.Task(draw, loss)


RECIPE = loop.Recipe(steps=60, muon=2e-2, adamw=1e-2, warmup=5)


def test_the_loss_falls_and_is_noted(tmp_path):
    net = small_net()
    loss = small_loss(net)
    before = np.mean([loss(0, np.random.default_rng(i))[0].item() for i in range(8)])
    assert loop.fit(net, loss, RECIPE, tmp_path, log_every=10)
    after = np.mean([loss(0, np.random.default_rng(i))[0].item() for i in range(8)])
    assert after < 0.3 * before
    notes = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [n["step"] for n in notes] == [10, 20, 30, 40, 50, 60]
    assert notes[-1]["loss"] < notes[0]["loss"]
    assert [n["seen"] for n in notes] == [4.5, 14.5, 24.5, 34.5, 44.5, 54.5]  # means of the steps


def test_what_is_noted_after_a_stop_is_a_mean_too(tmp_path):
    net = small_net()
    for _ in range(3):
        loop.fit(net, small_loss(net), RECIPE, tmp_path, minutes=0, log_every=100)
    loop.fit(net, small_loss(net), RECIPE, tmp_path, log_every=10)
    notes = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert notes[0]["seen"] == 6.0  # of the steps 3 to 9


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path):
    whole, parts = small_net(), None
    assert loop.fit(whole, small_loss(whole), RECIPE, tmp_path / "whole")
    done = [False]
    while not done[-1]:
        parts = small_net()  # as a new process would
        done.append(loop.fit(parts, small_loss(parts), RECIPE, tmp_path / "parts", minutes=0))
    assert len(done) > RECIPE.steps  # it has stopped after every step
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    kept = [torch.load(tmp_path / name / "checkpoint.pt", weights_only=False) for name in ("whole", "parts")]
    for part in ("average", "module"):
        assert all(torch.equal(kept[0][part][name], kept[1][part][name]) for name in kept[0][part])


def test_batches_that_others_draw_ahead_are_the_same(tmp_path):
    assert os.getpid() not in loop.ahead(lambda step: os.getpid(), range(4), workers=2)
    here, ahead = small_net(), small_net()
    assert loop.fit(here, small_loss(here), RECIPE, tmp_path / "here")
    assert loop.fit(ahead, small_loss(ahead), RECIPE, tmp_path / "ahead", workers=2)
    for mine, theirs in zip(ahead.parameters(), here.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_matrices_learn_together_as_torch_has_them_learn_one_by_one():
    torch.manual_seed(0)
    sizes = [(8, 8), (12, 6), (8, 8), (6, 12), (8, 8)]
    ours, theirs = ([nn.Parameter(torch.randn(size)) for size in sizes] for _ in range(2))
    for mine, other in zip(ours, theirs, strict=True):
        other.data.copy_(mine.data)
    together = loop.Muon(ours, lr=0.02)
    alone = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")
    start = [p.detach().clone() for p in ours]
    for _ in range(4):
        for i, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
            mine.grad = torch.randn(mine.shape) if i != 2 else None  # a batch need not use all
            other.grad = None if mine.grad is None else mine.grad.clone()
        together.step()
        alone.step()
    for before, mine, other in zip(start, ours, theirs, strict=True):
        moved = (other - before).norm()
        assert (mine - other).norm() <= 0.02 * moved  # bfloat16, whose sums have another order
    assert torch.equal(ours[2], start[2]) and not torch.equal(ours[0], start[0])


def test_the_average_is_not_the_last(tmp_path):
    net = small_net()
    loop.fit(net, small_loss(net), RECIPE, tmp_path)
    average = loop.average_of(tmp_path)
    last = torch.load(tmp_path / "checkpoint.pt", weights_only=False)["module"]
    assert any(not torch.equal(average[name], last[name]) for name in average)
    assert all(torch.equal(average[name], p) for name, p in net.named_parameters())  # what the next stage begins with


def test_a_stop_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    (tmp_path / "checkpoint.pt").write_bytes(b"whole")
    monkeypatch.setattr(torch, "save", lambda content, path: (path.write_bytes(b"ha"), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        loop.save(tmp_path / "checkpoint.pt", {})
    assert (tmp_path / "checkpoint.pt").read_bytes() == b"whole"


def test_tables_are_not_trained_as_maps():
    net = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3))
    optimizers = loop.Optimizers(net, RECIPE)
    assert [weight.shape for weight, _ in optimizers.large] == [(3, 4)]


def test_learning_rates():
    recipe = loop.Recipe(steps=100, muon=1.0, adamw=1.0, warmup=10, decay=0.5)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:50] == [1.0] * 41
    assert rates[75] == pytest.approx(0.5)
    assert rates[99] == pytest.approx(0.02)
    assert rates[50:] == sorted(rates[50:], reverse=True)


def test_batches_are_clips_of_the_world():
    video, weight = vae.batch(np.random.default_rng(0), 4, 13, 48)
    assert video.shape == (4, 3, 13, 48, 48)
    assert weight.shape == (4, 1, 13, 48, 48)
    assert -1 <= video.min() < video.max() <= 1
    assert set(weight.unique().tolist()) == {1.0, 1 + vae.OBJECT}
    again, _ = vae.batch(np.random.default_rng(0), 4, 13, 48)
    assert torch.equal(video, again)


def test_reconstruction_counts_objects_and_edges_more():
    video = torch.zeros(1, 3, 5, 8, 8)
    weight = torch.ones(1, 1, 5, 8, 8)
    weight[..., 0, 0] = 4
    off_object, off_ground = video.clone(), video.clone()
    off_object[..., 0, 0] = off_ground[..., 7, 7] = 0.1
    losses = [vae.reconstruction(out, video, weight).item() for out in (video, off_ground, off_object)]
    assert losses[0] == 0
    assert losses[0] < losses[1] < losses[2]


def test_the_vae_learns_and_is_exported_for_the_real_class(tmp_path, monkeypatch):
    shape = {"dim": 4, "z_dim": 16, "multipliers": (1, 2, 4, 8), "blocks": 1}
    monkeypatch.setattr(vae, "SHAPE", shape)
    monkeypatch.setattr(vae, "LONG", ((1.0, 5, 48),))
    monkeypatch.setattr(vae, "latent_statistics", lambda model, clips=2: ([0.0] * 16, [1.0] * 16))
    judged = functools.partial(vae.judged, clips=2, frames=5)
    monkeypatch.setattr(vae, "judged", judged)
    main = loop.Recipe(steps=12, muon=1e-2, adamw=5e-3, warmup=3)
    align = loop.Recipe(steps=12, muon=1e-2, adamw=5e-3, warmup=3, decay=0.0)
    finish = loop.Recipe(steps=2, muon=1e-3, adamw=1e-3)
    assert vae.train(tmp_path, torch.device("cpu"), 60, 1, (main, align, finish), shape)
    notes = [json.loads(line) for line in (tmp_path / "main" / "log.jsonl").read_text().splitlines()]
    assert [n["step"] for n in notes if "held_out_psnr" in n] == [12]
    from safetensors.torch import load_file

    settings = json.loads((tmp_path / "vae.json").read_text())
    made = WanVAE(**settings)
    made.load_state_dict(load_file(tmp_path / "vae.safetensors"))
    torch.manual_seed(0)
    start = WanVAE(**shape)
    assert judged(made)["held_out_psnr"] > judged(start)["held_out_psnr"] + 1

    def apart(model: WanVAE) -> float:
        """How much the latents of a still video differ among themselves."""
        still = vae.batch(np.random.default_rng(3), 2, 5, 64)[0][:, :, :1].expand(-1, -1, 9, -1, -1)
        with torch.no_grad():
            codes = vae.encode(model, still.contiguous())[0]
        return float(codes.diff(dim=2).square().mean() / codes.var())

    before = WanVAE(**shape)
    before.load_state_dict(loop.average_of(tmp_path / "main"))
    assert apart(made) < 0.8 * apart(before)


def test_a_picture_of_how_training_went(tmp_path):
    pytest.importorskip("matplotlib")
    from PIL import Image

    from training import pictures

    for stage in ("vae/main", "df"):
        (tmp_path / stage).mkdir(parents=True)
        for step in (10, 20, 30):
            loop.note(tmp_path / stage, {"step": step, "loss": 1 / step})
            loop.note(tmp_path / stage, {"step": step, "held_out_psnr": 20.0 + step, "held_out_worst": 9.0})
    pictures.curves(tmp_path, tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.size == (600, 500)
        assert len(picture.convert("RGB").getcolors(100_000)) > 10


def test_a_sheet_of_videos_moves_and_names_them(tmp_path):
    from PIL import Image, ImageSequence

    from training import pictures

    videos = np.zeros((3, 5, 16, 24, 3), np.uint8)
    for t in range(5):
        videos[:, t, :, 4 * t : 4 * t + 4] = 255
    pictures.sheet([("a prompt", video) for video in videos], tmp_path / "sheet.gif", columns=2)
    with Image.open(tmp_path / "sheet.gif") as picture:
        frames = [np.array(frame.convert("L")) for frame in ImageSequence.Iterator(picture)]
    assert len(frames) == 5
    assert frames[0].shape == (2 * (32 + pictures.CAPTION), 2 * 48 + 4)
    assert all((frames[t][pictures.CAPTION + 8, 8 * t + 4] > 250) for t in range(5))
    assert frames[0][: pictures.CAPTION, :48].min() < 100  # the caption
    assert pictures.wrapped("one two three", 30).count("\n") >= 1


def test_what_stands_still_does_not_flicker_in_a_sheet(tmp_path):
    from PIL import Image, ImageSequence

    from training import pictures

    draws = np.random.default_rng(0)
    video = np.repeat(draws.integers(0, 256, (1, 32, 32, 3), dtype=np.uint8), 4, axis=0)  # more colours than a GIF has
    video[:, :, 16:] = draws.integers(0, 256, (4, 32, 16, 3))
    pictures.sheet([("a prompt", video)], tmp_path / "sheet.gif")
    with Image.open(tmp_path / "sheet.gif") as picture:
        frames = np.stack([np.array(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])
    assert (frames[:, :, :32] == frames[0, :, :32]).all() and (frames[1] != frames[0]).any()


def test_as_much_counts_just_outside_an_outline_as_inside():
    clip = world.Clip(world.Scene(start=(32.0, 32.0)), "", {}, {}, 5)
    _, weight = vae.pictures([clip], np.random.default_rng(0), 64)
    across = weight[0, 0, 2, 32].tolist()  # through the middle of a circle of radius 11
    inside, background = 1 + vae.OBJECT, 1.0
    assert across[32] == across[22] == across[19] == across[44] == inside
    assert across[15] == across[48] == background
