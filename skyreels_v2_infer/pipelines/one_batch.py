"""Both passes of guidance as one batch, where a CPU would spend much of the time on starting small operations."""

import math

import torch

from skyreels_v2_infer.modules.transformer import PromptContext, WanModel
from skyreels_v2_infer.pipelines.denoise import Velocity

# Numbers in the tokens of a pass up to which it is worth it. With the embedded model a batch takes 0.82 of the time of
# two passes for 33 frames of 64 x 64 (18,000 numbers), 0.95 for 128 x 128 and 0.97 for 192 x 192.
SMALL = 2**17
# Tokens of a frame from which on a row of a matrix product does not depend on how many rows there are: a product of a
# single row is computed by other code.
FEWEST = 4


def is_small(model: WanModel, latents: torch.Tensor) -> bool:
    """Whether `OneBatch` is worth it for latents ``[B, C, F, H, W]``."""
    patch = math.prod(model.patch_size)
    size = latents[:, 0].numel() // patch * model.dim
    return latents.device.type == "cpu" and size <= SMALL and latents[0, 0, 0].numel() // patch >= FEWEST


class OneBatch:
    """Takes the place of `both_branches`, with the same results to the last bit.

    Args:
        positive, negative: contexts of the two passes, of the same batch size.
        options: further arguments of the model.
    """

    def __init__(self, model: WanModel, positive: PromptContext, negative: PromptContext, options: dict):
        self.model, self.context, self.options = model, positive.joined(negative), dict(options)
        if "y" in options:
            self.options["y"] = torch.cat([options["y"], options["y"]])

    def __call__(self, positive: Velocity, negative: Velocity, x: torch.Tensor, t: torch.Tensor):
        return self.model(torch.cat([x, x]), t, self.context, **self.options).chunk(2)
