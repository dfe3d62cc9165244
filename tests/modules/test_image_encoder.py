"""Images to features, against transformers' own tower with all its layers."""

import shutil

import pytest
import small_checkpoints as small
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import get_image_encoder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("image")
    return {"original": small.write_original(root / "o", "i2v"), "diffusers": small.write_diffusers(root / "d", "i2v")}


@pytest.fixture(scope="module")
def encoders(folders):
    return {k: get_image_encoder(path, device="cpu", weight_dtype=torch.float32) for k, path in folders.items()}


@pytest.fixture(scope="module")
def reference():
    """hidden_states[-2] of the whole tower, of a frame squashed to 224x224 and normalised in double precision."""
    model = small.transformers_image_encoder()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(3, 1, 1)

    def encode(image: torch.Tensor) -> torch.Tensor:
        squashed = F.interpolate(image.double(), (224, 224), mode="bicubic")
        pixels = ((squashed * 0.5 + 0.5) - mean) / std
        with torch.no_grad():
            return model(pixels.float(), output_hidden_states=True).hidden_states[-2]

    return encode


def picture(height: int, width: int, batch: int = 1) -> torch.Tensor:
    """Something between a photograph and noise, in -1..1."""
    generator = torch.Generator().manual_seed(height * 1000 + width)
    coarse = torch.rand(batch, 3, 5, 7, generator=generator)
    smooth = F.interpolate(coarse, (height, width), mode="bilinear")
    return (smooth + 0.1 * torch.rand(smooth.shape, generator=generator)).clamp(0, 1) * 2 - 1


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("layout", ("original", "diffusers"))
@pytest.mark.parametrize("size", ((544, 960), (320, 176), (224, 224), (48, 64)))
@pytest.mark.parametrize("batch", (1, 2))
def test_equals_the_reference(encoders, reference, layout, size, batch):
    image = picture(*size, batch=batch)
    ours = encoders[layout].encode(image)
    assert ours.shape == (batch, 257, small.CLIP_DIM) and not ours.requires_grad
    assert relative_error(ours, reference(image)) <= 1e-5


def test_only_what_is_needed_is_computed(folders):
    encoder = get_image_encoder(folders["original"], device="cpu", weight_dtype=torch.float32)
    assert len(encoder.model.encoder.layers) == small.CLIP_LAYERS - 1
    assert not any("post_layernorm" in name or "projection" in name for name, _ in encoder.named_parameters())
    assert not any(tensor.is_meta for tensor in [*encoder.parameters(), *encoder.buffers()])


@pytest.mark.parametrize("prefix", ("", "vision_model."))
@pytest.mark.parametrize("projection", (False, True))
@pytest.mark.parametrize("positions", (False, True))
def test_the_names_that_releases_of_transformers_write(folders, reference, tmp_path, prefix, projection, positions):
    folder = shutil.copytree(folders["diffusers"], tmp_path / "d")
    file = folder / "image_encoder" / "model.safetensors"
    weights = load_file(file)
    head = weights.pop("visual_projection.weight")
    weights = {prefix + name.removeprefix("vision_model."): tensor for name, tensor in weights.items()}
    if projection:
        weights["visual_projection.weight"] = head
    if positions:  # a buffer that older releases stored
        weights[f"{prefix}embeddings.position_ids"] = torch.arange(257)[None]
    save_file(weights, file)
    image = picture(48, 80)
    ours = get_image_encoder(folder, device="cpu", weight_dtype=torch.float32).encode(image)
    assert relative_error(ours, reference(image)) <= 1e-5


def test_casts(folders, reference):
    encoder = get_image_encoder(folders["original"], device="cpu", weight_dtype=torch.bfloat16)
    assert encoder.dtype == torch.bfloat16 and encoder.device == torch.device("cpu") and not encoder.training
    image = picture(64, 96)
    ours = encoder.encode(image)
    assert ours.dtype == torch.bfloat16 and relative_error(ours.float(), reference(image)) < 0.03


@pytest.mark.parametrize("layout", ("original", "diffusers"))
def test_only_the_listed_tensors_may_be_left_over(folders, tmp_path, layout):
    folder = shutil.copytree(folders[layout], tmp_path / "c")
    if layout == "original":
        weights = torch.load(folder / small.CLIP, weights_only=True)
        torch.save(weights | {"visual.transformer.1.extra": torch.zeros(1)}, folder / small.CLIP)
    else:
        file = folder / "image_encoder" / "model.safetensors"
        save_file(load_file(file) | {"vision_model.encoder.layers.1.extra": torch.zeros(1)}, file)
    with pytest.raises(InputError, match=r"1 unexpected \(.*1\.extra\)"):
        get_image_encoder(folder, device="cpu")
