"""Tensor names of checkpoints -> parameter names of our modules: one table per kind of file.

A table is a list of (pattern, replacement) pairs that `renamed` applies in order with `re.sub`. A name that matches no
pattern is kept; strict loading reports it unless the module has a parameter of that name.

Source of the names: ``SkyReelsV2Transformer3DModel`` and ``AutoencoderKLWan`` of diffusers, ``UMT5EncoderModel`` and
``CLIPVisionModel`` of transformers, and the published ``.pth`` files.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

Table = list[tuple[str, str]]

# Parameters that stay float32 when the transformer is cast: the conditioning that enters every block (time, fps,
# modulation) and the norms. 1 to 2.4 % of the weights, and the most sensitive to bfloat16 rounding.
KEEP_FLOAT32 = re.compile(
    r"time_embedding|time_projection|fps_embedding|fps_projection|modulation|norm_q|norm_k|norm_k_img|norm3"
)

# The weights of the blocks' linear layers: almost all of a transformer, and what is quantised of it.
BLOCK_LINEAR = re.compile(r"^blocks\.\d+\.((self|cross)_attn\.([qkvo]|[kv]_img)|ffn\.[02])\.weight$")

# SkyReelsV2Transformer3DModel -> WanModel
DIFFUSERS_TRANSFORMER: Table = [
    (r"^condition_embedder\.time_embedder\.linear_1\.", "time_embedding.0."),
    (r"^condition_embedder\.time_embedder\.linear_2\.", "time_embedding.2."),
    (r"^condition_embedder\.time_proj\.", "time_projection.1."),
    (r"^condition_embedder\.text_embedder\.linear_1\.", "text_embedding.0."),
    (r"^condition_embedder\.text_embedder\.linear_2\.", "text_embedding.2."),
    (r"^condition_embedder\.image_embedder\.norm1\.", "img_emb.proj.0."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj\.", "img_emb.proj.1."),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2\.", "img_emb.proj.3."),
    (r"^condition_embedder\.image_embedder\.norm2\.", "img_emb.proj.4."),
    (r"^fps_projection\.net\.0\.proj\.", "fps_projection.0."),
    (r"^fps_projection\.net\.2\.", "fps_projection.2."),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"_attn\.to_([qkv])\.", r"_attn.\1."),
    (r"_attn\.to_out\.0\.", "_attn.o."),
    (r"_attn\.add_([kv])_proj\.", r"_attn.\1_img."),
    (r"_attn\.norm_added_k\.", "_attn.norm_k_img."),
    (r"^(blocks\.\d+)\.norm2\.", r"\1.norm3."),
    (r"^(blocks\.\d+)\.ffn\.net\.0\.proj\.", r"\1.ffn.0."),
    (r"^(blocks\.\d+)\.ffn\.net\.2\.", r"\1.ffn.2."),
    (r"^(blocks\.\d+)\.scale_shift_table$", r"\1.modulation"),
    (r"^scale_shift_table$", "head.modulation"),
    (r"^proj_out\.", "head.head."),
]

# WanModel -> SkyReelsV2Transformer3DModel, the inverse of the table above.
TO_DIFFUSERS_TRANSFORMER: Table = [
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^img_emb\.proj\.0\.", "condition_embedder.image_embedder.norm1."),
    (r"^img_emb\.proj\.1\.", "condition_embedder.image_embedder.ff.net.0.proj."),
    (r"^img_emb\.proj\.3\.", "condition_embedder.image_embedder.ff.net.2."),
    (r"^img_emb\.proj\.4\.", "condition_embedder.image_embedder.norm2."),
    (r"^fps_projection\.0\.", "fps_projection.net.0.proj."),
    (r"^fps_projection\.2\.", "fps_projection.net.2."),
    (r"_attn\.([qkv])\.", r"_attn.to_\1."),
    (r"_attn\.o\.", "_attn.to_out.0."),
    (r"_attn\.([kv])_img\.", r"_attn.add_\1_proj."),
    (r"_attn\.norm_k_img\.", "_attn.norm_added_k."),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
    (r"^(blocks\.\d+)\.ffn\.0\.", r"\1.ffn.net.0.proj."),
    (r"^(blocks\.\d+)\.ffn\.2\.", r"\1.ffn.net.2."),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^head\.head\.", "proj_out."),
]


def diffusers_vae(blocks: int = 2) -> Table:
    """AutoencoderKLWan -> Wan2.1_VAE.pth.

    AutoencoderKLWan has one list per decoder stage (`blocks` + 1 residual blocks, then an upsampler in all but the
    last), Wan2.1_VAE.pth one list for all stages. Rows for the inside of a residual block come first, because later
    rows produce names (conv1) that they would match.
    """
    return [
        (r"(blocks|resnets)\.(\d+)\.norm1\.", r"\1.\2.residual.0."),
        (r"(blocks|resnets)\.(\d+)\.conv1\.", r"\1.\2.residual.2."),
        (r"(blocks|resnets)\.(\d+)\.norm2\.", r"\1.\2.residual.3."),
        (r"(blocks|resnets)\.(\d+)\.conv2\.", r"\1.\2.residual.6."),
        (r"(blocks|resnets)\.(\d+)\.conv_shortcut\.", r"\1.\2.shortcut."),
        (r"^encoder\.down_blocks\.", "encoder.downsamples."),
        *(
            (rf"^decoder\.up_blocks\.{stage}\.{theirs}\.", f"decoder.upsamples.{(blocks + 2) * stage + i}.")
            for stage in range(4)
            for i, theirs in enumerate([*(rf"resnets\.{j}" for j in range(blocks + 1)), r"upsamplers\.0"])
        ),
        (r"\.mid_block\.resnets\.0\.", ".middle.0."),
        (r"\.mid_block\.attentions\.0\.", ".middle.1."),
        (r"\.mid_block\.resnets\.1\.", ".middle.2."),
        (r"^(encoder|decoder)\.conv_in\.", r"\1.conv1."),
        (r"^(encoder|decoder)\.norm_out\.", r"\1.head.0."),
        (r"^(encoder|decoder)\.conv_out\.", r"\1.head.2."),
        (r"^quant_conv\.", "conv1."),
        (r"^post_quant_conv\.", "conv2."),
    ]


# models_t5_umt5-xxl-enc-bf16.pth -> UMT5EncoderModel
ORIGINAL_TEXT_ENCODER: Table = [
    (r"^token_embedding\.", "shared."),
    (r"^norm\.", "encoder.final_layer_norm."),
    (r"^blocks\.(\d+)\.norm1\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^blocks\.(\d+)\.norm2\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^blocks\.(\d+)\.attn\.([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (
        r"^blocks\.(\d+)\.pos_embedding\.embedding\.",
        r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias.",
    ),
    (r"^blocks\.(\d+)\.ffn\.gate\.0\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^blocks\.(\d+)\.ffn\.fc1\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^blocks\.(\d+)\.ffn\.fc2\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]

# GGUF files of llama.cpp -> UMT5EncoderModel
LLAMA_TEXT_ENCODER: Table = [
    (r"^token_embd\.", "shared."),
    (r"^enc\.output_norm\.", "encoder.final_layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_norm\.", r"encoder.block.\1.layer.0.layer_norm."),
    (r"^enc\.blk\.(\d+)\.ffn_norm\.", r"encoder.block.\1.layer.1.layer_norm."),
    (r"^enc\.blk\.(\d+)\.attn_([qkvo])\.", r"encoder.block.\1.layer.0.SelfAttention.\2."),
    (r"^enc\.blk\.(\d+)\.attn_rel_b\.", r"encoder.block.\1.layer.0.SelfAttention.relative_attention_bias."),
    (r"^enc\.blk\.(\d+)\.ffn_gate\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_0."),
    (r"^enc\.blk\.(\d+)\.ffn_up\.", r"encoder.block.\1.layer.1.DenseReluDense.wi_1."),
    (r"^enc\.blk\.(\d+)\.ffn_down\.", r"encoder.block.\1.layer.1.DenseReluDense.wo."),
]

# The token embedding is tied: a file may contain it under either name, or under both.
DIFFUSERS_TEXT_ENCODER: Table = [(r"^encoder\.embed_tokens\.", "shared.")]

# models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth -> CLIPVisionModel. The file's position table and class token
# have leading axes of size 1; `*` stands for q, k and v, which the file fuses into one tensor.
ORIGINAL_IMAGE_ENCODER: Table = [
    (r"^visual\.cls_embedding$", "embeddings.class_embedding"),
    (r"^visual\.pos_embedding$", "embeddings.position_embedding.weight"),
    (r"^visual\.patch_embedding\.", "embeddings.patch_embedding."),
    (r"^visual\.pre_norm\.", "pre_layrnorm."),
    (r"^visual\.transformer\.(\d+)\.norm([12])\.", r"encoder.layers.\1.layer_norm\2."),
    (r"^visual\.transformer\.(\d+)\.attn\.to_qkv\.", r"encoder.layers.\1.self_attn.*_proj."),
    (r"^visual\.transformer\.(\d+)\.attn\.proj\.", r"encoder.layers.\1.self_attn.out_proj."),
    (r"^visual\.transformer\.(\d+)\.mlp\.0\.", r"encoder.layers.\1.mlp.fc1."),
    (r"^visual\.transformer\.(\d+)\.mlp\.2\.", r"encoder.layers.\1.mlp.fc2."),
]

DIFFUSERS_IMAGE_ENCODER: Table = [(r"^vision_model\.", "")]

# Tensors that are not loaded: the features are the hidden states before the last layer ({last}), so that this layer,
# all that follows it, the text tower and its temperature are unused.
ORIGINAL_IMAGE_ENCODER_UNUSED = [
    r"^visual\.transformer\.{last}\.",
    r"^visual\.post_norm\.",
    r"^visual\.head$",
    r"^log_scale$",
    r"^textual\.",
]
DIFFUSERS_IMAGE_ENCODER_UNUSED = [
    r"^(vision_model\.)?encoder\.layers\.{last}\.",
    r"^(vision_model\.)?post_layernorm\.",
    r"^(vision_model\.)?embeddings\.position_ids$",
    r"^visual_projection\.",
]


@dataclass(frozen=True)
class Style:
    """How the tensors of one part are named in one kind of file.

    Attributes:
        name: of the layout that has these names: ``"original"``, ``"diffusers"`` or ``"llama.cpp"``.
        anchor: a tensor that every file of this style has, and that no file of another style or part has.
        table: renames its tensors to our parameters.
        unused: patterns of tensors that are not loaded; ``{last}`` stands for the number of the last layer.
    """

    name: str
    anchor: str
    table: Table
    unused: Iterable[str] = ()


STYLES: dict[str, tuple[Style, ...]] = {
    "transformer": (
        Style("original", "time_embedding.0.weight", []),
        Style("diffusers", "condition_embedder.time_embedder.linear_1.weight", DIFFUSERS_TRANSFORMER),
    ),
    "vae": (
        Style("original", "decoder.middle.0.residual.0.gamma", []),
        Style("diffusers", "decoder.mid_block.resnets.0.norm1.gamma", diffusers_vae()),
    ),
    "text_encoder": (
        Style("original", "blocks.0.attn.q.weight", ORIGINAL_TEXT_ENCODER),
        Style("diffusers", "encoder.block.0.layer.0.SelfAttention.q.weight", DIFFUSERS_TEXT_ENCODER),
        Style("llama.cpp", "enc.blk.0.attn_q.weight", LLAMA_TEXT_ENCODER),
    ),
    "image_encoder": (
        Style(
            "original", "visual.patch_embedding.weight", ORIGINAL_IMAGE_ENCODER, tuple(ORIGINAL_IMAGE_ENCODER_UNUSED)
        ),
        *(
            Style("diffusers", anchor, DIFFUSERS_IMAGE_ENCODER, tuple(DIFFUSERS_IMAGE_ENCODER_UNUSED))
            for anchor in (
                "vision_model.embeddings.patch_embedding.weight",
                "embeddings.patch_embedding.weight",
            )
        ),
    ),
}

# What may stand before all names of a part: in single files of ComfyUI and of trainers, and in files of whole models.
PREFIXES = {
    "transformer": ("", "model.diffusion_model.", "diffusion_model.", "model.", "net."),
    "vae": ("", "first_stage_model.", "vae.", "model."),
    "text_encoder": ("", "text_encoders.umt5xxl.transformer.", "model."),
    "image_encoder": ("", "clip_vision."),
}
# Beginnings of the other parts' names in a file of a whole model.
OTHER_PARTS = (
    "model.diffusion_model.",
    "first_stage_model.",
    "vae.",
    "text_encoders.",
    "cond_stage_model.",
    "clip_vision.",
)

# Tensors that say what a file is and are no weights.
MARKERS = re.compile(r"^(scaled_fp8|spiece_model|model_type\..+)$")
# What a LoRA's names contain.
LORA = re.compile(r"\.?(lora_[AB]|lora_(up|down)|lora\.(up|down)|lokr_w\d|hada_w\d_[ab]|diff(_[bm])?|alpha)(\.|$)")


def renamed(name: str, table: Table) -> str:
    """Our parameter name for a tensor name of a file."""
    for pattern, replacement in table:
        name = re.sub(pattern, replacement, name)
    return name


def targets(name: str, table: Table) -> list[str]:
    """The parameters that a tensor of a file fills: one, or three for a fused q, k, v."""
    name = renamed(name, table)
    return [name.replace("*", part) for part in "qkv"] if "*" in name else [name]
