"""What the files of the published models take, computed from the numbers of parameters."""

from collections.abc import Collection

from skyreels_v2_infer.plan import cost, models

# Bytes per parameter of the published files: float32, but for the text encoder of the original layout, which is named
# after its bfloat16. The image encoder of that layout comes with the text tower that it was trained with.
FILE_BYTES = {"original": {"text_encoder": 2}, "diffusers": {}}
IMAGE_ENCODER_FILE = 1_193_014_785  # parameters in the original layout's file


def download_bytes(model_id: str, without: Collection[str] = ()) -> dict[str, int]:
    """Bytes of a published model's weight files, by part; computed from the numbers of parameters.

    Args:
        without: parts that come from elsewhere.
    """
    config = models.architecture(model_id)
    layout = "diffusers" if model_id.endswith("-Diffusers") else "original"
    counts = {"transformer": cost.parameters(config), "text_encoder": cost.TEXT_ENCODER, "vae": cost.VAE}
    if config["model_type"] == "i2v":
        counts["image_encoder"] = cost.IMAGE_ENCODER if layout == "diffusers" else IMAGE_ENCODER_FILE
    per = FILE_BYTES[layout]
    return {part: count * per.get(part, 4) for part, count in counts.items() if part not in without}
