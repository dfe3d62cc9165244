"""An image to features: CLIP's vision tower (transformers' `CLIPVisionModel`) up to its last layer but one."""

import math

import torch
import torch.nn.functional as F
from torch import nn

# What is taken of a config.json: other fields could choose code or take any amount of memory.
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_channels")
FIELDS = (*SIZES, "image_size", "patch_size", "hidden_act", "layer_norm_eps", "attention_dropout")
PIXEL_MEAN = (0.48145466, 0.4578275, 0.40821073)
PIXEL_STD = (0.26862954, 0.26130258, 0.27577711)
PUBLISHED_HEADS = 16  # the one size that does not follow from the published tensors' shapes


class ImageEncoder(nn.Module):
    """CLIP's vision tower without its last layer.

    Args:
        model: a `CLIPVisionModel` that has just the layers that are computed (`empty_model`).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    @property
    def device(self) -> torch.device:
        return self.model.pre_layrnorm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.pre_layrnorm.weight.dtype

    @torch.no_grad()
    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Features ``[B, tokens, width]`` (published: 257 tokens, 1280 wide) of images ``[B, 3, H, W]`` in -1..1.

        The whole frame is squashed to CLIP's square, as in the published code; nothing is cropped.
        """
        return self.features(image)

    def features(self, image: torch.Tensor) -> torch.Tensor:
        """As `encode`, and a tower that is being trained learns from what comes of it."""
        size = self.model.config.image_size
        pixels = image.to(self.device, torch.float32)
        pixels = F.interpolate(pixels, (size, size), mode="bicubic", align_corners=False, antialias=False)
        mean, std = torch.tensor([PIXEL_MEAN, PIXEL_STD], device=pixels.device).view(2, 1, 3, 1, 1)
        pixels = ((pixels + 1) / 2 - mean) / std
        return self.model(pixels.to(self.dtype)).last_hidden_state


def config_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict:
    """Arguments of `CLIPVisionConfig` from the shapes of its tensors, for files that come without a config.

    Args:
        shapes: by the names of `CLIPVisionModel`, with those of the last layer.

    Raises:
        KeyError: a tensor that a size follows from is missing.
    """
    width, channels, patch, _ = shapes["embeddings.patch_embedding.weight"]
    positions = shapes["embeddings.position_embedding.weight"][-2]  # an axis of size 1 may be in front
    ffn, _ = shapes["encoder.layers.0.mlp.fc1.weight"]
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": ffn,
        "num_hidden_layers": 1 + max(layers),
        "num_attention_heads": PUBLISHED_HEADS,
        "num_channels": channels,
        "image_size": patch * math.isqrt(positions - 1),
        "patch_size": patch,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
    }


def empty_model(config: dict) -> nn.Module:
    """CLIP's vision tower without its last layer, empty on the meta device; `config` as in config.json."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    taken = CLIPVisionConfig.from_dict({name: config[name] for name in FIELDS if name in config})
    taken.num_hidden_layers -= 1
    with torch.device("meta"):
        model = CLIPVisionModel(taken)
    tower = getattr(model, "vision_model", model)  # older releases of transformers keep the tower one level down
    # The norm serves the pooled token alone, which nobody asks for: without it, no weights are needed for it.
    tower.post_layernorm = nn.Identity()
    # Not a weight, so no file would fill it in.
    positions = torch.arange(tower.embeddings.num_positions).unsqueeze(0)
    tower.embeddings.register_buffer("position_ids", positions, persistent=False)
    return tower
