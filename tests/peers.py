"""Independent implementations given our weights, and how far apart two results are."""

import torch
from diffusers import AutoencoderKLWan, SkyReelsV2Transformer3DModel, UniPCMultistepScheduler
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

from skyreels_v2_infer.modules import WanModel, WanVAE
from skyreels_v2_infer.scheduler import flow_sigmas, flow_timesteps

EXACT = 1e-5  # relative; what float32 leaves of two ways to compute the same


def apart(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert ours.shape == theirs.shape
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours.double() - theirs.double()).abs().max() / theirs.double().abs().max())


def randomize(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights that matter everywhere: also in what is initialised to zero or one."""
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=draw)
        if parameter.ndim == 1 or "gamma" in name:
            is_scale = "gamma" in name or ("norm" in name and name.endswith("weight"))
            parameter.data = 0.1 * noise + (1.0 if is_scale else 0.0)
        elif "modulation" in name or "embedding.weight" in name:
            parameter.data = 0.3 * noise
        else:
            parameter.data = noise / parameter[0].numel() ** 0.5
    return module.eval().requires_grad_(False)


def small_model(*, heads: int = 4, head_size: int = 16, layers: int = 2, task: str = "t2v", **config) -> WanModel:
    sizes = {"dim": heads * head_size, "num_heads": heads, "num_layers": layers, "ffn_dim": 96, "text_dim": 24}
    if task == "i2v":
        sizes |= {"model_type": "i2v", "in_dim": 36, "img_dim": 20}
    return randomize(WanModel(**sizes, **config))


def small_vae(dim: int = 8) -> WanVAE:
    return randomize(WanVAE(dim=dim))


def named_as_diffusers(model: WanModel) -> dict[str, torch.Tensor]:
    """The model's weights under diffusers' names."""
    weights = convert_wan_transformer_to_diffusers(dict(model.state_dict()))
    for ours, theirs in (
        ("fps_projection.0.", "fps_projection.net.0.proj."),
        ("fps_projection.2.", "fps_projection.net.2."),
    ):
        weights = {name.replace(ours, theirs): tensor for name, tensor in weights.items()}
    return weights


def peer_transformer(model: WanModel) -> SkyReelsV2Transformer3DModel:
    i2v = model.model_type == "i2v"
    with model.device:
        peer = SkyReelsV2Transformer3DModel(
            num_attention_heads=model.num_heads,
            attention_head_dim=model.dim // model.num_heads,
            in_channels=model.in_dim,
            text_dim=model.text_dim,
            ffn_dim=model.ffn_dim,
            num_layers=model.num_layers,
            image_dim=20 if i2v else None,
            added_kv_proj_dim=model.dim if i2v else None,
            inject_sample_info=model.inject_sample_info,
        )
    peer.load_state_dict(named_as_diffusers(model))
    return peer.eval().requires_grad_(False)


def peer_vae(vae: WanVAE, dim: int = 8) -> AutoencoderKLWan:
    with vae.device:
        peer = AutoencoderKLWan(base_dim=dim)
    peer.load_state_dict(convert_wan_vae_to_diffusers(dict(vae.state_dict())))
    return peer.eval().requires_grad_(False)


class PeerScheduler(UniPCMultistepScheduler):
    """diffusers' solver on our table of noise levels; the step is found by index.

    diffusers' diffusion-forcing pipelines (and the published one) hand the solver a view of their latents, which the
    solver keeps as its last sample, and write the next sample into that view: so the corrector of the second step
    starts from a sample that has been overwritten. With `overwritten` false the solver keeps a copy instead, and is
    UniPC there as well.
    """

    overwritten = False

    def __init__(self, shift: float = 8.0):
        super().__init__(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)

    def set_timesteps(self, num_inference_steps, device=None, **kwargs):
        super().set_timesteps(num_inference_steps, device=device, **kwargs)
        sigmas = flow_sigmas(num_inference_steps, self.config.flow_shift)
        self.sigmas = torch.from_numpy(sigmas)
        self.timesteps = torch.from_numpy(flow_timesteps(sigmas)).to(device)
        self.set_begin_index(0)

    def step(self, model_output, timestep, sample, return_dict=True):
        return super().step(model_output, timestep, sample if self.overwritten else sample.clone(), return_dict)
