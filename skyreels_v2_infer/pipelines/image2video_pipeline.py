"""Image to video: one window; the image is an input of the model in addition to the noise."""

from collections.abc import Iterator

import torch

from skyreels_v2_infer.media.images import fit
from skyreels_v2_infer.pipelines.arguments import check_seed, inputs_of, text_settings
from skyreels_v2_infer.pipelines.base import VideoPipeline
from skyreels_v2_infer.pipelines.conditioning import as_picture, image_channels, resizecrop, to_video
from skyreels_v2_infer.pipelines.history import Finished, Resume
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan, make_plan

__all__ = ["Image2VideoPipeline", "resizecrop"]  # published code imports both from here


class Image2VideoPipeline(VideoPipeline):
    """Makes videos that begin with an image, with an image-to-video model."""

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
        fps: float = 24,
        resume: Resume | None = None,
    ) -> Iterator[Finished]:
        """Validates the arguments, makes a plan, and yields its single window.

        Args:
            image: PIL image or uint8 ``[H, W, 3]``; scaled to cover height x width and cropped at the centre.

        Other arguments and errors: see `Text2VideoPipeline.generate`.
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
        inputs = inputs_of(*given, image=fit(as_picture(image), height, width))
        return self.execute(plan, inputs, resume)

    def image_features(self, inputs: Inputs) -> torch.Tensor:
        if self.image_encoder is None:
            raise ValueError("image_encoder: this pipeline has none, but needs one for the image")
        with self.encoder_at_work(self.image_encoder):
            return self.image_encoder.encode(to_video(inputs.image[None], self.device)[:, :, 0])

    def image_channels(self, plan: Plan, inputs: Inputs) -> torch.Tensor:
        return image_channels(self.codec, to_video(inputs.image[None], self.device), plan.num_frames).to(self.device)
