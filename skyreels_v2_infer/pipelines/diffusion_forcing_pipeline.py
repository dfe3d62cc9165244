"""Diffusion forcing: videos of any length in windows, from text, an image or a video, optionally to an end image."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from skyreels_v2_infer.media.images import fit
from skyreels_v2_infer.pipelines.arguments import check_seed, inputs_of, text_settings
from skyreels_v2_infer.pipelines.base import VideoPipeline
from skyreels_v2_infer.pipelines.conditioning import Prefix, PrefixFrames, as_picture, count_frames
from skyreels_v2_infer.pipelines.history import Finished, Resume
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan, make_plan
from skyreels_v2_infer.plan.story import Scene
from skyreels_v2_infer.scheduler.windows import frames_of_one_more


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
        fps: float = 24,
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
        """Validates the arguments, makes a plan, and yields one `Finished` per window.

        Args:
            prompt, negative_prompt: a text, or a list with one text per video.
            image: PIL image or uint8 ``[H, W, 3]``, the first frame of the video.
            end_image: the same, image that the video leads up to; not itself a frame of the video.
            height, width: in pixels, multiples of 16; images and videos are scaled to cover and cropped at the centre.
            num_frames: 4n+1, None: 97; with a prefix the number of new frames, a multiple of 4, None: one window's.
            num_inference_steps: steps of every frame, at least 1.
            shift: above 0; higher spends more steps at high noise.
            guidance_scale: up to 1 disables guidance and halves the work.
            generator: draws the noise: a window's latents, then row by row the noise on its history. None: noise is a
                function of `seed` (None: drawn at random), window and row.
            overlap_history: last frames that the next window continues, 4n+1, below `base_num_frames`.
            addnoise_condition: noise added to given frames in the model's input, in thousandths, 0 to below 1000; 20 is
                recommended.
            base_num_frames: frames of a window, 4n+1.
            ar_step: steps by which a block lags behind the block before it; 0 denoises all frames together.
            causal_block_size: latent frames per block; None: as set by `set_ar_attention`, else 1.
            fps: an input of models with `inject_sample_info`.
            causal_attention: blocks attend to themselves and to earlier blocks only.
            prompt_embeds, negative_prompt_embeds: text embeddings ``[B, L, text_dim]`` in place of text.
            latents: initial noise of the first window ``[B, 16, F, height/8, width/8]``.
            callback_on_step_end: ``(pipeline, row, timesteps [F], {"latents": ...}) -> dict or None``; latents in the
                dict replace those of the run.
            prefix_video: video to continue: its path or its frames (see `Prefix`); its frames come first.
            resume: state of an interrupted run.
            story: scenes in place of `prompt`; each begins with a window.
            history: "pixel": a window continues decoded frames, which are encoded again. "latent": it continues
                latents, and the whole video is decoded in one stream.

        Raises:
            ValueError: names the argument, its value and the nearest legal values.
        """
        texts = text_settings(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
        if story is not None and prompt_embeds is not None:
            raise ValueError("story: scenes have prompts of their own; give it or prompt_embeds")
        if num_frames is None:
            num_frames = 97 if prefix_video is None else frames_of_one_more(base_num_frames, overlap_history)
        if causal_block_size is None:
            causal_block_size = self.transformer.causal_block_size or 1
        plan = make_plan(
            num_frames,
            num_inference_steps,
            shift,
            height=height,
            width=width,
            **texts,
            guidance_scale=guidance_scale,
            seed=check_seed(seed),
            fps=fps,
            base_num_frames=base_num_frames,
            overlap_history=overlap_history,
            ar_step=ar_step,
            causal_block_size=causal_block_size,
            causal_attention=causal_attention or self.transformer.causal_block_size is not None,
            prefix_frames=count_frames(prefix_video),
            image=image is not None,
            end_image=end_image is not None,
            addnoise=addnoise_condition,
            history=history,
            story=story,
        )
        given = prompt_embeds, negative_prompt_embeds, latents, generator, callback_on_step_end
        inputs = inputs_of(
            *given,
            image=None if image is None else fit(as_picture(image), height, width),
            end_image=None if end_image is None else fit(as_picture(end_image, "end_image"), height, width),
        )
        if prefix_video is None:
            return self.execute(plan, inputs, resume)
        batch = len(prompt_embeds) if prompt_embeds is not None else len(prompt) if isinstance(prompt, list) else 1
        prefix = PrefixFrames(prefix_video, height, width, plan.longest_history, batch, self.device)
        return self._continued(prefix, plan, inputs, resume)

    def _continued(self, prefix: PrefixFrames, plan: Plan, inputs: Inputs, resume: Resume | None) -> Iterator[Finished]:
        """The frames of the video that is continued, unless it is resumed, then the windows."""
        if resume is None:
            yield Finished(None, prefix.pieces())
        yield from self.execute(plan, replace(inputs, prefix=prefix.newest()), resume)

    def extend_video(self, *args, prefix_video_path: Prefix, **kwargs):
        """A video followed by `num_frames` new frames; arguments as for `generate`, results as for a call.

        Args:
            prefix_video_path: path of the video, or its frames, uint8 ``[T, H, W, 3]`` or a list of images; at least
                `overlap_history` frames.
        """
        return self(*args, prefix_video=prefix_video_path, **kwargs)
