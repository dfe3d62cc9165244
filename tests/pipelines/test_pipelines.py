"""The pipelines: whole runs against diffusers', and what the published implementation gets wrong."""

import copy
import functools
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import pytest
import small_checkpoints
import torch
from peers import PeerScheduler, apart, small_model, small_vae
from PIL import Image

from skyreels_v2_infer import DiffusionForcingPipeline, Image2VideoPipeline, Text2VideoPipeline
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.pipelines import resizecrop
from skyreels_v2_infer.pipelines.conditioning import image_video, to_frames, to_video
from skyreels_v2_infer.pipelines.denoise import Guided
from skyreels_v2_infer.pipelines.history import Newest, Resume
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.plan.story import Scene
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.runtime import NoiseSource
from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule
from skyreels_v2_infer.scheduler.unipc import UniPC

RUN = 1e-3  # relative, of the latents at the end of a whole run
SHIFT, STEPS, HEIGHT, WIDTH = 5.0, 6, 48, 64


BRIEF = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 1, "seed": 0, "output_type": "latent"}
CHECKPOINTS = tempfile.TemporaryDirectory()  # removed when the process ends


@functools.cache
def folder(task: str) -> Path:
    return small_checkpoints.write_diffusers(Path(CHECKPOINTS.name) / task, task)


@functools.cache
def ours(task: str):
    kind = {"t2v": Text2VideoPipeline, "df": DiffusionForcingPipeline, "i2v": Image2VideoPipeline}[task]
    return kind(str(folder(task)), dit_path=str(folder(task)), device="cpu", weight_dtype=torch.float32)


def test_with_another_transformer_the_folder_needs_none(tmp_path):
    """As the published classes take their paths: the one for the VAE and the encoders, the other for the DiT."""
    for part in ("vae", "text_encoder", "tokenizer"):
        (tmp_path / part).symlink_to(folder("df") / part)
    pipeline = DiffusionForcingPipeline(tmp_path, dit_path=folder("df") / "transformer", device="cpu")
    made = pipeline(prompt="a swan", **BRIEF)
    assert torch.equal(made, ours("df")(prompt="a swan", **BRIEF))
    with pytest.raises(InputError, match="lacks the image encoder"):
        Image2VideoPipeline(tmp_path, dit_path=folder("i2v") / "transformer", device="cpu")


def theirs(kind, task: str):
    pipeline = kind.from_pretrained(folder(task), dtype=torch.float32)
    pipeline.scheduler = PeerScheduler(SHIFT)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def picture(seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    waves = [np.sin(rows / (7 + seed) + c) * np.cos(columns / (9 + seed) - c) for c in range(3)]
    return Image.fromarray((127 + 100 * np.stack(waves, -1)).astype(np.uint8))


@pytest.fixture(scope="module")
def text():
    embeds = ours("t2v").text_encoder.encode(["a swan on a lake", "blurred"], 512)
    return {"prompt_embeds": embeds[:1], "negative_prompt_embeds": embeds[1:]}


SHARED = {"height": HEIGHT, "width": WIDTH, "num_frames": 17, "num_inference_steps": STEPS, "guidance_scale": 4.0}


class TestAgainstDiffusers:
    def test_text_to_video(self, text):
        arguments = SHARED | text | {"output_type": "latent"}
        peer = theirs(diffusers.SkyReelsV2Pipeline, "t2v")(**arguments, generator=seeded(), return_dict=False)[0]
        assert apart(ours("t2v")(**arguments, shift=SHIFT, generator=seeded()), peer) <= RUN

    def test_text_to_video_from_text_to_pixels(self):
        """The text encoder and the VAE too, and the same latents handed over rather than drawn."""
        arguments = SHARED | {"prompt": "a swan  on a lake &amp; a boat", "negative_prompt": "blurred"}
        latents = torch.randn(1, 16, 5, HEIGHT // 8, WIDTH // 8, generator=seeded())
        peer = theirs(diffusers.SkyReelsV2Pipeline, "t2v")(**arguments, latents=latents, output_type="pt").frames
        frames = ours("t2v")(**arguments, shift=SHIFT, latents=latents, output_type="pt")
        assert apart(frames, peer) <= RUN

    def test_image_to_video(self, text):
        pipeline = ours("i2v")
        features = pipeline.image_encoder.encode(image_video(picture(), HEIGHT, WIDTH, pipeline.device)[:, :, 0])
        arguments = SHARED | text | {"image": picture(), "output_type": "latent"}
        peer = theirs(diffusers.SkyReelsV2ImageToVideoPipeline, "i2v")
        # It crops the middle before its image encoder; the published code, and ours, squash the whole frame.
        peer.encode_image = lambda image, device=None: features
        peer = peer(**arguments, generator=seeded(), return_dict=False)[0]
        assert apart(pipeline(**arguments, shift=SHIFT, generator=seeded()), peer) <= RUN

    @pytest.mark.parametrize(("ar_step", "block"), [(0, 1), (2, 1), (2, 5), (9, 5)])
    @pytest.mark.parametrize("fps", [16, 24])
    def test_diffusion_forcing(self, text, ar_step, block, fps):
        """diffusers masks as soon as a block is given, and asks for whole blocks: 37 frames are 10 latent frames."""
        arguments = SHARED | text | {"num_frames": 37, "output_type": "latent", "ar_step": ar_step, "fps": fps}
        peer = theirs(diffusers.SkyReelsV2DiffusionForcingPipeline, "df")(
            None, **arguments, causal_block_size=block, generator=seeded(), return_dict=False
        )[0]
        mine = ours("df")(
            **arguments, shift=SHIFT, causal_block_size=block, causal_attention=block > 1, generator=seeded()
        )
        assert apart(mine, peer) <= RUN

    @pytest.mark.parametrize(("ar_step", "block"), [(0, 1), (2, 5)])
    def test_diffusion_forcing_of_diffusers_as_it_stands(self, text, ar_step, block, monkeypatch):
        """With its solver's last sample overwritten under it (see PeerScheduler), and ours overwritten on purpose."""
        arguments = SHARED | text | {"num_frames": 37, "output_type": "latent", "ar_step": ar_step}
        peer = theirs(diffusers.SkyReelsV2DiffusionForcingPipeline, "df")
        peer.scheduler.overwritten = True
        peer = peer(None, **arguments, causal_block_size=block, generator=seeded(), return_dict=False)[0]
        mine = functools.partial(
            ours("df"), **arguments, shift=SHIFT, causal_block_size=block, causal_attention=block > 1
        )
        assert apart(mine(generator=seeded()), peer) > RUN
        advance = UniPC._advance

        def overwriting(velocity, sample, state, weights, first):
            advance(velocity, sample, state, weights, first)
            if first:
                state[0].copy_(sample)

        monkeypatch.setattr(UniPC, "_advance", staticmethod(overwriting))
        assert apart(mine(generator=seeded()), peer) <= RUN

    @pytest.mark.parametrize("addnoise", [0, 20])
    def test_diffusion_forcing_from_an_image(self, text, addnoise):
        arguments = SHARED | text | {"image": picture(), "output_type": "latent", "ar_step": 0}
        arguments["addnoise_condition"] = addnoise
        peer = theirs(diffusers.SkyReelsV2DiffusionForcingImageToVideoPipeline, "df")
        torch.manual_seed(5)  # it draws addnoise from the global generator: let ours be the same one
        peer = peer(**arguments, causal_block_size=1, return_dict=False)[0]
        torch.manual_seed(5)
        mine = ours("df")(**arguments, shift=SHIFT, generator=torch.default_generator)
        assert apart(mine, peer) <= RUN


@functools.cache
def parts():
    return small_model(), small_vae()


def forcing(transformer=None):
    return DiffusionForcingPipeline.from_parts(transformer or parts()[0], parts()[1])


def embeds(batch: int = 1) -> dict:
    drawn = torch.randn(2 * batch, 8, 24, generator=seeded())
    return {"prompt_embeds": drawn[:batch], "negative_prompt_embeds": drawn[batch:]}


SMALL = {"height": 32, "width": 48, "num_inference_steps": 2, "shift": 5.0, "ar_step": 0, "seed": 1}
LONG = SMALL | {"num_frames": 57, "base_num_frames": 25, "overlap_history": 9}


class Recorder(torch.nn.Module):
    """Stands for a transformer and keeps what it was shown."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, []

    def __getattr__(self, name):
        return super().__getattr__(name) if name in ("model", "calls") else getattr(self.model, name)

    def forward(self, x, t, context, **kw):
        self.calls.append((x.clone(), t.clone()))
        return self.model(x, t, context, **kw)


def recorded(**settings) -> list:
    recorder = Recorder(parts()[0])
    recorder.__dict__["calls"] = calls = []
    forcing(recorder)(**(SMALL | {"guidance_scale": 1.0} | settings), **embeds(), output_type="latent")
    return calls


class TestDefectsOfThePublishedCode:
    @pytest.mark.parametrize(("frames", "block", "ar_step"), [(29, 5, 0), (29, 5, 2), (41, 4, 1)])
    def test_no_frame_of_a_short_last_block_stays_noise(self, frames, block, ar_step):
        """Published: frames are floored to whole blocks. Here the last block of 8 or 11 latent frames is short."""
        settings = SMALL | {"num_frames": frames, "causal_block_size": block, "ar_step": ar_step}
        latents = (frames - 1) // 4 + 1
        noise = torch.randn(1, 16, latents, 4, 6, generator=seeded())
        done = forcing()(**settings, **embeds(), latents=noise, output_type="latent")
        assert done.shape == noise.shape
        assert all(apart(done[:, :, f], noise[:, :, f]) > 0.01 for f in range(latents))

    def test_an_image_inside_a_block_is_held(self):
        """Published: 1 // 5 = 0 blocks are ready, so the image is denoised like noise."""
        pipeline = forcing()
        image = image_video(picture(), 32, 48, pipeline.device)
        settings = SMALL | {"num_frames": 25, "causal_block_size": 5, "ar_step": 1, "image": picture()}
        done = pipeline(**settings, **embeds(), output_type="latent")
        assert torch.equal(done[:, :, :1], pipeline.vae.encode(image))
        calls = recorded(num_frames=25, causal_block_size=5, ar_step=1, image=picture())
        assert all(t[0, 0] == 0 for _, t in calls)
        assert all((x[:, :, 1:] != 0).any() for x, _ in calls)

    @pytest.mark.parametrize(("block", "ar_step"), [(1, 0), (5, 2)])
    def test_every_row_sees_the_end_image(self, block, ar_step):
        """Published: never seen with blocks."""
        calls = recorded(num_frames=25, end_image=picture(3), image=picture(), causal_block_size=block, ar_step=ar_step)
        end = parts()[1].encode(image_video(picture(3), 32, 48, torch.device("cpu")))
        assert all(torch.equal(x[:, :, -1:], end) and x.shape[2] == 8 and t[0, -1] == 0 for x, t in calls)

    def test_a_long_video_with_an_end_image_has_no_extra_frames(self):
        """Published: the end frame is not cut off and decodes to four more."""
        (frames,) = forcing()(**LONG, **embeds(), end_image=picture(3))
        assert frames.shape == (57, 32, 48, 3)

    def test_noise_on_the_history_comes_from_the_seed(self):
        settings = LONG | {"addnoise_condition": 50, "num_inference_steps": 2}
        torch.manual_seed(0)
        one = forcing()(**settings, **embeds(), output_type="latent")
        torch.manual_seed(1)
        assert torch.equal(forcing()(**settings, **embeds(), output_type="latent"), one)
        other = forcing()(**(settings | {"seed": 2}), **embeds(), output_type="latent")
        assert apart(other, one) > 1e-3
        without = forcing()(**LONG, **embeds(), output_type="latent")
        assert torch.equal(without[:, :, :7], one[:, :, :7])  # the first window has no history
        assert apart(without, one) > 1e-6

    def test_noise_on_the_history_is_shown_and_not_kept(self):
        held = parts()[1].encode(image_video(picture(), 32, 48, torch.device("cpu")))
        calls = recorded(num_frames=9, image=picture(), addnoise_condition=100)
        shown = [x[:, :, :1] for x, _ in calls]
        assert all(t.tolist()[0][0] == 100 for _, t in calls)
        assert not torch.equal(shown[0], shown[1])  # fresh in every row
        for row, x in enumerate(shown):
            noise = NoiseSource(SMALL["seed"]).history(0, row, tuple(held.shape))
            assert apart(x, 0.9 * held + 0.1 * noise) < 1e-6
        done = forcing()(
            **(SMALL | {"num_frames": 9}), **embeds(), image=picture(), addnoise_condition=100, output_type="latent"
        )
        assert torch.equal(done[:, :, :1], held)

    @pytest.mark.parametrize("asked", [57, 61, 65, 73, 77])
    def test_exactly_the_frames_asked_for(self, asked):
        (frames,) = forcing()(**(LONG | {"num_frames": asked}), **embeds())
        assert len(frames) == asked

    def test_colours_are_rounded(self):
        levels = torch.tensor([-1.0, -0.5, 0.0, 0.2, 0.9999, 1.0]).view(1, 1, 1, 1, 6).expand(1, 3, 1, 1, 6)
        assert to_frames(levels)[0, 0, 0, :, 0].tolist() == [0, 64, 128, 153, 255, 255]
        every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=-1)
        assert np.array_equal(to_frames(to_video(every, torch.device("cpu")))[0], every)

    def test_a_portrait_prefix_is_cropped_not_stretched(self):
        rows = np.linspace(0, 255, 100).astype(np.uint8)
        tall = np.broadcast_to(rows[None, :, None, None], (12, 100, 40, 3))
        (frames,) = forcing()(
            **(SMALL | {"num_frames": 8, "height": 48, "width": 32, "overlap_history": 9}),
            **embeds(),
            base_num_frames=25,
            prefix_video=np.ascontiguousarray(tall),
        )
        # 40 x 100 covers 32 x 48 at scale 0.8; of its 80 rows the middle 48 stay.
        expected = np.interp(np.linspace(20.5, 79.5, 48), np.arange(100), rows)
        assert np.abs(frames[:12].mean(axis=(0, 2, 3)) - expected).max() < 4


class TestWindows:
    def test_a_stream_is_the_whole_in_pieces(self):
        (whole,) = forcing()(**LONG, **embeds())
        pieces = list(forcing().stream(**LONG, **embeds()))
        assert len(pieces) >= 3
        assert all(piece.dtype == np.uint8 for piece in pieces)
        assert np.array_equal(np.concatenate(pieces), whole)

    def test_a_window_is_handed_out_before_the_next_is_begun(self):
        recorder = Recorder(parts()[0])
        recorder.__dict__["calls"] = calls = []
        stream = forcing(recorder).stream(**LONG, **embeds(), guidance_scale=1.0)
        next(stream)
        assert len(calls) == 2

    def test_later_windows_go_on_from_the_last_decoded_frames(self):
        pipeline = forcing()
        recorder = Recorder(parts()[0])
        recorder.__dict__["calls"] = calls = []
        whole = forcing(recorder)(**LONG, **embeds(), guidance_scale=1.0, output_type="pt")
        newest = whole.transpose(1, 2)[:, :, 25 - 9 : 25] * 2 - 1
        assert apart(calls[2][0][:, :, :3], pipeline.vae.encode(newest)) < 1e-5

    def test_an_extension_begins_with_the_video(self):
        prefix = np.stack([np.asarray(picture(i, 32, 48)) for i in range(20)])
        settings = SMALL | {"num_frames": 28, "base_num_frames": 25, "overlap_history": 9}
        (frames,) = forcing().extend_video(**settings, **embeds(), prefix_video_path=prefix)
        pictures = [Image.fromarray(frame) for frame in prefix]
        assert np.array_equal(frames, forcing().extend_video(**settings, **embeds(), prefix_video_path=pictures)[0])
        assert len(frames) == 48
        assert np.array_equal(frames[:20], prefix)

    def test_an_extension_adds_what_one_window_adds(self):
        prefix = np.stack([np.asarray(picture(i, 32, 48)) for i in range(10)])
        settings = {name: value for name, value in SMALL.items() if name != "num_frames"}
        settings |= {"base_num_frames": 21, "overlap_history": 9}
        (frames,) = forcing().extend_video(**settings, **embeds(), prefix_video_path=prefix)
        assert len(frames) == 10 + 12

    def test_an_extension_goes_on_from_the_newest_frames(self):
        prefix = np.stack([np.asarray(picture(i, 32, 48)) for i in range(20)])
        calls = recorded(num_frames=16, base_num_frames=25, overlap_history=9, prefix_video=prefix)
        newest = to_video(prefix[-9:], torch.device("cpu"))
        assert torch.equal(calls[0][0][:, :, :3], parts()[1].encode(newest))

    def test_latents_alone_need_no_pixels_of_the_last_window(self):
        vae, calls = small_vae(), []
        vae.decoder.register_forward_hook(lambda *_: calls.append(1))
        DiffusionForcingPipeline.from_parts(parts()[0], vae)(
            **(SMALL | {"num_frames": 25, "base_num_frames": 25}), **embeds(), output_type="latent"
        )
        assert not calls

    def test_latents_of_all_windows(self):
        done = forcing()(**LONG, **embeds(), output_type="latent")
        assert done.shape == (1, 16, 7 + 4 + 4, 4, 6)

    def test_held_history_is_bounded(self):
        history = Newest(9)
        for i in range(50):
            history.add(torch.full((1, 3, 4, 1, 1), float(i)))
            assert history.length <= 9 + 3
        assert history.newest(9)[0, 0, :, 0, 0].tolist() == [47] + [48] * 4 + [49] * 4


class TestHistories:
    """The history that a window gets, and runs that are resumed."""

    def test_by_latents_the_video_is_one_decode_and_windows_see_the_latents(self):
        settings = LONG | {"history": "latent", "guidance_scale": 1.0}
        latents = forcing()(**settings, **embeds(), output_type="latent")
        frames = forcing()(**settings, **embeds(), output_type="pt")
        assert frames.shape[1] == 57 and latents.shape[2] == 15
        decoded = parts()[1].decode(latents).transpose(1, 2).add(1).div(2)
        torch.testing.assert_close(frames, decoded, rtol=0, atol=1e-5)
        # Windows of 7 latents, 3 of which are given: those that the window before ended with. Two rows each.
        given = [x[:, :, :3] for x, _ in recorded(**settings)]
        assert torch.equal(given[2], latents[:, :, 4:7]) and torch.equal(given[4], latents[:, :, 8:11])

    def test_by_pixels_they_are_encoded_again(self):
        latents = forcing()(**LONG, guidance_scale=1.0, **embeds(), output_type="latent")
        assert not torch.equal(recorded(**LONG)[2][0][:, :, :3], latents[:, :, 4:7])

    @pytest.mark.parametrize("history", ["pixel", "latent"])
    @pytest.mark.parametrize("prefix", [0, 12])
    @pytest.mark.parametrize("denoised", [False, True])
    def test_a_run_that_is_taken_up_makes_the_same(self, history, prefix, denoised):
        settings = LONG | embeds() | {"history": history, "addnoise_condition": 20, "num_frames": 72 if prefix else 73}
        if prefix:
            settings["prefix_video"] = np.random.default_rng(0).integers(0, 255, (prefix, 32, 48, 3), np.uint8)
        made, kept = [], []
        for part in forcing().generate(**settings):
            made.append(torch.cat([piece.clone() for piece in part.pieces], dim=2))
            kept.append((part.window, part.whole, part.history and part.history.state().clone()))
        windows = len(kept) - bool(prefix)
        for i in range(1, len(kept)):
            window = i - bool(prefix)
            resume = Resume(window, kept[i][1] if denoised else None, kept[i - 1][2])
            rest = [torch.cat(list(part.pieces), dim=2) for part in forcing().generate(**settings, resume=resume)]
            assert len(rest) == windows - window
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(rest, made[i:], strict=True))

    def test_another_history_is_refused(self):
        with pytest.raises(ValueError, match="--history frames: must be pixel or latent"):
            forcing().generate(**SMALL, num_frames=5, history="frames")


class TestCalls:
    def test_causal_attention(self):
        settings = SMALL | {"num_frames": 25, "causal_block_size": 2}
        free = forcing()(**settings, **embeds(), output_type="latent")
        causal = forcing()(**settings, **embeds(), causal_attention=True, output_type="latent")
        assert apart(causal, free) > 1e-3
        model = small_model()
        model.set_ar_attention(2)  # as published code asks for it
        del settings["causal_block_size"]
        published = forcing(model)(**settings, **embeds(), output_type="latent")
        assert torch.equal(published, causal)

    @pytest.mark.parametrize(("block", "ar_step", "given"), [(1, 2, {}), (2, 1, {}), (3, 4, {"image": picture()})])
    @pytest.mark.parametrize("addnoise", [0, 20])
    def test_with_causal_attention_blocks_that_have_not_begun_are_left_out(
        self, block, ar_step, given, addnoise, monkeypatch
    ):
        windows = {"base_num_frames": 17, "overlap_history": 9, "ar_step": ar_step, "causal_block_size": block}
        plan = make_plan(25, 4, 5.0, image=bool(given), **windows)
        frames = [int(reach) for window in plan.windows for reach in window.schedule.reach(block)]
        assert len(plan.windows) == 2 and frames[0] < max(frames) == 5
        settings = {"num_frames": 25, "num_inference_steps": 4, "addnoise_condition": addnoise} | windows | given
        settings["causal_attention"] = True
        assert [x.shape[2] for x, _ in recorded(**settings)] == frames
        made = forcing()(**SMALL | settings, **embeds(), output_type="latent")
        monkeypatch.setattr(Schedule, "reach", lambda schedule, _: np.full(len(schedule), schedule.update.shape[1]))
        assert {x.shape[2] for x, _ in recorded(**settings)} == {5}
        assert apart(made, forcing()(**SMALL | settings, **embeds(), output_type="latent")) < 1e-5

    def test_guidance_up_to_one_takes_half_the_forwards(self):
        def count(scale):
            recorder = Recorder(parts()[0])
            recorder.__dict__["calls"] = calls = []
            forcing(recorder)(**SMALL, num_frames=5, guidance_scale=scale, **embeds(), output_type="latent")
            return sum(len(x) for x, _ in calls)

        assert [count(scale) for scale in (0.0, 1.0, 3.0)] == [2, 2, 4]

    @pytest.mark.parametrize("scale", [1.25, 6.0])
    def test_guidance(self, scale):
        x = torch.ones(1)
        guided = Guided(lambda x, t: 3 * x, lambda x, t: 5 * x, scale)
        assert guided(x, x).item() == pytest.approx(5 + scale * (3 - 5))

    @pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
    def test_without_guidance_the_prompt_stands_alone(self, scale):
        """As in the published diffusion forcing and in diffusers; 0 would else be the negative prompt's video."""
        x = torch.ones(1)
        assert Guided(lambda x, t: 3 * x, None, scale)(x, x).item() == 3

    def test_prompts_are_encoded_and_projected_once(self):
        pipeline, calls = ours("df"), []
        handle = pipeline.transformer.text_embedding.register_forward_hook(lambda *_: calls.append(1))
        try:
            pipeline("a swan", "a blur", **LONG, output_type="latent")
        finally:
            handle.remove()
        assert len(calls) == 2

    def test_several_prompts_are_several_videos(self):
        both = forcing()(**LONG, **embeds(2))
        assert [video.shape for video in both] == [(57, 32, 48, 3)] * 2
        assert not np.array_equal(*both)

    def test_a_batch_is_each_alone(self):
        noise = torch.randn(2, 16, 3, 4, 6, generator=seeded())
        settings = SMALL | {"num_frames": 9, "output_type": "latent"}
        both = forcing()(**settings, **embeds(2), latents=noise)
        for i in range(2):
            one = {name: value[i : i + 1] for name, value in embeds(2).items()}
            assert apart(both[i : i + 1], forcing()(**settings, **one, latents=noise[i : i + 1])) < 1e-5

    def test_noise_depends_on_seed_and_window_only(self):
        one, two = (forcing()(**(LONG | {"seed": s}), **embeds(), output_type="latent") for s in (1, 2))
        assert torch.equal(forcing()(**LONG, **embeds(), output_type="latent"), one)
        assert apart(one, two) > 1e-3

    def test_every_window_starts_from_noise_of_its_own(self):
        calls = recorded(**{name: LONG[name] for name in ("num_frames", "base_num_frames", "overlap_history")})
        for window, (x, _) in enumerate(calls[::2]):
            history = 3 if window else 0
            noise = NoiseSource(SMALL["seed"]).latents(window, tuple(x.shape))
            assert torch.equal(x[:, :, history:], noise[:, :, history:])
        first, second, third = (x[:, :, 3:7] for x, _ in calls[::2])
        assert not torch.equal(first, second) and not torch.equal(second, third)

    def test_a_callback_sees_every_row_and_may_replace_latents(self):
        seen = []

        def look(pipeline, row, t, given):
            seen.append((row, t.tolist()))
            return {"latents": torch.zeros_like(given["latents"])}

        done = forcing()(**SMALL, num_frames=5, **embeds(), output_type="latent", callback_on_step_end=look)
        assert [row for row, _ in seen] == [0, 1]
        assert all(len(t) == 2 for _, t in seen)
        assert not done.any()

    def test_a_look_sees_what_every_row_leads_to(self):
        seen = []

        def look(window, row, rows, estimate):
            seen.append((window, row, rows, estimate()))

        pipeline = DiffusionForcingPipeline.from_parts(*parts(), hooks=Hooks(look=look))
        done = pipeline(**LONG, **embeds(), output_type="latent")
        again = DiffusionForcingPipeline.from_parts(*parts())(**LONG, **embeds(), output_type="latent")
        assert torch.equal(done, again)
        assert [one[:3] for one in seen] == [(window, row, 2) for window in range(3) for row in range(2)]
        # The last step ends at its estimate, and frames of the history stay as they are.
        assert torch.allclose(seen[1][3], done[:, :, : seen[1][3].shape[2]], atol=1e-5)
        assert not torch.allclose(seen[0][3], seen[1][3], atol=1e-2)

    def test_progress_counts_rows_and_frames(self):
        made = []

        def progress():
            made.append(VideoProgress())
            return made[-1]

        pipeline = DiffusionForcingPipeline.from_parts(*parts(), hooks=Hooks(progress=progress))
        windows = [(one.window, made[0].window, made[0].row) for one in pipeline.generate(**LONG, **embeds())]
        assert windows == [(0, 1, 0), (1, 2, 0), (2, 3, 0)] and [len(one.rows) for one in made[0].work] == [2, 2, 2]
        frames = [one.frames for one in made[0].work]
        assert made[0].decoded == sum(frames[:-1])  # the last window's pieces were not read
        assert made[0].seconds_left > 0 and made[0].seconds_a_row > 0

    def test_a_callback_s_latents_keep_the_run_s_precision(self):
        def halved(pipeline, row, t, given):
            return {"latents": given["latents"].to(torch.bfloat16)}

        done = forcing()(**SMALL, num_frames=5, **embeds(), output_type="latent", callback_on_step_end=halved)
        assert done.dtype == torch.float32

        def cut(pipeline, row, t, given):
            return {"latents": given["latents"][:, :, :1]}

        with pytest.raises(ValueError, match="callback_on_step_end"):
            forcing()(**SMALL, num_frames=5, **embeds(), output_type="latent", callback_on_step_end=cut)

    def test_a_story_encodes_each_distinct_text_once(self, monkeypatch):
        pipeline, texts = ours("df"), []
        encode = pipeline.text_encoder.encode
        monkeypatch.setattr(pipeline.text_encoder, "encode", lambda t, n: texts.append(t) or encode(t, n))
        story = [Scene(0, "a swan"), Scene(25, "a boat"), Scene(41, "a swan")]
        pipeline(negative_prompt="a blur", **LONG, story=story, output_type="latent")
        assert sorted(texts) == ["a blur", "a boat", "a swan"]

    def test_a_text_beside_its_embeddings_is_refused(self):
        with pytest.raises(ValueError, match="prompt: not together with prompt_embeds"):
            forcing()("a swan", **SMALL, num_frames=5, **embeds())
        with pytest.raises(ValueError, match="negative_prompt: not together with negative_prompt_embeds"):
            forcing()(negative_prompt="a blur", **SMALL, num_frames=5, **embeds())

    def test_output_types(self):
        settings = SMALL | {"num_frames": 9}
        (frames,) = forcing()(**settings, **embeds())
        tensor = forcing()(**settings, **embeds(), output_type="pt")
        assert tensor.shape == (1, 9, 3, 32, 48)
        assert np.abs(frames - tensor[0].permute(0, 2, 3, 1).mul(255).numpy()).max() <= 0.51

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"height": 40}, "height 40: must be a multiple of 16"),
            ({"num_frames": 10}, "num_frames 10"),
            ({"num_frames": 101}, "overlap_history not given"),
            ({"num_inference_steps": 0}, "num_inference_steps 0"),
            ({"shift": 0.0}, "shift 0"),
            ({"ar_step": -1}, "ar_step -1"),
            ({"addnoise_condition": 1000}, "addnoise_condition 1000"),
            ({"output_type": "pil"}, "output_type 'pil'"),
            ({"latents": torch.zeros(1, 16, 9, 4, 6)}, "latents"),
            ({"image": "file.png"}, "image: must be a PIL image"),
            ({"end_image": picture(), "causal_attention": True}, "end_image"),
            ({"image": picture(), "prefix_video": np.zeros((9, 8, 8, 3), np.uint8), "num_frames": 8}, "image"),
            ({"prefix_video": np.zeros((0, 8, 8, 3), np.uint8), "num_frames": 8}, "prefix_video"),
            ({"prefix_video": np.zeros((9, 8, 8, 3), np.float32), "num_frames": 8}, "prefix_video, each frame"),
            ({"prefix_video": [picture(), "frame.png"], "num_frames": 8}, "prefix_video, each frame"),
            ({"prompt_embeds": None}, "prompt"),
            ({"seed": -1}, "seed -1"),
        ],
    )
    def test_bad_arguments_are_named(self, settings, message):
        with pytest.raises(ValueError, match=message):
            forcing()(**(SMALL | {"num_frames": 5} | embeds() | settings))

    def test_bad_arguments_show_before_the_stream_is_read(self):
        with pytest.raises(ValueError, match="num_frames 10"):
            forcing().stream(**SMALL, num_frames=10, **embeds())

    def test_a_model_of_the_other_kind_is_refused(self):
        with pytest.raises(ValueError, match="needs a text-to-video"):
            DiffusionForcingPipeline.from_parts(small_model(task="i2v"), small_vae())
        with pytest.raises(ValueError, match="needs an image-to-video"):
            Image2VideoPipeline.from_parts(small_model(), small_vae())
        with pytest.raises(ValueError, match="needs a text-to-video"):
            Text2VideoPipeline(str(folder("i2v")), device="cpu")

    def test_autocast_around_a_call_changes_nothing(self):
        """Published code has it, and so lowers the VAE and the solver to bfloat16."""
        settings = SMALL | {"num_frames": 9}
        plain = forcing()(**settings, **embeds(), output_type="pt")
        (frames,) = forcing()(**settings, **embeds())
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(forcing()(**settings, **embeds(), output_type="pt"), plain)
            pieces = []
            for piece in forcing().stream(**settings, **embeds()):
                assert torch.is_autocast_enabled("cpu")
                pieces.append(piece)
        assert np.array_equal(np.concatenate(pieces), frames)

    def test_what_is_handed_in_is_not_changed(self):
        latents = torch.randn(1, 16, 3, 4, 6, generator=seeded())
        before, kept = latents.clone(), []
        look = lambda pipeline, row, t, given: kept.append(given["latents"])  # noqa: E731
        forcing()(
            **SMALL,
            num_frames=9,
            **embeds(),
            latents=latents,
            image=picture(),
            output_type="latent",
            callback_on_step_end=look,
        )
        assert torch.equal(latents, before)
        assert not torch.equal(kept[0], kept[1])  # of every row its own

    def test_without_a_seed_noise_follows_the_global_generator(self):
        settings = {name: value for name, value in SMALL.items() if name != "seed"} | {"num_frames": 5}

        def drawn(seed):
            torch.manual_seed(seed)
            return forcing()(**settings, **embeds(), output_type="latent"), torch.rand(1)

        assert all(torch.equal(a, b) for a, b in zip(drawn(1), drawn(1), strict=True))
        assert not torch.equal(drawn(1)[0], drawn(2)[0])

    def test_resizecrop_is_what_the_pipelines_do(self):
        wide = picture(height=64, width=200)
        cropped = resizecrop(wide, 32, 48)
        assert cropped.size == (48, 32) and resizecrop(image=wide, th=32, tw=48) == cropped
        cpu = torch.device("cpu")
        assert torch.equal(image_video(cropped, 32, 48, cpu), image_video(wide, 32, 48, cpu))

    def test_nothing_tracks_gradients(self):
        learning = DiffusionForcingPipeline.from_parts(*(copy.deepcopy(part).requires_grad_() for part in parts()))
        (part,) = learning.generate(**SMALL, num_frames=5, **embeds())
        assert not part.latents.requires_grad
        assert not any(piece.requires_grad for piece in part.pieces)
