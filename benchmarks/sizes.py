"""The sizes that are measured, and random weights and inputs of them."""

import copy
from dataclasses import dataclass

import torch

from skyreels_v2_infer.modules import WanModel, WanVAE
from skyreels_v2_infer.plan.cost import forward_flop
from skyreels_v2_infer.plan.models import SIZES as PUBLISHED
from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32


@dataclass(frozen=True)
class Size:
    """What is measured.

    Attributes:
        model: arguments of `WanModel`, with all layers.
        layers: how many of them are measured; times of whole steps are scaled.
        latents: latent frames, rows and columns, of the transformer's input.
        vae_dim: width of the VAE.
        video: frames, height and width in pixels, of what the VAE encodes and decodes.
        whole: height and width in pixels of whole videos.
    """

    model: dict
    layers: int
    latents: tuple[int, int, int]
    vae_dim: int
    video: tuple[int, int, int]
    whole: tuple[int, int]

    @property
    def config(self) -> dict:
        return self.model | {"num_layers": self.layers, "model_type": "t2v"}

    @property
    def scale(self) -> float:
        return self.model["num_layers"] / self.layers

    @property
    def head_size(self) -> int:
        return self.model["dim"] // self.model["num_heads"]

    @property
    def frame_tokens(self) -> int:
        return self.latents[1] * self.latents[2] // 4

    @property
    def tokens(self) -> int:
        return self.latents[0] * self.frame_tokens

    @property
    def flop(self) -> float:
        """Of one forward of the layers that are measured."""
        return forward_flop(self.config, self.latents[0], self.frame_tokens)

    @property
    def attention_flop(self) -> float:
        """Of the self-attention in one forward of the layers that are measured."""
        return 4.0 * self.tokens**2 * self.model["dim"] * self.layers


WINDOW = {"latents": (25, 68, 120), "vae_dim": 96, "video": (97, 544, 960), "whole": (544, 960)}  # 97 frames at 540P
SIZES = {
    "tiny": Size(
        {"dim": 256, "ffn_dim": 1024, "num_heads": 2, "num_layers": 4, "text_dim": 64},
        4,
        latents=(5, 34, 60),
        vae_dim=96,
        video=(17, 64, 64),
        whole=(64, 64),
    ),
    "1.3b": Size(PUBLISHED["1.3B"], 30, **WINDOW),
    "14b-4layers": Size(PUBLISHED["14B"], 4, **WINDOW),
    "14b": Size(PUBLISHED["14B"], 40, **WINDOW),
}


def fill(module: torch.nn.Module, device: torch.device, dtype: torch.dtype, keep=KEEP_FLOAT32.search, seed: int = 0):
    """Random weights for a module on the meta device, of a scale at which signals neither die out nor explode.

    Args:
        dtype: of the parameters, except those whose names `keep` finds, which are float32.
    """
    draw = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(module.named_parameters()):
        owner, _, leaf = name.rpartition(".")
        values = torch.randn(parameter.shape, generator=draw, device=device, dtype=dtype)
        if parameter.ndim == 1 or "gamma" in name or "modulation" in name:
            is_scale = "gamma" in name or ("norm" in name and leaf == "weight")
            values = values.mul_(0.1).add_(float(is_scale))
        else:
            values = values.div_(parameter[0].numel() ** 0.5)
        values = values.to(torch.float32 if keep(name) else dtype)
        setattr(module.get_submodule(owner), leaf, torch.nn.Parameter(values, requires_grad=False))
    return module.to(device).eval()


def random_transformer(config: dict, device: torch.device, dtype: torch.dtype) -> WanModel:
    """A transformer with random weights, in the dtypes that loading leaves them in."""
    with torch.device("meta"):
        model = WanModel(**config)
    return fill(model, device, dtype)


def random_vae(dim: int, device: torch.device) -> WanVAE:
    with torch.device("meta"):
        vae = WanVAE(dim=dim)
    return fill(vae, device, torch.float32, keep=lambda name: False)


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """The same module once more, with the same tensors in it: to compile one of the two."""
    shared = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return copy.deepcopy(module, memo=shared)


def window_inputs(model: WanModel, latents: tuple[int, int, int], device: torch.device) -> dict:
    """Arguments of `WanModel.forward`: noise, a timestep for each frame, and a prompt as long as the model takes."""
    draw = torch.Generator(device).manual_seed(1)
    text = torch.randn(1, model.text_len, model.text_dim, generator=draw, device=device)
    return {
        "x": torch.randn(1, 16, *latents, generator=draw, device=device),
        "t": torch.linspace(200, 900, latents[0], device=device).round().unsqueeze(0),
        "context": text.to(model.dtype),
    }
