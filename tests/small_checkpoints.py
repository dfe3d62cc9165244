"""Small random checkpoints in both published layouts, with the published tensor names.

The names come from ``data/state_dict_shapes.json`` (every published tensor; ``<30>`` in a name stands for layers 0 to
29): a small checkpoint is the published table with fewer layers and smaller sizes, so its names cannot drift from the
real ones. A tensor's values follow from its name and the seed: the same seed gives the same weights in both layouts.

As a script: ``python tests/small_checkpoints.py FOLDER [--task t2v|i2v|df] [--seed N] [--layout original|diffusers]``.
"""

import json
import math
import re
import struct
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file

DATA = Path(__file__).parent / "data" / "state_dict_shapes.json"
TRANSFORMERS = {
    "t2v": "SkyReels-V2-DF-14B and SkyReels-V2-T2V-14B",
    "df": "SkyReels-V2-DF-1.3B-540P",
    "i2v": "SkyReels-V2-I2V-1.3B-540P",
}
VAE, T5, CLIP = (
    "Wan2.1_VAE.pth",
    "models_t5_umt5-xxl-enc-bf16.pth",
    "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",
)
DIM, FFN_DIM, HEADS, LAYERS = 64, 96, 4, 2  # heads of 16 channels: GPU kernels want multiples of 8
TEXT_DIM, TEXT_FFN, TEXT_HEADS, TEXT_LAYERS = 32, 48, 4, 2
CLIP_DIM, CLIP_FFN, CLIP_LAYERS = 32, 80, 3
VAE_SHRINK = 12  # 96 channels -> 8


def published_shapes(model: str, layers: int | None = None) -> dict[str, tuple[int, ...]]:
    """Every tensor of a published file with its shape; with ``layers``, only that many of its repeated layers."""
    shapes = {}
    for name, shape in json.loads(DATA.read_text())[model].items():
        repeated = re.search(r"<(\d+)>", name)
        count = 1 if repeated is None else int(repeated[1]) if layers is None else layers
        for i in range(count):
            shapes[re.sub(r"<\d+>", str(i), name)] = tuple(shape)
    return shapes


def resize(shapes: dict[str, tuple[int, ...]], sizes: dict[int, int]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(sizes.get(n, n) for n in shape) for name, shape in shapes.items()}


def transformer_shapes(task: str, dim: int = DIM, ffn_dim: int = FFN_DIM, layers: int = LAYERS) -> dict:
    big, ffn = (5120, 13824) if task == "t2v" else (1536, 8960)
    sizes = {big: dim, 6 * big: 6 * dim, ffn: ffn_dim, 4096: TEXT_DIM, 1280: CLIP_DIM}
    return resize(published_shapes(TRANSFORMERS[task], layers), sizes)


def vae_shapes() -> dict:
    channels = {n: n // VAE_SHRINK for n in (96, 192, 384, 768, 1152)}
    return resize(published_shapes(VAE), channels)


def text_encoder_shapes() -> dict:
    sizes = {256384: len(vocabulary()), 4096: TEXT_DIM, 10240: TEXT_FFN, 64: TEXT_HEADS}
    return resize(published_shapes(T5, TEXT_LAYERS), sizes)


def image_encoder_shapes() -> dict:
    visual = {1280: CLIP_DIM, 3840: 3 * CLIP_DIM, 5120: CLIP_FFN, 1024: 24}
    textual = {250002: 50, 1024: 24, 4096: 40, 514: 20}
    shapes = published_shapes(CLIP, CLIP_LAYERS)
    return {name: resize({name: s}, textual if name[:7] == "textual" else visual)[name] for name, s in shapes.items()}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """Values at which signals neither die out nor explode, whatever the depth; they follow from name and seed."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + 1_000_003 * seed)
    noise = torch.randn(shape, generator=generator)
    if name.endswith("gamma"):
        return torch.ones(shape)
    if name.endswith(".bias"):
        return 0.02 * noise
    if name.endswith(".weight") and len(shape) == 1:
        return 1 + 0.1 * noise
    if re.search(r"(token_embedding|fps_embedding|pos_embedding\.embedding)\.weight$", name):
        return noise
    if re.search(r"(cls_embedding|pos_embedding|modulation)$", name):
        return 0.5 * noise
    return noise / math.sqrt(math.prod(shape[1:]))


def random_weights(shapes: dict, seed: int, dtype=torch.float32) -> dict[str, torch.Tensor]:
    return {name: random_tensor(name, shape, seed).to(dtype) for name, shape in shapes.items()}


def transformer_config(task: str, dim=DIM, ffn_dim=FFN_DIM, heads=HEADS, layers=LAYERS) -> dict:
    """The fields of the published config.json, and the sizes that no published model sets."""
    config = {
        "_class_name": "WanModel",
        "_diffusers_version": "0.30.0",
        "model_type": "i2v" if task == "i2v" else "t2v",
        "dim": dim,
        "ffn_dim": ffn_dim,
        "freq_dim": 256,
        "in_dim": 36 if task == "i2v" else 16,
        "out_dim": 16,
        "num_heads": heads,
        "num_layers": layers,
        "eps": 1e-6,
        "text_len": 512,
        "text_dim": TEXT_DIM,
    }
    if task == "df":
        config["inject_sample_info"] = True
    if task == "i2v":
        config["img_dim"] = CLIP_DIM
    return config


def vocabulary() -> list[tuple[str, float]]:
    """Pieces of a unigram tokenizer with their log probabilities; as in umT5, 0 pads, 1 ends and 3 is unknown."""
    words = ["▁a", "▁the", "▁of", "▁in", "▁and", "▁on", "▁swan", "▁cat", "▁water", "ing", "er", "ed"]
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,!?'-éß"
    first = [("<pad>", 0.0), ("</s>", 0.0), ("<s>", 0.0), ("<unk>", 0.0)]
    return [*first, *((w, -3.0) for w in words), *((c, -5.0) for c in letters)]


def sentencepiece_model() -> bytes:
    """`vocabulary` as a ``spiece.model``: pieces of text, score and kind (``sentencepiece_model.proto``)."""
    model = b""
    for number, (word, score) in enumerate(vocabulary()):
        kind = 2 if word == "<unk>" else 3 if number < 4 else 1
        text = word.encode()
        piece = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", score) + b"\x18" + bytes([kind])
        model += b"\x0a" + bytes([len(piece)]) + piece
    return model


def write_tokenizer(folder: Path) -> None:
    """As umT5's files are: a tokenizer.json that is complete, and a class that would build another one of it."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(vocabulary(), unk_id=3, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name, _ in vocabulary()[:4]])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "additional_special_tokens": [], **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_original(
    folder: str | Path,
    task: str = "t2v",
    seed: int = 0,
    shards: str | None = None,
    dtype: torch.dtype = torch.float32,
    index: bool = False,
) -> Path:
    """Write a checkpoint in the original layout.

    Args:
        task: ``t2v`` (also the shape of a 14B DF), ``df`` (with fps embedding, as the 1.3B DF) or ``i2v``.
        shards: None for ``model.safetensors``; ``"model"`` or ``"diffusion_pytorch_model"`` for three shards so named;
            ``"diffusion_pytorch_model.safetensors"`` for one file of that name.
        dtype: of every stored tensor.
        index: write the index json beside the shards as well.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(transformer_config(task), indent=2))
    weights = random_weights(transformer_shapes(task), seed, dtype)
    if shards in ("model", "diffusion_pytorch_model"):
        digits = 5
        names = list(weights)
        weight_map = {}
        for i in range(3):
            file = f"{shards}-{i + 1:0{digits}}-of-{3:0{digits}}.safetensors"
            part = {name: weights[name] for name in names[i::3]}
            save_file(part, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(part, file)
        if index:
            (folder / f"{shards}.safetensors.index.json").write_text(
                json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
            )
    else:
        save_file(weights, folder / (shards or "model.safetensors"), metadata={"format": "pt"})
    torch.save(random_weights(vae_shapes(), seed, dtype), folder / VAE)
    torch.save(random_weights(text_encoder_shapes(), seed, dtype), folder / T5)
    write_tokenizer(folder / "google" / "umt5-xxl")
    if task == "i2v":
        torch.save(random_weights(image_encoder_shapes(), seed, dtype), folder / CLIP)
    return folder


def diffusers_transformer(task: str, seed: int = 0):
    """diffusers' own transformer with the weights of ``write_original``, renamed by diffusers' own conversion."""
    from diffusers import SkyReelsV2Transformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    model = SkyReelsV2Transformer3DModel(
        num_attention_heads=HEADS,
        attention_head_dim=DIM // HEADS,
        in_channels=36 if task == "i2v" else 16,
        text_dim=TEXT_DIM,
        ffn_dim=FFN_DIM,
        num_layers=LAYERS,
        image_dim=CLIP_DIM if task == "i2v" else None,
        added_kv_proj_dim=DIM if task == "i2v" else None,
        inject_sample_info=task == "df",
    )
    weights = convert_wan_transformer_to_diffusers(random_weights(transformer_shapes(task), seed))
    # That conversion knows Wan, which has no fps embedding.
    weights = {name.replace("fps_projection.0.", "fps_projection.net.0.proj."): t for name, t in weights.items()}
    weights = {name.replace("fps_projection.2.", "fps_projection.net.2."): t for name, t in weights.items()}
    model.load_state_dict(weights)
    return model.eval()


def diffusers_vae(seed: int = 0):
    """diffusers' own VAE with the weights of ``write_original``."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    model = AutoencoderKLWan(base_dim=96 // VAE_SHRINK)
    model.load_state_dict(convert_wan_vae_to_diffusers(random_weights(vae_shapes(), seed)))
    return model.eval()


def transformers_text_encoder(seed: int = 0):
    """transformers' UMT5EncoderModel with the weights of ``write_original``."""
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=len(vocabulary()),
        d_model=TEXT_DIM,
        d_kv=TEXT_DIM // TEXT_HEADS,
        d_ff=TEXT_FFN,
        num_layers=TEXT_LAYERS,
        num_heads=TEXT_HEADS,
    )
    weights = random_weights(text_encoder_shapes(), seed)
    theirs = {"shared.weight": weights["token_embedding.weight"]}
    theirs["encoder.embed_tokens.weight"] = weights["token_embedding.weight"]
    theirs["encoder.final_layer_norm.weight"] = weights["norm.weight"]
    for i in range(TEXT_LAYERS):
        block = f"encoder.block.{i}.layer"
        for name in "qkvo":
            theirs[f"{block}.0.SelfAttention.{name}.weight"] = weights[f"blocks.{i}.attn.{name}.weight"]
        bias = weights[f"blocks.{i}.pos_embedding.embedding.weight"]
        theirs[f"{block}.0.SelfAttention.relative_attention_bias.weight"] = bias
        theirs[f"{block}.0.layer_norm.weight"] = weights[f"blocks.{i}.norm1.weight"]
        theirs[f"{block}.1.layer_norm.weight"] = weights[f"blocks.{i}.norm2.weight"]
        theirs[f"{block}.1.DenseReluDense.wi_0.weight"] = weights[f"blocks.{i}.ffn.gate.0.weight"]
        theirs[f"{block}.1.DenseReluDense.wi_1.weight"] = weights[f"blocks.{i}.ffn.fc1.weight"]
        theirs[f"{block}.1.DenseReluDense.wo.weight"] = weights[f"blocks.{i}.ffn.fc2.weight"]
    model = UMT5EncoderModel(config)
    model.load_state_dict(theirs)
    return model.eval()


def transformers_image_encoder(seed: int = 0, projection: bool = False):
    """transformers' CLIPVisionModel (or the one with projection) with the weights of ``write_original``."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=CLIP_DIM,
        intermediate_size=CLIP_FFN,
        projection_dim=24,
        num_hidden_layers=CLIP_LAYERS,
        num_attention_heads=16,
        image_size=224,
        patch_size=14,
        hidden_act="gelu",
        layer_norm_eps=1e-5,
    )
    weights = random_weights(image_encoder_shapes(), seed)
    theirs = {
        "embeddings.class_embedding": weights["visual.cls_embedding"].flatten(),
        "embeddings.position_embedding.weight": weights["visual.pos_embedding"][0],
        "embeddings.patch_embedding.weight": weights["visual.patch_embedding.weight"],
    }
    for kind in ("weight", "bias"):
        theirs[f"pre_layrnorm.{kind}"] = weights[f"visual.pre_norm.{kind}"]
        theirs[f"post_layernorm.{kind}"] = weights[f"visual.post_norm.{kind}"]
        for i in range(CLIP_LAYERS):
            ours, layer = f"visual.transformer.{i}", f"encoder.layers.{i}"
            for name, part in zip("qkv", weights[f"{ours}.attn.to_qkv.{kind}"].chunk(3), strict=True):
                theirs[f"{layer}.self_attn.{name}_proj.{kind}"] = part
            theirs[f"{layer}.self_attn.out_proj.{kind}"] = weights[f"{ours}.attn.proj.{kind}"]
            theirs[f"{layer}.layer_norm1.{kind}"] = weights[f"{ours}.norm1.{kind}"]
            theirs[f"{layer}.layer_norm2.{kind}"] = weights[f"{ours}.norm2.{kind}"]
            theirs[f"{layer}.mlp.fc1.{kind}"] = weights[f"{ours}.mlp.0.{kind}"]
            theirs[f"{layer}.mlp.fc2.{kind}"] = weights[f"{ours}.mlp.2.{kind}"]
    model = CLIPVisionModelWithProjection(config) if projection else CLIPVisionModel(config)
    # Older releases of transformers keep the tower of CLIPVisionModel one level down, under the same name.
    if hasattr(model, "vision_model"):
        theirs = {f"vision_model.{name}": tensor for name, tensor in theirs.items()}
    if projection:
        theirs["visual_projection.weight"] = weights["visual.head"].T
    model.load_state_dict(theirs)
    return model.eval()


def write_diffusers(folder: str | Path, task: str = "t2v", seed: int = 0) -> Path:
    """Write the checkpoint of ``write_original(task, seed)`` in diffusers layout, through diffusers' own pipeline."""
    import diffusers
    from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

    folder = Path(folder)
    write_tokenizer(folder / "tokenizer")
    parts = {
        "transformer": diffusers_transformer(task, seed),
        "vae": diffusers_vae(seed),
        "text_encoder": transformers_text_encoder(seed),
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "scheduler": diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0
        ),
    }
    if task == "i2v":
        parts["image_encoder"] = transformers_image_encoder(seed, projection=True)
        parts["image_processor"] = CLIPImageProcessor()
    pipeline = {
        "t2v": diffusers.SkyReelsV2Pipeline,
        "df": diffusers.SkyReelsV2DiffusionForcingPipeline,
        "i2v": diffusers.SkyReelsV2ImageToVideoPipeline,
    }[task]
    pipeline(**parts).save_pretrained(folder)
    return folder


def main() -> None:
    import argparse

    parser = argparse.ArgumentParser(description="Write a small random SkyReels-V2 checkpoint.")
    parser.add_argument("folder")
    parser.add_argument("--task", choices=sorted(TRANSFORMERS), default="t2v")
    parser.add_argument("--layout", choices=("original", "diffusers"), default="original")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write = write_diffusers if args.layout == "diffusers" else write_original
    print(write(args.folder, args.task, args.seed))


if __name__ == "__main__":
    main()
