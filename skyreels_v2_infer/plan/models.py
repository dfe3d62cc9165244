"""Published models: their ids on the hub, their architecture, and the size that they were trained at.

Also the keys of a foreign config that are dropped.
"""

import re

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
HUB_FILE = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w. -]+)+")  # a model, or a file in one: owner/name/path/to/file
ENHANCER = "Qwen/Qwen2.5-32B-Instruct"  # default chat model of --prompt_enhancer and of --fusion_model
CAPTIONER = "Skywork/SkyCaptioner-V1"  # default captioner
NO_MODEL = "none"  # of --fusion_model: prompts by rule

# Sizes, by the part of a model's name; see `architecture`.
SIZES = {
    "14B": {"dim": 5120, "ffn_dim": 13824, "num_heads": 40, "num_layers": 40},
    "1.3B": {"dim": 1536, "ffn_dim": 8960, "num_heads": 12, "num_layers": 30},
}
PUBLISHED = {
    f"Skywork/SkyReels-V2-{kind}-{size}-{resolution}{layout}": (kind, size)
    for kind, size, resolution in (
        ("DF", "1.3B", "540P"),
        ("I2V", "1.3B", "540P"),
        *((kind, "14B", resolution) for kind in ("DF", "T2V", "I2V") for resolution in ("540P", "720P")),
    )
    for layout in ("", "-Diffusers")
}


def architecture(model_id: str) -> dict | None:
    """Arguments of `WanModel` for a published model, by its full hub id; None: not a published model."""
    if model_id not in PUBLISHED:
        return None
    kind, size = PUBLISHED[model_id]
    config = {"model_type": "i2v" if kind == "I2V" else "t2v", **SIZES[size]}
    if (kind, size) == ("DF", "1.3B"):
        config["inject_sample_info"] = True
    return config


# Hub ids of the models trained at 720P. The name of a local folder is not interpreted.
MODELS_720P = frozenset(
    f"Skywork/SkyReels-V2-{kind}-14B-720P{layout}" for kind in ("DF", "T2V", "I2V") for layout in ("", "-Diffusers")
)
