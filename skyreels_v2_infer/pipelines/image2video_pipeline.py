"""Image to video: one window, in which the model sees the image beside the noise."""

from collections.abc import Iterator

import torch

from skyreels_v2_infer.pipelines.base import VideoPipeline, choose_noise
from skyreels_v2_infer.pipelines.conditioning import image_channels, image_video, resizecrop
from skyreels_v2_infer.pipelines.history import Finished, History, Resume
from skyreels_v2_infer.plan.plan import Plan, make_plan
from skyreels_v2_infer.plan.sizes import check_size
from skyreels_v2_infer.runtime import Noise

__all__ = ["Image2VideoPipeline", "resizecrop"]  # published code imports both from here


class Image2VideoPipeline(VideoPipeline):
    """Videos that begin with an image, with an image-to-video model."""

    takes_image_channels = True

    def generate(
        self,
        image,
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
            image: PIL image or uint8 ``[H, W, 3]``; scaled to cover height x width and cropped at the centre.

        The other arguments and what is raised are as in `Text2VideoPipeline.generate`.
        """
        check_size(height, width)
        plan = make_plan(num_frames, num_inference_steps, shift)
        picture = image_video(image, height, width, self.device)
        texts = (prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance_scale)
        noise = choose_noise(generator, seed, self.agree, self.device)
        options = {"callback": callback_on_step_end, "fps": fps}
        return self._run(plan, texts, noise, picture, latents, resume or Resume(), **options)

    @torch.no_grad()
    def _run(self, plan: Plan, texts, noise: Noise, picture, latents, resume: Resume, **options) -> Iterator[Finished]:
        window, done = plan.windows[0], resume.latents
        if done is None:
            done = self._denoise(plan, texts, noise, picture, latents, **options)
        yield Finished(done, self._decode(window, done, History(0)), 0, done)

    def _denoise(self, plan: Plan, texts, noise: Noise, picture, latents, **options) -> torch.Tensor:
        if self.image_encoder is None:
            raise ValueError("image_encoder: this pipeline has none, and cannot see the image")
        with self.at_work(self.image_encoder):
            features = self.image_encoder.encode(picture[:, :, 0])
        prompts = self._encode_prompts(*texts, clip_fea=features)
        window = plan.windows[0]
        with self.at_work(self.vae):
            channels = image_channels(self.vae, picture, plan.num_frames).to(self.device)
        channels = channels.expand(prompts.batch, -1, -1, -1, -1)
        latents = self._initial_latents(prompts, window, *picture.shape[3:], noise, latents)
        return self._denoise_window(plan, window, prompts, latents, y=channels, **options)
