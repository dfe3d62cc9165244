"""Text to video: one window, in which all frames share every timestep."""

from collections.abc import Iterator

import torch

from skyreels_v2_infer.pipelines.base import VideoPipeline, choose_noise
from skyreels_v2_infer.pipelines.history import Finished, History, Resume
from skyreels_v2_infer.plan.plan import Plan, make_plan
from skyreels_v2_infer.plan.sizes import check_size
from skyreels_v2_infer.runtime import Noise


class Text2VideoPipeline(VideoPipeline):
    """Videos from text, with a text-to-video (or diffusion-forcing) model."""

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
        fps: int = 24,
        resume: Resume | None = None,
    ) -> Iterator[Finished]:
        """Plans a video, checks the arguments, and yields its one window.

        Args:
            prompt, negative_prompt: text, or a text for each of several videos of one call.
            height, width: in pixels, multiples of 16.
            num_frames: 4n+1.
            num_inference_steps: at least 1.
            guidance_scale: up to 1 is no guidance, and half the work.
            shift: above 0; higher spends more steps at high noise.
            generator: draws the noise; without one it is a function of `seed` alone (None: a new one).
            prompt_embeds, negative_prompt_embeds: text embeddings ``[B, L, text_dim]`` in place of text.
            latents: initial noise ``[B, 16, n+1, height/8, width/8]``.
            callback_on_step_end: ``(pipeline, step, timesteps, {"latents": ...}) -> dict or None``; latents in the
                dict replace those of the run.
            fps: told to models that know about it.
            resume: where a run that was stopped goes on.

        Raises:
            ValueError: names the argument, its value and the nearest legal values.
        """
        check_size(height, width)
        plan = make_plan(num_frames, num_inference_steps, shift)
        texts = (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance_scale)
        noise = choose_noise(generator, seed, self.agree, self.device)
        options = {"callback": callback_on_step_end, "fps": fps}
        return self._run(plan, texts, noise, (height, width), latents, resume or Resume(), **options)

    @torch.no_grad()
    def _run(self, plan: Plan, texts, noise: Noise, size, latents, resume: Resume, **options) -> Iterator[Finished]:
        window, done = plan.windows[0], resume.latents
        if done is None:
            prompts = self._encode_prompts(*texts)
            latents = self._initial_latents(prompts, window, *size, noise, latents)
            done = self._denoise_window(plan, window, prompts, latents, **options)
        yield Finished(done, self._decode(window, done, History(0)), 0, done)
