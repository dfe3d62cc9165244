"""Diffusion forcing: windows that go on from one another, from an image or from a video, towards an end image."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from skyreels_v2_infer.pipelines.base import Prompts, VideoPipeline, choose_noise
from skyreels_v2_infer.pipelines.conditioning import NoisedHistory, Prefix, count_frames, image_video, prefix_pieces
from skyreels_v2_infer.pipelines.history import Finished, History, LatentHistory, Resume
from skyreels_v2_infer.plan.plan import Plan, WindowPlan, make_plan
from skyreels_v2_infer.plan.sizes import check_size
from skyreels_v2_infer.plan.story import Scene, scenes_of
from skyreels_v2_infer.runtime import Noise, NoiseSource
from skyreels_v2_infer.scheduler.windows import frames_of_one_more

HISTORIES = ("pixel", "latent")


@dataclass(frozen=True)
class Conditions:
    """What is given beside text: each video float32 ``[1, 3, 1, H, W]`` in -1..1; a prefix as path or frames."""

    height: int
    width: int
    image: torch.Tensor | None
    end_image: torch.Tensor | None
    prefix: Prefix | None
    addnoise: float


class DiffusionForcingPipeline(VideoPipeline):
    """Videos of any length, with a diffusion-forcing model."""

    def generate(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = "",
        image=None,
        end_image=None,
        height: int = 480,
        width: int = 832,
        num_frames: int | None = None,
        num_inference_steps: int = 50,
        shift: float = 1.0,
        guidance_scale: float = 5.0,
        generator: torch.Generator | None = None,
        overlap_history: int | None = None,
        addnoise_condition: float = 0,
        base_num_frames: int = 97,
        ar_step: int = 5,
        causal_block_size: int | None = None,
        fps: int = 24,
        causal_attention: bool = False,
        seed: int | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        callback_on_step_end=None,
        prefix_video: Prefix | None = None,
        resume: Resume | None = None,
        story: Sequence[Scene] | None = None,
        history: str = "pixel",
    ) -> Iterator[Finished]:
        """Plans a video, checks the arguments, and yields what is finished, window by window.

        Args:
            prompt, negative_prompt: text, or a text for each of several videos of one call.
            image: PIL image or uint8 ``[H, W, 3]`` that the video begins with.
            end_image: the same, that the video runs towards; it is not itself a frame of the video.
            height, width: in pixels, multiples of 16; images and videos are scaled to cover and cropped at the centre.
            num_frames: 4n+1, None: 97; with a prefix, the frames to add to it, a multiple of 4, None: what one window
                adds.
            num_inference_steps: steps of every frame, at least 1.
            shift: above 0; higher spends more steps at high noise.
            guidance_scale: up to 1 is no guidance, and half the work.
            generator: draws the noise: a window's latents, then row by row what is put on its history. Without one,
                noise is a function of `seed` (None: a new one), window and row.
            overlap_history: frames of the past that a window goes on from, 4n+1, below `base_num_frames`.
            addnoise_condition: noise shown on given frames, in thousandths, 0 to below 1000; 20 is recommended.
            base_num_frames: frames of a window, 4n+1.
            ar_step: steps that a block is behind the block before it; 0 denoises all frames together.
            causal_block_size: latent frames in a block; None: what `set_ar_attention` has set, else 1.
            fps: told to models that know about it.
            causal_attention: a block sees itself and earlier blocks only.
            prompt_embeds, negative_prompt_embeds: text embeddings ``[B, L, text_dim]`` in place of text.
            latents: initial noise of the first window ``[B, 16, F, height/8, width/8]``.
            callback_on_step_end: ``(pipeline, row, timesteps [F], {"latents": ...}) -> dict or None``; latents in the
                dict replace those of the run.
            prefix_video: path of a video, or its frames (see `Prefix`), to go on from; its frames come first.
            resume: where a run that was stopped goes on; what it has made does not come again.
            story: scenes in place of `prompt`; each begins with a window.
            history: "pixel": a window goes on from decoded frames, which are encoded again. "latent": from latents, and
                the whole video is decoded in one stream.

        Raises:
            ValueError: names the argument, its value and the nearest legal values.
        """
        check_size(height, width)
        if num_frames is None:
            num_frames = 97 if prefix_video is None else frames_of_one_more(base_num_frames, overlap_history)
        if not 0 <= addnoise_condition < 1000:
            raise ValueError(f"addnoise_condition {addnoise_condition}: must be from 0 to below 1000")
        if causal_block_size is None:
            causal_block_size = self.transformer.causal_block_size or 1
        causal_attention = causal_attention or self.transformer.causal_block_size is not None
        if causal_attention and end_image is not None:
            raise ValueError("end_image: with causal attention no earlier frame would see it")
        plan = make_plan(
            num_frames,
            num_inference_steps,
            shift,
            base_num_frames=base_num_frames,
            overlap_history=overlap_history,
            ar_step=ar_step,
            causal_block_size=causal_block_size,
            prefix_frames=count_frames(prefix_video),
            image=image is not None,
            end_image=end_image is not None,
        )
        conditions = Conditions(
            height,
            width,
            None if image is None else image_video(image, height, width, self.device),
            None if end_image is None else image_video(end_image, height, width, self.device),
            prefix_video,
            addnoise_condition,
        )
        if history not in HISTORIES:
            raise ValueError(f"history {history!r}: must be {' or '.join(HISTORIES)}")
        if story is not None and prompt_embeds is not None:
            raise ValueError("story: scenes have prompts of their own; give it or prompt_embeds")
        scenes = None if story is None else scenes_of(story, [window.window for window in plan.windows])
        return self._run(
            plan,
            (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance_scale),
            conditions,
            choose_noise(generator, seed, self.agree, self.device),
            latents,
            resume,
            scenes,
            history == "latent",
            fps=fps,
            callback=callback_on_step_end,
            causal_block_size=causal_block_size if causal_attention else None,
        )

    def extend_video(self, *args, prefix_video_path: Prefix, **kwargs):
        """A video followed by `num_frames` new frames; arguments as for `generate`, results as for a call.

        Args:
            prefix_video_path: path of the video, or its frames, uint8 ``[T, H, W, 3]`` or a list of pictures; at least
                `overlap_history`.
        """
        return self(*args, prefix_video=prefix_video_path, **kwargs)

    @torch.no_grad()
    def _run(
        self,
        plan: Plan,
        texts,
        given: Conditions,
        noise: Noise,
        latents: torch.Tensor | None,
        resume: Resume | None,
        scenes: list[Scene] | None,
        by_latents: bool,
        **options,
    ) -> Iterator[Finished]:
        first = 0 if resume is None else resume.window
        scene = None if scenes is None else scenes[first]
        prompts = self._encode_prompts(*told(scene, texts))
        history = History(plan.longest_history)
        tail = LatentHistory(max(self.vae.decoder_memory, plan.most_history_latents)) if by_latents else None
        if resume is None:
            resume = Resume()
            if given.prefix is not None:
                pieces = self._prefix(given, prompts.batch, history)
                yield Finished(None, pieces, history=history)
                exhaust(pieces)
        if resume.history is not None and by_latents and resume.window:
            with self.at_work(self.vae, tail.memory):
                lengths = [w.latents - (w.window.history_latents if w.window.index else 0) for w in plan.windows]
                tail.restore(resume.history, lengths[: resume.window], self.vae)
        elif resume.history is not None:
            history.add(resume.history)
        for window in plan.windows[resume.window :]:
            index, done = window.window.index, None
            if index == resume.window and resume.latents is not None:
                done = resume.latents.to(self.device)
            if scenes is not None and scenes[index] != scene:
                scene = scenes[index]
                prompts = self._encode_prompts(*told(scene, texts))
            drawn = noise if scene is None or scene.seed is None else NoiseSource(scene.seed)
            if done is None:
                fresh = self._initial_latents(
                    prompts, window, given.height, given.width, drawn, None if index else latents
                )
                fresh = self._place_given(window, prompts, fresh, given, tail if by_latents and index else history)
                show = None
                if given.addnoise and window.given_latents:
                    show = NoisedHistory(drawn, index, window.given_latents, given.addnoise)
                done = self._denoise_window(plan, window, prompts, fresh, show=show, **options)
                done = done[:, :, : window.latents - window.end_latents]
            new = done[:, :, window.window.history_latents :]
            if by_latents:
                follows = (new, 0) if index else (done, window.window.history_frames)
                pieces = self._decode_on(*follows, tail)
            else:
                pieces = self._decode(window, done, history)
            yield Finished(new, pieces, index, done, tail if by_latents else history)
            if window is not plan.windows[-1]:
                exhaust(pieces)

    def _encode_video(self, video: torch.Tensor) -> torch.Tensor:
        with self.at_work(self.vae):
            return self.vae.encode(video)

    @torch.no_grad()
    def _prefix(self, given: Conditions, batch: int, history: History) -> Iterator[torch.Tensor]:
        for piece in prefix_pieces(given.prefix, given.height, given.width, self.device):
            piece = piece.expand(batch, -1, -1, -1, -1)
            history.add(piece)
            yield piece

    def _place_given(
        self,
        window: WindowPlan,
        prompts: Prompts,
        latents: torch.Tensor,
        given: Conditions,
        history: History,
    ) -> torch.Tensor:
        """Puts history or image in front of the noise, and an end image behind it."""
        if isinstance(history, LatentHistory):
            latents[:, :, : window.given_latents] = history.newest(window.given_latents).to(self.device)
        elif window.window.history_frames:
            past = history.newest(window.window.history_frames).to(self.device)
            latents[:, :, : window.given_latents] = self._encode_video(past)
        elif window.given_latents:
            latents[:, :, : window.given_latents] = self._encode_video(given.image)
        if window.end_latents:
            latents[:, :, -window.end_latents :] = self._encode_video(given.end_image)
        return latents


def told(scene: Scene | None, texts: tuple) -> tuple:
    """Prompts and guidance of a scene, in the order of `_encode_prompts`; what it leaves open is the video's."""
    if scene is None:
        return texts
    _, negative, _, negative_embeds, scale = texts
    if scene.negative_prompt is not None:
        negative, negative_embeds = scene.negative_prompt, None
    if scene.guidance_scale is not None:
        scale = scene.guidance_scale
    return scene.prompt, negative, None, negative_embeds, scale


def exhaust(pieces: Iterator[torch.Tensor]) -> None:
    """Lets the history see frames that whoever asked for the latents did not want."""
    for _ in pieces:
        pass
