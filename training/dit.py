"""Trains the embedded model's transformer by flow matching, and its text encoder with it.

Three stages: `t2v` (one noise level for a clip), `df` (diffusion forcing: levels that never fall from frame to frame,
given beginnings and ends, block-causal attention now and then), `i2v` (a copy of df's with the image channels).

B batch, F latent frames; latents ``[B, 16, F, 8, 8]``.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.modules.image_encoder import ImageEncoder, empty_model
from skyreels_v2_infer.modules.text_encoder import TextEncoder
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.pipelines import Text2VideoPipeline
from skyreels_v2_infer.pipelines.conditioning import with_mask
from skyreels_v2_infer.weights.locate import Checkpoint
from training import loop, products, timesteps
from training import text as texts
from training.clips import LENGTHS, Clips

SHIFT = 3.0
STRAYED = 0.7  # of the samples that could be given a history that strays, those that are
UNPROMPTED = 0.1  # share of samples without a prompt, for guidance
# Of the levels for a whole clip, those that lie as inference's steps do. Every video starts near pure noise, where
# normal draws hardly ever come: above 0.95 are 3 % of them and 14 % of these.
EVEN = 0.5
# How often a fact is left unsaid, beside what the grammar leaves out: then all frames have to agree on it, and a window
# has to take it from what it goes on from.
UNSAID = {"colour": 0.15, "motion": 0.1}
UNSAID_GIVEN = {"colour": 0.3, "motion": 0.3, "speed": 0.3}  # where more than an image is given
SHAPE = {
    "dim": 128,
    "ffn_dim": 512,
    "num_heads": 4,
    "text_dim": texts.CONFIG["d_model"],
    "text_len": texts.TEXT_LEN,
    "freq_dim": 256,
}
T2V = loop.Recipe(steps=1000, muon=3e-3, adamw=2e-3, decay=0.0)
DF = loop.Recipe(steps=11500, muon=3e-3, adamw=2e-3, decay=0.6, seed=1)
I2V = loop.Recipe(steps=1200, muon=2e-3, adamw=1.3e-3, decay=0.8, seed=2)


@dataclass(frozen=True)
class Mix:
    """What the batches of a stage hold; shares are probabilities.

    Attributes:
        lengths: (share, latents). Lengths that training never saw fail, so the rest of the share is spread over 1 to 9.
        falling: levels of their own for every frame (FoPP, and rows of the AD schedule).
        prefix: beginnings that are given. end: batches with an end image. causal: batches with block-causal attention.
    """

    lengths: tuple[tuple[float, int], ...]
    falling: float = 0.0
    prefix: float = 0.0
    end: float = 0.0
    causal: float = 0.0


T2V_MIX = Mix(lengths=((0.75, 5), (0.15, 9)))
DF_MIX = Mix(lengths=((0.46, 5), (0.44, 9)), falling=0.3, prefix=0.44, end=0.12, causal=0.15)
I2V_MIX = Mix(lengths=((0.5, 5), (0.4, 9)))


@dataclass
class Batch:
    """Attributes:
    latents, noise: float32 ``[B, 16, F, 8, 8]``.
    levels: float32 ``[B, F]``, how noisy each frame is, and what the model is told of it.
    held: bool ``[B, F]``, frames that are given or done, from which no loss comes.
    weights: float32 ``[F]``, what an error in a frame counts.
    block: latent frames of a block of block-causal attention; None: attention without blocks.
    indices: which clips.
    """

    latents: torch.Tensor
    noise: torch.Tensor
    levels: torch.Tensor
    held: torch.Tensor
    weights: torch.Tensor
    prompts: list[str]
    block: int | None
    indices: np.ndarray


def draw(clips: Clips, draws: np.random.Generator, size: int, mix: Mix, length: int) -> Batch:
    """A batch of clips of `length` latents; every random choice is from `draws`."""
    with_end = length in LENGTHS and draws.random() < mix.end
    block = int(draws.choice((1, 2, 3, 5))) if not with_end and draws.random() < mix.causal else None
    free = np.flatnonzero(clips.history == 0)
    pool = np.arange(len(clips)) if mix.prefix and length >= 4 else free
    indices = draws.choice(pool, size)
    latents = clips.latents[indices, :, :length].float()
    frames = length + with_end
    levels, held = np.zeros((size, frames)), np.zeros((size, frames), bool)
    prompts = []
    for i, index in enumerate(indices):
        least = int(clips.history[index])
        prefix = 0
        if least or (length > 1 and draws.random() < mix.prefix):
            prefix = draw_prefix(draws, length, max(1, least), with_end)
        levels[i, prefix:length] = draw_levels(draws, length - prefix, mix, block, prefix)
        held[i] = levels[i] == 0  # given, or done already
        told = clips.prompt(index, draws, UNSAID_GIVEN if prefix > 1 else UNSAID)
        prompts.append("" if draws.random() < UNPROMPTED else told)
        if not prefix:
            continue
        whole = clips.again.shape[2]
        if clips.has_strayed[index] and prefix >= whole and draws.random() < STRAYED:
            latents[i, :, :whole] = clips.strayed[index].float()
        elif clips.has_again[index]:
            known = min(prefix, whole)
            latents[i, :, :known] = clips.again[index, :, :known].float()
        if prefix > 1 and draws.random() < 0.3:  # faults that the model is not told of, as its own past has them
            fault = torch.from_numpy(draws.standard_normal((16, prefix, 8, 8), np.float32))
            latents[i, :, :prefix] += 0.05 * draws.random() * fault
        if draws.random() < 0.4:  # noise that it is told of
            levels[i, :prefix] = draws.uniform(0, 0.12)
    weights = clips.weights[:length]
    if with_end:
        weights = torch.cat([weights, torch.ones(1)])  # always held
        ends = clips.ends[indices, LENGTHS.index(length)].float()
        latents = torch.cat([latents, ends.unsqueeze(2)], dim=2)
    noise = torch.from_numpy(draws.standard_normal(latents.shape, np.float32))
    levels = torch.from_numpy(levels).float()
    return Batch(latents, noise, levels, torch.from_numpy(held), weights, prompts, block, indices)


def draw_levels(draws: np.random.Generator, frames: int, mix: Mix, block: int | None, given: int = 0) -> np.ndarray:
    """Levels ``[frames]`` of those after `given` ones, or ``[1]`` where all share one."""
    if draws.random() >= mix.falling:
        return timesteps.even(draws, SHIFT) if draws.random() < EVEN else timesteps.logit_normal(draws, 1, SHIFT)
    if draws.random() < 0.6:
        return timesteps.fopp_levels(draws, frames, SHIFT)
    return timesteps.staircase(draws, frames, SHIFT, block or int(draws.choice((1, 2, 3, 5))), given)


def draw_length(step: int, mix: Mix) -> int:
    """Latents of a step's clips: the same in all processes, so that none waits for one whose clips are longer."""
    draws = np.random.default_rng(step)
    value = draws.random()
    for share, length in mix.lengths:
        if value < share:
            return length
        value -= share
    return int(draws.integers(1, LENGTHS[-1] + 1))


def draw_prefix(draws: np.random.Generator, length: int, least: int, with_end: bool) -> int:
    """Latents that are given: often an image, above all where an end is given too, or what a window goes on from."""
    value = draws.random()
    if value < (0.7 if with_end else 0.25) and least == 1:
        return 1
    if value < 0.7 and length == LENGTHS[1]:
        return LENGTHS[0]
    return int(draws.integers(least, length))


class Trained(nn.Module):
    """What learns together."""

    def __init__(self, transformer: WanModel, encoder: TextEncoder, tower: nn.Module | None = None):
        super().__init__()
        self.transformer, self.encoder = transformer, encoder
        self.image_encoder = None if tower is None else ImageEncoder(tower)


def new_transformer(**shape) -> WanModel:
    """Random weights; the last layer starts at zero, so that the first prediction is no motion at all."""
    model = WanModel(**shape)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.xavier_uniform_(model.patch_embedding.weight.view(model.dim, -1))
    nn.init.zeros_(model.patch_embedding.bias)
    nn.init.zeros_(model.head.head.weight)
    return model


def flow_loss(batch: Batch, predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Mean squared error of the velocity ``noise - data`` (SkyReels-V2, section 3.3) in frames that are not given."""
    levels = batch.levels[:, None, :, None, None]
    noisy = torch.lerp(batch.latents, batch.noise, levels)
    error = predict(noisy, 1000 * batch.levels) - (batch.noise - batch.latents)
    weights = (~batch.held) * batch.weights
    return (weights * error.pow(2).mean(dim=(1, 3, 4))).sum() / weights.sum()


def to(batch: Batch, device: torch.device) -> Batch:
    moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
    return Batch(**moved)


def drawing(model: Trained, clips: Clips, size: int, mix: Mix) -> Callable:
    """What draws a step's `Batch` and its prompts' tokens."""

    def drawn(step: int, draws: np.random.Generator) -> tuple[Batch, tuple[torch.Tensor, torch.Tensor]]:
        batch = draw(clips, draws, size, mix, draw_length(step, mix))
        return batch, model.encoder.tokenize(batch.prompts, texts.TEXT_LEN)

    return drawn


def text_loss(model: Trained, clips: Clips, size: int, mix: Mix, device: torch.device) -> loop.Task:
    def loss(drawn):
        batch, tokens = drawn
        batch = to(batch, device)
        context = model.transformer.prepare_context(model.encoder.embed(*tokens))

        def predict(x, t):
            return model.transformer(x, t, context, causal_block_size=batch.block)

        return flow_loss(batch, predict), {}

    return loop.Task(drawing(model, clips, size, mix), loss)


def image_loss(model: Trained, clips: Clips, size: int, device: torch.device) -> loop.Task:
    """All frames share a level; what is known of the first one comes through channels and features."""

    def loss(drawn):
        batch, tokens = drawn
        batch = to(batch, device)
        frames = batch.latents.shape[2]
        y = with_mask(clips.channels[batch.indices, :, :frames].float().to(device))
        images = clips.images[batch.indices].to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        features = model.image_encoder.features(images)
        with torch.no_grad():
            words = model.encoder.embed(*tokens)
        context = model.transformer.prepare_context(words, features)
        return flow_loss(batch, lambda x, t: model.transformer(x, t, context, y=y)), {}

    return loop.Task(drawing(model, clips, size, I2V_MIX), loss)


TOWER = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_channels": 3,
    "image_size": 64,
    "patch_size": 16,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "projection_dim": 32,
}


def new_tower() -> nn.Module:
    """CLIP's vision tower, small and random, without its last layer, as `ImageEncoder` has it."""
    tower = empty_model(TOWER).to_empty(device="cpu")
    positions = torch.arange(tower.embeddings.num_positions).unsqueeze(0)
    tower.embeddings.register_buffer("position_ids", positions, persistent=False)
    for module in tower.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    nn.init.normal_(tower.embeddings.class_embedding, std=0.1)
    nn.init.normal_(tower.embeddings.position_embedding.weight, std=0.1)
    return tower


def shape_of(model: WanModel) -> dict[str, int]:
    """The arguments that made `model`."""
    return {name: getattr(model, name) for name in (*SHAPE, "num_layers")}


def deepened(source: WanModel, layers: int) -> WanModel:
    """A model of `layers` layers, at least as many as `source` has, that predicts what `source` does.

    The new ones lie between the others: copies of the one before, whose outputs are zero.
    """
    model = new_transformer(**shape_of(source) | {"num_layers": layers})
    weights = {name: value for name, value in source.state_dict().items() if not name.startswith("blocks.")}
    model.load_state_dict(weights, strict=False)
    origins = [i * source.num_layers // layers for i in range(layers)]
    for i, origin in enumerate(origins):
        block = model.blocks[i]
        block.load_state_dict(source.blocks[origin].state_dict())
        if i and origins[i - 1] == origin:
            for output in (block.self_attn.o, block.cross_attn.o, block.ffn[2]):
                nn.init.zeros_(output.weight)
                nn.init.zeros_(output.bias)
    return model


def layers_in(weights: dict[str, torch.Tensor]) -> int:
    """How many layers the transformer has whose weights are among those of a `Trained`."""
    parts = (name.split(".") for name in weights)
    return 1 + max(int(part[2]) for part in parts if part[:2] == ["transformer", "blocks"])


def to_image_model(source: WanModel) -> WanModel:
    """An image-to-video model that begins where a text-to-video model stands: new weights that add are zero."""
    image = {"model_type": "i2v", "in_dim": 36, "img_dim": TOWER["hidden_size"]}
    model = new_transformer(**shape_of(source), **image)
    weights = source.state_dict()
    patches = torch.zeros_like(model.patch_embedding.weight)
    patches[:, : source.in_dim] = weights["patch_embedding.weight"]
    model.load_state_dict(weights | {"patch_embedding.weight": patches}, strict=False)
    for block in model.blocks:
        nn.init.zeros_(block.cross_attn.v_img.weight)
        nn.init.zeros_(block.cross_attn.v_img.bias)
    return model


def new_model(tokenizer: Path, layers: int) -> Trained:
    torch.manual_seed(0)
    return Trained(new_transformer(**SHAPE, num_layers=layers), texts.new_encoder(tokenizer))


def train_text_stage(
    stage: str,
    folder: Path,
    clips: Clips,
    model: Trained,
    device: torch.device,
    minutes: float,
    size: int,
    recipe: loop.Recipe,
    judge=None,
    workers: int = 0,
) -> bool:
    """`t2v`, or `df`, from where `model` stands, which is trained: True when all is done."""
    model.to(device)
    if products.worth_it(device):
        products.use_bfloat16(model)
    mix = {"t2v": T2V_MIX, "df": DF_MIX}[stage]
    task = text_loss(model, clips, size, mix, device)
    return loop.fit(model, task, recipe, folder / stage, workers=workers, minutes=minutes, every=300, judge=judge)


def train_image_stage(
    folder: Path,
    clips: Clips,
    source: Trained,
    device: torch.device,
    minutes: float,
    size: int,
    recipe: loop.Recipe,
    workers: int = 0,
) -> tuple[Trained, bool]:
    """The image-to-video model, from the diffusion-forcing one, whose text encoder it keeps as it is."""
    torch.manual_seed(2)
    model = Trained(to_image_model(source.transformer.cpu()), source.encoder, new_tower()).to(device)
    model.encoder.requires_grad_(False)
    if products.worth_it(device):
        products.use_bfloat16(model)
    task = image_loss(model, clips, size, device)
    return model, loop.fit(model, task, recipe, folder / "i2v", workers=workers, minutes=minutes, every=300)


def load_finished(folder: Path) -> tuple[Trained, WanVAE]:
    """Transformer, text encoder and VAE of a text model that a stage has written, the first two ready to be trained."""
    pipeline = Text2VideoPipeline(Checkpoint.open(folder), device="cpu", weight_dtype=torch.float32)
    return Trained(pipeline.transformer, pipeline.text_encoder).requires_grad_(True), pipeline.vae


def load_vae(folder: Path) -> WanVAE:
    """What the stage `vae` exported."""
    vae = WanVAE(**json.loads((folder / "vae.json").read_text()))
    vae.load_state_dict(load_file(folder / "vae.safetensors"))
    return vae.eval().requires_grad_(False)
