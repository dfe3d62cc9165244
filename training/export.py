"""Writes the embedded model as a folder in diffusers' layout, float16, with what its config files must say."""

import copy
import json
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.modules.image_encoder import PIXEL_MEAN, PIXEL_STD, ImageEncoder
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.plan import trained_on
from skyreels_v2_infer.weights import key_tables
from training import clips, grammar

DIFFUSERS_VERSION = "0.42.1"  # the release that reads what is written here in the tests


def vae_table(blocks: int) -> key_tables.Table:
    """WanVAE -> AutoencoderKLWan."""
    return [
        (r"^conv1\.", "quant_conv."),
        (r"^conv2\.", "post_quant_conv."),
        (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
        (r"^(encoder|decoder)\.head\.0\.", r"\1.norm_out."),
        (r"^(encoder|decoder)\.head\.2\.", r"\1.conv_out."),
        (r"\.middle\.0\.", ".mid_block.resnets.0."),
        (r"\.middle\.1\.", ".mid_block.attentions.0."),
        (r"\.middle\.2\.", ".mid_block.resnets.1."),
        (r"^encoder\.downsamples\.", "encoder.down_blocks."),
        *(
            (
                rf"^decoder\.upsamples\.{(blocks + 2) * stage + i}\.",
                f"decoder.up_blocks.{stage}." + (f"resnets.{i}." if i <= blocks else "upsamplers.0."),
            )
            for stage in range(4)
            for i in range(blocks + 2)
        ),
        (r"\.residual\.0\.", ".norm1."),
        (r"\.residual\.2\.", ".conv1."),
        (r"\.residual\.3\.", ".norm2."),
        (r"\.residual\.6\.", ".conv2."),
        (r"\.shortcut\.", ".conv_shortcut."),
    ]


def renamed(module: nn.Module, table: key_tables.Table, back: key_tables.Table) -> dict[str, torch.Tensor]:
    """float16 tensors under the names of diffusers, each of which the loader will find again."""
    tensors = {}
    for name, tensor in module.state_dict().items():
        theirs = key_tables.renamed(name, table)
        assert key_tables.renamed(theirs, back) == name, (name, theirs)
        tensors[theirs] = tensor.detach().cpu().half().contiguous()
    return tensors


def write_part(folder: Path, config: dict, tensors: dict[str, torch.Tensor], stem: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    path = folder / f"{stem}.safetensors"
    save_file(tensors, path.with_suffix(".part"), metadata={"format": "pt"})
    os.replace(path.with_suffix(".part"), path)  # a stage may replace what it has gone on from


def write_trained_on(folder: Path) -> None:
    """What `plan.trained_on` names before a run: all words of prompts, phrases that none has, and the size."""
    never, but = grammar.never_said()
    about = {"words": grammar.vocabulary(), "never": never, "but": but, "height": clips.SIDE, "width": clips.SIDE}
    (folder / trained_on.FILE).write_text(json.dumps(about | {"see": "docs/world.md"}) + "\n")


def write_transformer(folder: Path, model: WanModel) -> None:
    with_image = model.model_type == "i2v"
    config = {
        "_class_name": "SkyReelsV2Transformer3DModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        "patch_size": list(model.patch_size),
        "num_attention_heads": model.num_heads,
        "attention_head_dim": model.dim // model.num_heads,
        "in_channels": model.in_dim,
        "out_channels": model.out_dim,
        "text_dim": model.text_dim,
        "text_len": model.text_len,
        "freq_dim": model.freq_dim,
        "ffn_dim": model.ffn_dim,
        "num_layers": model.num_layers,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "eps": 1e-6,
        "image_dim": model.img_emb.proj[1].in_features if with_image else None,
        "added_kv_proj_dim": model.dim if with_image else None,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": None,
        "inject_sample_info": False,
        "num_frame_per_block": 1,
    }
    tensors = renamed(model, key_tables.TO_DIFFUSERS_TRANSFORMER, key_tables.DIFFUSERS_TRANSFORMER)
    write_part(folder, config, tensors, "diffusion_pytorch_model")


def write_vae(folder: Path, vae: WanVAE, shape: dict) -> None:
    """Args:
    shape: the arguments that the VAE was made with."""
    config = {
        "_class_name": "AutoencoderKLWan",
        "_diffusers_version": DIFFUSERS_VERSION,
        "base_dim": shape["dim"],
        "z_dim": shape["z_dim"],
        "dim_mult": list(shape["multipliers"]),
        "num_res_blocks": shape["blocks"],
        "attn_scales": [],
        "temperal_downsample": [False, True, True],
        "dropout": 0.0,
        "latents_mean": list(vae.latents_mean),
        "latents_std": list(vae.latents_std),
    }
    blocks = shape["blocks"]
    tensors = renamed(vae, vae_table(blocks), key_tables.diffusers_vae(blocks))
    write_part(folder, config, tensors, "diffusion_pytorch_model")


def write_image_encoder(folder: Path, encoder: ImageEncoder, config: dict) -> None:
    """The last layer, whose output nobody reads, is written as zeros: the published layout has one."""
    tensors = {
        f"vision_model.{name}": tensor.detach().cpu().half() for name, tensor in encoder.model.state_dict().items()
    }
    last = config["num_hidden_layers"] - 1
    for name, tensor in list(tensors.items()):
        if ".layers.0." in name:
            tensors[name.replace(".layers.0.", f".layers.{last}.")] = torch.zeros_like(tensor)
    width = config["hidden_size"]
    tensors |= {f"vision_model.post_layernorm.{kind}": torch.zeros(width).half() for kind in ("weight", "bias")}
    tensors["visual_projection.weight"] = torch.zeros(config["projection_dim"], width).half()
    config = {"architectures": ["CLIPVisionModelWithProjection"], "model_type": "clip_vision_model"} | config
    write_part(folder, config, tensors, "model")


def write_index(folder: Path, pipeline: str, shift: float, image_size: int | None) -> None:
    index = {
        "_class_name": pipeline,
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "SkyReelsV2Transformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    scheduler = {
        "_class_name": "UniPCMultistepScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
        "solver_type": "bh2",
    }
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")
    if image_size is not None:
        index |= {
            "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
            "image_processor": ["transformers", "CLIPImageProcessor"],
        }
        processor = {
            "image_processor_type": "CLIPImageProcessor",
            "do_resize": True,
            "size": {"height": image_size, "width": image_size},
            "resample": 3,
            "do_center_crop": False,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": list(PIXEL_MEAN),
            "image_std": list(PIXEL_STD),
            "do_convert_rgb": True,
        }
        (folder / "image_processor").mkdir(exist_ok=True)
        (folder / "image_processor" / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    write_trained_on(folder)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_text(folder: Path, encoder) -> None:
    """The text encoder in float16 and its tokenizer."""
    copy.deepcopy(encoder.model).half().save_pretrained(folder / "text_encoder")
    encoder.tokenizer.save_pretrained(folder / "tokenizer")


def write(folder: Path, trained, vae: WanVAE, vae_shape: dict, tower: dict, shift: float) -> None:
    """A whole model, `trained` by `training.dit`."""
    with_image = trained.transformer.model_type == "i2v"
    folder.mkdir(parents=True, exist_ok=True)
    write_transformer(folder / "transformer", trained.transformer)
    write_vae(folder / "vae", vae, vae_shape)
    write_text(folder, trained.encoder)
    if with_image:
        write_image_encoder(folder / "image_encoder", trained.image_encoder, tower)
    pipeline = "SkyReelsV2ImageToVideoPipeline" if with_image else "SkyReelsV2DiffusionForcingPipeline"
    write_index(folder, pipeline, shift, tower["image_size"] if with_image else None)
