"""A transformer's ``config.json``, of either layout, from and to the keyword arguments of `WanModel`."""

import json
from pathlib import Path

from skyreels_v2_infer.weights.layouts import read_json, refusal

# Fields with one supported value, the one of all published models (in either spelling).
FIXED = {
    "patch_size": ([1, 2, 2],),
    "window_size": ([-1, -1],),
    "qk_norm": (True, "rms_norm_across_heads"),
    "pos_embed_seq_len": (None,),
}
# diffusers' field names where they differ from WanModel's argument names.
DIFFUSERS_FIELDS = {
    "in_channels": "in_dim",
    "out_channels": "out_dim",
    "num_attention_heads": "num_heads",
    "image_dim": "img_dim",
}
REQUIRED = ["dim", "ffn_dim", "num_heads", "num_layers"]
SIZES = [*REQUIRED, "in_dim", "out_dim", "freq_dim", "text_dim", "text_len", "img_dim"]
LARGEST = 2**24  # of any size
FLAGS = ["cross_attn_norm", "inject_sample_info"]
KNOWN = {*SIZES, *FLAGS, "eps", "model_type"}
IN_DIMS = {"t2v": 16, "i2v": 36}  # noise; noise + 4 mask channels + 16 image latent channels


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST


def shown(value: object) -> str:
    """A value of a config.json for a message, shortened."""
    try:
        return json.dumps(value, default=str)[:80]
    except (ValueError, RecursionError):  # more digits than Python writes; too deeply nested
        return f"a {type(value).__name__}"


def transformer_arguments(config: dict, model_id: object) -> dict:
    """The keyword arguments of `WanModel` for a transformer's config.json of either layout.

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    for name, legal in FIXED.items():
        if name in config and config[name] not in legal:
            value, only = shown(config[name]), json.dumps(legal[0])
            raise refusal(model_id, f"config.json has {name} {value}; only {only} is supported")
    ours = {DIFFUSERS_FIELDS.get(name, name): value for name, value in config.items() if name[:1] != "_"}
    head_dim = ours.get("attention_head_dim")
    ours = {name: value for name, value in ours.items() if name in KNOWN and value is not None}
    if isinstance(head_dim, int) and isinstance(ours.get("num_heads"), int):
        ours["dim"] = head_dim * ours["num_heads"]
    for name in SIZES:
        if name in ours and not is_size(ours[name]):
            value = shown(ours[name])
            raise refusal(model_id, f"config.json has {name} {value}; it must be a positive integer up to {LARGEST:,}")
    for name in FLAGS:
        if name in ours and not isinstance(ours[name], bool):
            raise refusal(model_id, f"config.json has {name} {shown(ours[name])}; it must be true or false")
    if "eps" in ours and not (isinstance(ours["eps"], float) and 0 < ours["eps"] < 1):
        raise refusal(model_id, f"config.json has eps {shown(ours['eps'])}; it must be above 0 and below 1")
    lacking = [name for name in REQUIRED if name not in ours]
    if lacking:
        raise refusal(model_id, f"config.json is no SkyReels-V2 transformer's: it lacks {', '.join(lacking)}")
    if ours["dim"] % (2 * ours["num_heads"]):
        heads = f"num_heads {ours['num_heads']} times an even size"
        raise refusal(model_id, f"config.json has dim {ours['dim']}; it must be {heads}")
    in_dim = ours.setdefault("in_dim", IN_DIMS["t2v"])
    kind = ours.setdefault("model_type", "i2v" if in_dim == IN_DIMS["i2v"] else "t2v")
    if not isinstance(kind, str) or IN_DIMS.get(kind) != in_dim:
        legal = " or ".join(f"{name!r} with {channels}" for name, channels in IN_DIMS.items())
        raise refusal(model_id, f"config.json has model_type {shown(kind)} with in_dim {in_dim}, must be {legal}")
    return ours


def config_in(folder: Path, model_id: object) -> dict:
    """The keyword arguments of `WanModel` from the config.json of a folder in either layout."""
    for place in (folder / "transformer", folder):
        if (place / "config.json").is_file():
            shown = "config.json" if place == folder else "transformer/config.json"
            return transformer_arguments(read_json(place / "config.json", shown, model_id), model_id)
    raise refusal(model_id, "is no SkyReels-V2 checkpoint: it has neither config.json nor transformer/config.json")


def original_config(full: dict) -> dict:
    """The config.json of the original layout, from all arguments of `WanModel`."""
    left_out = () if full["model_type"] == "i2v" else ("img_dim",)
    full = {name: value for name, value in full.items() if name not in left_out}
    return {"_class_name": "WanModel", **full, "patch_size": list(full["patch_size"])}


def diffusers_config(full: dict) -> dict:
    """The config.json of a ``SkyReelsV2Transformer3DModel``, from all arguments of `WanModel`."""
    image = full["model_type"] == "i2v"
    same = ("text_dim", "freq_dim", "ffn_dim", "num_layers", "cross_attn_norm", "eps", "inject_sample_info")
    config = {
        "_class_name": "SkyReelsV2Transformer3DModel",
        "patch_size": list(full["patch_size"]),
        **{theirs: full[ours] for theirs, ours in DIFFUSERS_FIELDS.items()},
        **{name: full[name] for name in same},
        "attention_head_dim": full["dim"] // full["num_heads"],
        "image_dim": full["img_dim"] if image else None,
        "added_kv_proj_dim": full["dim"] if image else None,
        "qk_norm": "rms_norm_across_heads",
    }
    # Not a field of theirs: the length is a setting of their pipelines, and that of all published models the default.
    return config if full["text_len"] == 512 else config | {"text_len": full["text_len"]}
