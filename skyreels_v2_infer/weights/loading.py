"""Loads the parts of a checkpoint: a module is built on the meta device and then filled, see `filling`."""

import math
import re
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.modules import image_encoder, text_encoder
from skyreels_v2_infer.modules.image_encoder import ImageEncoder
from skyreels_v2_infer.modules.linear import quantize_blocks
from skyreels_v2_infer.modules.text_encoder import TextEncoder
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.modules.vae import LATENTS_MEAN, LATENTS_STD, MULTIPLIERS, WanVAE
from skyreels_v2_infer.weights import key_tables, vocabulary
from skyreels_v2_infer.weights.config import is_size, shown
from skyreels_v2_infer.weights.filling import load_into
from skyreels_v2_infer.weights.headers import refusing
from skyreels_v2_infer.weights.layouts import TOKENIZER_FILES, Part, refusal
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.stored import Weights
from skyreels_v2_infer.weights.tensor_files import GGUFFile
from skyreels_v2_infer.weights.verify import check_tokenizer

POSITIONS = 2**20  # of an image encoder, at most

# Fields of AutoencoderKLWan's config.json with one supported value, the one of the published VAE.
VAE_FIXED = {
    "temperal_downsample": ([False, True, True],),
    "attn_scales": ([],),
    "is_residual": (False,),
    "patch_size": (None, 1),
}
VAE_OF_WAN22 = "decoder.upsamples.0.upsamples.0.residual.2.weight"

ModelPath = str | Path | Checkpoint


def get_transformer(
    model_path: ModelPath,
    device: str | torch.device = "cuda",
    weight_dtype: torch.dtype = torch.bfloat16,
    config: dict | None = None,
    dequantize: bool = False,
    quantize: str | None = None,
    computes_on: str | torch.device | None = None,
) -> WanModel:
    """The diffusion transformer of a folder, file, hub id or opened checkpoint.

    Args:
        weight_dtype: of the parameters, except those of `key_tables.KEEP_FLOAT32`, which stay float32.
        config: for a file: a config.json or arguments of `WanModel`, see `architecture.transformer_config`.
        dequantize: expand quantised weights once; by default they stay as stored and each layer expands its own.
        quantize: compute the blocks' linear layers in this form, see `modules.linear.quantize_blocks`.
        computes_on: the device that computes, if weights are kept on another one.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    checkpoint = Checkpoint.open(model_path, ("transformer",), config=config)
    weights = Weights(checkpoint.parts["transformer"], "transformer", checkpoint.model_id)
    arguments = checkpoint.transformer_config
    blocks = {name.split(".")[1] for name in weights.sources if name.startswith("blocks.")}
    check_count("num_layers", arguments["num_layers"], len(blocks), weights)
    with torch.device("meta"):
        model = WanModel(**arguments)
    if quantize is not None:
        quantize_blocks(model, quantize, computes_on or device)
    # The CPU's attention can turn NaN into numbers, so that the check of the latents sees none.
    check_all = torch.device(computes_on or device).type == "cpu"
    return load_into(model, weights, device, weight_dtype, key_tables.KEEP_FLOAT32, dequantize, check_all)


def check_count(name: str, wanted: int, present: int, weights: Weights) -> None:
    """Raises an `InputError` for a count that is far from what the tensors have, before anything so large is built."""
    if wanted > 2 * present + 8:
        raise refusal(weights.model_id, f"config.json has {name} {shown(wanted)}, but the weights have {present}")


def get_vae(
    model_path: ModelPath,
    device: str | torch.device = "cuda",
    weight_dtype: torch.dtype = torch.float32,
    config: dict | None = None,
    dequantize: bool = False,
) -> WanVAE:
    """The VAE of a folder, file (``Wan2.1_VAE.pth``, for example), hub id or opened checkpoint.

    Args:
        config: for a file: the config.json of an ``AutoencoderKLWan``; without one it is as published.
        dequantize: accepted for symmetry; a VAE has no layers that could stay quantised.

    Raises:
        InputError: the checkpoint cannot be used, or its VAE has another architecture.
    """
    checkpoint = Checkpoint.open(model_path, ("vae",), config=config)
    part, model_id = checkpoint.parts["vae"], checkpoint.model_id
    multipliers, blocks = vae_sizes(part.config, model_id)
    weights = Weights(part, "vae", model_id)
    if VAE_OF_WAN22 in weights.sources:
        raise refusal(model_id, "holds the VAE of Wan 2.2, which is not supported; Wan 2.1's is")
    check_count("num_res_blocks", blocks, len(weights.sources), weights)
    if weights.style.name == "diffusers":
        weights.style = key_tables.Style("diffusers", weights.style.anchor, key_tables.diffusers_vae(blocks))
    shapes = {key_tables.renamed(name, weights.style.table): shape for name, shape in weights.shapes.items()}
    try:
        dim, z_dim = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
    except (KeyError, IndexError) as error:
        raise refusal(model_id, f"the VAE's tensors do not fit: {error.args[0]} is missing") from error
    mean, std = vae_statistics(part.config, z_dim, model_id)
    with torch.device("meta"):
        model = WanVAE(dim, z_dim, mean, std, multipliers, blocks)
    return load_into(model, weights, device, weight_dtype, dequantize=True, check_all=True)


def vae_sizes(config: dict, model_id: object) -> tuple[tuple[int, ...], int]:
    """Width multipliers and residual blocks of the stages."""
    for name, legal in VAE_FIXED.items():
        if name in config and config[name] not in legal:
            reason = f"vae/config.json has {name} {shown(config[name])}; only {legal[0]} is supported"
            raise refusal(model_id, reason)
    multipliers, blocks = config.get("dim_mult", MULTIPLIERS), config.get("num_res_blocks", 2)
    if not is_size(blocks):
        reason = f"vae/config.json has num_res_blocks {shown(blocks)}; it must be a positive integer"
        raise refusal(model_id, reason)
    stages = len(MULTIPLIERS)
    if not isinstance(multipliers, list | tuple) or len(multipliers) != stages or not all(map(is_size, multipliers)):
        reason = f"vae/config.json has dim_mult {shown(multipliers)}; it must be {stages} positive integers"
        raise refusal(model_id, reason)
    return tuple(multipliers), blocks


def vae_statistics(config: dict, z_dim: int, model_id: object) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each latent channel."""
    mean, std = (config.get(f"latents_{kind}") for kind in ("mean", "std"))
    mean, std = LATENTS_MEAN if mean is None else mean, LATENTS_STD if std is None else std
    for name, values in (("latents_mean", mean), ("latents_std", std)):
        if not isinstance(values, list | tuple) or not all(map(is_number, values)):
            raise refusal(model_id, f"vae/config.json has {name} {shown(values)}; it must be finite numbers")
    if not all(value > 0 for value in std):
        raise refusal(model_id, f"vae/config.json has latents_std {shown(std)}; all must be above 0")
    if not len(mean) == len(std) == z_dim:
        raise refusal(model_id, f"the VAE has {z_dim} latent channels, but {len(mean)} means and {len(std)} deviations")
    return tuple(mean), tuple(std)


def is_number(value: object) -> bool:
    """Whether a value is a finite number that float32 holds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38


def empty(room: ModuleType, part: Part, weights: Weights) -> nn.Module:
    """An encoder on the meta device; its sizes come from config.json, or without one from tensor shapes."""
    origin = "config.json" if part.config else "tensors"
    for name in ("num_layers", "num_hidden_layers"):
        if isinstance(count := part.config.get(name), int):
            check_count(name, count, len(weights.sources), weights)
    if isinstance(side := part.config.get("image_size"), int) and side * side > POSITIONS:
        raise refusal(weights.model_id, f"config.json has image_size {shown(side)}; at most {math.isqrt(POSITIONS)}")
    try:
        shapes = {key_tables.renamed(name, weights.style.table): shape for name, shape in weights.shapes.items()}
        return room.empty_model(part.config or room.config_from_shapes(shapes))
    except KeyError as error:
        reason = f"the {weights.label}'s tensors do not fit: {error.args[0]} is missing"
        raise refusal(weights.model_id, reason) from error
    except Exception as error:  # transformers validates configurations with its own exception types
        reason = f"no {weights.label} can be built from its {origin}: {first_line(error)}"
        raise refusal(weights.model_id, reason) from error


def get_text_encoder(
    model_path: ModelPath,
    device: str | torch.device = "cuda",
    weight_dtype: torch.dtype = torch.bfloat16,
    config: dict | None = None,
    dequantize: bool = False,
    tokenizer: str | Path | None = None,
) -> TextEncoder:
    """umT5 and its tokenizer, of a folder, file, hub id or opened checkpoint.

    Args:
        config: for a file: the config.json of an ``UMT5EncoderModel``; without one its sizes follow from shapes.
        dequantize: expand quantised weights once; by default they stay as stored.
        tokenizer: its folder, for a file that comes without one.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    checkpoint = Checkpoint.open(model_path, ("text_encoder", "tokenizer"), config=config, tokenizer=tokenizer)
    part, model_id = checkpoint.parts["text_encoder"], checkpoint.model_id
    weights = Weights(part, "text_encoder", model_id)
    if "shared.weight" in weights.sources:  # the tied name, if present, is the same tensor
        weights.drop([r"^encoder\.embed_tokens\.weight$"])
    words = find_tokenizer(checkpoint, weights)
    model = empty(text_encoder, part, weights)
    if words.pad_token_id is None:
        raise refusal(model_id, "the tokenizer has no padding token")
    if len(words) > model.config.vocab_size:
        sizes = f"{len(words)} words, the text encoder {model.config.vocab_size}"
        raise refusal(model_id, f"the tokenizer belongs to another text encoder: it has {sizes}")
    # Activations exceed float16's 65504: transformers keeps this layer in float32, and its forward expects that.
    wide = re.compile(r"DenseReluDense\.wo\.") if weight_dtype is torch.float16 else None
    load_into(model, weights, device, weight_dtype, wide, dequantize)
    return TextEncoder(model, words).eval()


def find_tokenizer(checkpoint: Checkpoint, weights: Weights):
    """The tokenizer in the checkpoint's folder of it, or the one that a single file contains."""
    model_id = checkpoint.model_id
    if "tokenizer" in checkpoint.parts:
        folder = checkpoint.parts["tokenizer"].files[0]
        check_tokenizer(folder, model_id)
        with refusing(model_id, f"the tokenizer in {folder.name}/ cannot be read"):
            if (folder / TOKENIZER_FILES[0]).is_file():
                return text_encoder.load_tokenizer(folder)
            return vocabulary.for_transformers(*vocabulary.read_sentencepiece(folder / TOKENIZER_FILES[1]))
    found = None
    with refusing(model_id, "the tokenizer in the file cannot be read"):
        if "spiece_model" in weights.markers:
            source = weights.markers["spiece_model"]
            found = vocabulary.from_sentencepiece(bytes(source.file.read(source.name).numpy()))
        elif isinstance(weights.files[0], GGUFFile):
            found = vocabulary.from_gguf(weights.metadata)
    if found is None:
        raise refusal(model_id, "comes without a tokenizer: a folder with umT5's tokenizer.json is needed")
    return vocabulary.for_transformers(*found)


def get_image_encoder(
    model_path: ModelPath,
    device: str | torch.device = "cuda",
    weight_dtype: torch.dtype = torch.bfloat16,
    config: dict | None = None,
    dequantize: bool = False,
) -> ImageEncoder:
    """CLIP's vision tower without its last layer, of a folder, file, hub id or opened checkpoint.

    Args:
        config: for a file: the config.json of a ``CLIPVisionModel``; without one its sizes follow from shapes.
        dequantize: expand quantised weights once; by default they stay as stored.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    checkpoint = Checkpoint.open(model_path, ("image_encoder",), config=config)
    if "image_encoder" not in checkpoint.parts:
        raise refusal(checkpoint.model_id, "is no image-to-video model, so no image encoder belongs to it")
    part = checkpoint.parts["image_encoder"]
    weights = Weights(part, "image_encoder", checkpoint.model_id)
    model = empty(image_encoder, part, weights)
    weights.drop([pattern.format(last=model.config.num_hidden_layers) for pattern in weights.style.unused])
    return ImageEncoder(load_into(model, weights, device, weight_dtype, dequantize=dequantize)).eval()
