"""Text to video: one window, in which all frames share each timestep."""

from collections.abc import Iterator

import torch

from skyreels_v2_infer.pipelines.arguments import check_seed, inputs_of, text_settings
from skyreels_v2_infer.pipelines.base import VideoPipeline
from skyreels_v2_infer.pipelines.history import Finished, Resume
from skyreels_v2_infer.plan.plan import make_plan


class Text2VideoPipeline(VideoPipeline):
    """Makes videos from text, with a text-to-video or diffusion-forcing model."""

    def generate(
        self,
        prompt: str | list[str] | None = None,
        negative_prompt: str | list[str] | None = None,
        height: int = 544,
        width: int = 960,
        num_frames: int = 97,
        num_inference_steps: int = 50,
        guidance_scale: float = 5.0,
        shift: float = 5.0,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        prompt_embeds: torch.Tensor | None = None,
        negative_prompt_embeds: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        callback_on_step_end=None,
        fps: float = 24,
        resume: Resume | None = None,
    ) -> Iterator[Finished]:
        """Validates the arguments, makes a plan, and yields its single window.

        Args:
            prompt, negative_prompt: a text, or a list with one text per video.
            height, width: in pixels, multiples of 16.
            num_frames: 4n+1.
            num_inference_steps: at least 1.
            guidance_scale: up to 1 disables guidance and halves the work.
            shift: above 0; higher spends more steps at high noise.
            generator: draws the noise; None: noise is a function of `seed` (None: drawn at random).
            prompt_embeds, negative_prompt_embeds: text embeddings ``[B, L, text_dim]`` in place of text.
            latents: initial noise ``[B, 16, n+1, height/8, width/8]``.
            callback_on_step_end: ``(pipeline, step, timesteps, {"latents": ...}) -> dict or None``; latents in the
                dict replace those of the run.
            fps: an input of models with `inject_sample_info`.
            resume: state of an interrupted run.

        Raises:
            ValueError: names the argument, its value and the nearest legal values.
        """
        texts = text_settings(prompt, negative_prompt, prompt_embeds, negative_prompt_embeds)
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
        )
        given = prompt_embeds, negative_prompt_embeds, latents, generator, callback_on_step_end
        inputs = inputs_of(*given)
        return self.execute(plan, inputs, resume)
