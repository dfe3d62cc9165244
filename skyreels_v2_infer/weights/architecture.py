"""The sizes of a transformer from the shapes of its tensors, for files that come without a config.json."""

import re

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.weights.config import IN_DIMS, transformer_arguments
from skyreels_v2_infer.weights.key_tables import renamed
from skyreels_v2_infer.weights.layouts import refusal
from skyreels_v2_infer.weights.stored import Weights

HEAD_DIM = 128  # of all published models; shapes do not tell it
PATCH = 4  # numbers of a channel in a token: 1 x 2 x 2

# Tensors of other models of the Wan family -> what they are called.
FOREIGN = {
    r"^vace_": "a VACE model",
    r"^img_emb\.emb_pos$": "a first-last-frame (FLF2V) model",
    r"^condition_embedder\.image_embedder\.pos_embed$": "a first-last-frame (FLF2V) model",
    r"^control_adapter\.": "a camera-control model",
    r"^ref_conv\.": "a control model with reference images",
    r"^(audio_proj|casual_audio_encoder|audio_injector)\.": "an audio-driven model",
}


def transformer_config(weights: Weights, config: dict | None = None) -> dict:
    """The keyword arguments of `WanModel` for a file of tensors.

    Args:
        config: a config.json, or arguments of `WanModel`, of a model that may be the same; where its sizes agree with
            the shapes it says what they do not: the number of heads, the length of the text.

    Raises:
        InputError: the tensors are those of a model of another architecture.
    """
    found = from_shapes(weights)
    if config:
        try:
            theirs = transformer_arguments(config, weights.model_id)
        except InputError:
            theirs = {}
        if theirs and all(theirs.get(name, value) == value for name, value in found.items()):
            return theirs | found
    if found["dim"] % HEAD_DIM:
        reason = f"has width {found['dim']}, no multiple of {HEAD_DIM}: it needs a config.json that says its heads"
        raise refusal(weights.model_id, reason)
    return found | {"num_heads": found["dim"] // HEAD_DIM}


def from_shapes(weights: Weights) -> dict:
    """The arguments of `WanModel` that follow from shapes: all but ``num_heads`` and ``text_len``."""
    model_id = weights.model_id
    shapes = {renamed(name, weights.style.table): shape for name, shape in weights.shapes.items()}
    for pattern, what in FOREIGN.items():
        if any(re.search(pattern, name) for name in weights.shapes):
            raise refusal(model_id, f"is {what}, which is not supported")
    layers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d{1,6})\.", name))}
    try:
        in_dim = shapes["patch_embedding.weight"][1]
        found = {
            "dim": shapes["head.modulation"][-1],
            "ffn_dim": shapes["blocks.0.ffn.0.weight"][0],
            "num_layers": len(layers),
            "in_dim": in_dim,
            "out_dim": shapes["head.head.weight"][0] // PATCH,
            "freq_dim": shapes["time_embedding.0.weight"][1],
            "text_dim": shapes["text_embedding.0.weight"][1],
            "inject_sample_info": "fps_embedding.weight" in shapes,
        }
        with_image = "img_emb.proj.1.weight" in shapes
        if with_image:
            found["img_dim"] = shapes["img_emb.proj.1.weight"][1]
    except (KeyError, IndexError) as error:
        reason = f"the transformer's tensors do not fit: {error.args[0]} is missing"
        raise refusal(model_id, reason) from error
    kind = next((kind for kind, channels in IN_DIMS.items() if channels == in_dim), None)
    if kind is None or (kind == "i2v") != with_image:
        image = "with" if with_image else "without"
        wan = " (Wan 2.2)" if in_dim == 48 or (in_dim == IN_DIMS["i2v"] and not with_image) else ""
        legal = f"{IN_DIMS['t2v']} without and {IN_DIMS['i2v']} with"
        raise refusal(model_id, f"takes {in_dim} channels {image} image features{wan}; supported are {legal}")
    if layers != set(range(len(layers))) or min(found.values()) < 0 or not found["dim"]:
        raise refusal(model_id, f"the transformer's tensors do not fit: {len(layers)} blocks, not numbered from 0")
    return found | {"model_type": kind}
