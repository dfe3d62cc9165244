"""The cost of a plan: arithmetic of the transformer and peak memory, computed from the architecture alone."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from skyreels_v2_infer.plan.plan import Plan, WindowPlan
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.plan.sizes import SIZE_MULTIPLE

GIB = 2**30
TEXT_ENCODER = 5_680_910_336  # parameters of umT5-xxl's encoder
IMAGE_ENCODER = 611_086_080  # parameters of CLIP's vision tower without its last layer, which is not used
VAE = 126_892_531  # parameters
IMAGE_TOKENS = 257
EMBEDDINGS = 256_384 * 4096  # of the text encoder's parameters; no layer of it is larger
TEXT_LAYERS = 24
TEXT_ACTIVATIONS = 2**28  # bytes, of a text of 512 tokens
VAE_CHANNELS = 96  # at full resolution, where its activations are largest
VAE_FRAMES = 51  # frames of that size that are live at once during decoding, cached features included
# With tiles: pixels of the largest tile's side, beside those of its neighbours that its last layers look at, and the
# number of such tensors at least, in frames, that hold the whole frame: decoded pixels and features of 8 latent frames.
TILE_PIXELS, TILE_SURROUNDINGS = 320, 32
TILED_WHOLE = 4.0


def parameters(config: dict) -> int:
    """Number of parameters of a transformer; `config`: arguments of `WanModel`."""
    d, f, layers = config["dim"], config["ffn_dim"], config["num_layers"]
    image = config["model_type"] == "i2v"
    text, freq, out = config.get("text_dim", 4096), config.get("freq_dim", 256), config.get("out_dim", 16)
    channels, picture = config.get("in_dim", 36 if image else 16), config.get("img_dim", 1280)
    attention = 4 * (d * d + d) + 2 * d  # q, k, v, o and the norms of q and k
    block = 2 * attention + 2 * d * f + f + d + 6 * d
    if config.get("cross_attn_norm", True):
        block += 2 * d
    if image:
        block += 2 * (d * d + d) + d
    total = layers * block
    total += 4 * channels * d + d  # patches
    total += text * d + d + d * d + d
    total += freq * d + d + d * d + d + 6 * (d * d + d)  # time
    total += 4 * out * (d + 1) + 2 * d  # head
    if config.get("inject_sample_info"):
        total += 2 * d + d * d + d + 6 * (d * d + d)
    if image:
        total += 2 * picture + picture * picture + picture + picture * d + d + 2 * d
    return total


def block_weights(config: dict) -> int:
    """Number of weights of the blocks' linear layers, biases not counted."""
    d = config["dim"]
    return config["num_layers"] * ((8 + 2 * (config["model_type"] == "i2v")) * d * d + 2 * d * config["ffn_dim"])


def forward_flop(config: dict, frames: int, frame_tokens: int, block_frames: int | None = None) -> float:
    """Floating-point operations of one forward; a multiply-add counts as two.

    Args:
        frames: latent frames.
        frame_tokens: tokens per latent frame.
        block_frames: latent frames per block of block-causal attention; None: full attention.
    """
    d, f, layers = config["dim"], config["ffn_dim"], config["num_layers"]
    tokens = frames * frame_tokens
    read = config.get("text_len", 512) + (IMAGE_TOKENS if config["model_type"] == "i2v" else 0)
    linear = 2 * tokens * (6 * d * d + 2 * d * f)  # q, k, v, o; q and o of cross attention; feed-forward
    pairs = tokens * tokens
    if block_frames is not None:
        ends = [min(start + block_frames, frames) for start in range(0, frames, block_frames)]
        pairs = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False)) * frame_tokens**2
    return float(layers * (linear + 4 * pairs * d + 4 * tokens * read * d))


@dataclass(frozen=True)
class Stage:
    """Bytes on the device during one stage of a run."""

    weights: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.activations


@dataclass(frozen=True)
class Cost:
    """Cost of a whole run.

    Attributes:
        tokens: of the longest window.
        pflop: operations of all forwards of the transformer, in 10**15.
        weights_gib, activations_gib: estimated peak memory of the device, at the same moment.
        stages: the estimate for each stage of the run, in GiB; the peak is the largest.
    """

    tokens: int
    pflop: float
    weights_gib: float
    activations_gib: float
    stages: Mapping[str, float]

    @property
    def peak_gib(self) -> float:
        return max(self.stages.values())


@dataclass(frozen=True)
class Holding:
    """What the device holds when. All of it makes the same frames, except tiles, which round differently.

    Attributes:
        offload: "none": transformer and VAE stay on the device; "parts": each part is there while it computes;
            "blocks": so is each block of the transformer, and the next one in transfer.
        layers: encoders, which always leave the device after use, are brought there layer by layer.
        tiled: the VAE computes tile by tile.
    """

    offload: str = "none"
    layers: bool = False
    tiled: bool = False


def forwards(plan: Plan) -> list[int]:
    """Number of forwards of the transformer, for each window."""
    return [len(window.schedule) * (1 + window.is_guided) for window in plan.windows]


def frame_tokens(height: int, width: int) -> int:
    """Tokens of a latent frame; height and width in pixels."""
    return (height // SIZE_MULTIPLE) * (width // SIZE_MULTIPLE)


def cost_of(
    plan: Plan,
    config: dict,
    *,
    weight_bytes: int,
    vae_bytes: int = 4,
    loaded: Mapping[str, float] = MappingProxyType({}),
    holding: Holding = Holding(),
    on_cpu: bool = False,
) -> Cost:
    """The cost of a plan on one device.

    Args:
        config: of the transformer.
        weight_bytes: bytes per parameter of the transformer and the encoders. vae_bytes: of the VAE.
        loaded: bytes of parts for which that does not hold, see `part_bytes`.
        holding: what is on the device when.
        on_cpu: the device is the CPU, which holds all weights throughout.
    """
    size = frame_tokens(plan.height, plan.width)
    tokens = max(window.latents for window in plan.windows) * size
    reached = Counter()  # latent frames of a forward -> number of such forwards
    for window, count in alike(plan):
        rows = np.bincount(window.schedule.reach(plan.causal_block_size))
        for reach in np.flatnonzero(rows).tolist():
            reached[reach] += int(rows[reach]) * count * (1 + window.is_guided)
    flop = sum(count * forward_flop(config, reach, size, plan.causal_block_size) for reach, count in reached.items())
    parts = part_bytes(config, weight_bytes, vae_bytes) | loaded
    found = stages(plan, config, parts, tokens, weight_bytes, vae_bytes, holding, on_cpu)
    peak = max(found.values(), key=lambda stage: stage.total)
    totals = {name: round(stage.total / GIB, 1) for name, stage in found.items()}
    return Cost(tokens, flop / 1e15, round(peak.weights / GIB, 1), round(peak.activations / GIB, 1), totals)


def stages(
    plan: Plan,
    config: dict,
    parts: Mapping[str, float],
    tokens: int,
    weight_bytes: int,
    vae_bytes: int,
    holding: Holding,
    on_cpu: bool,
) -> dict[str, Stage]:
    """The memory of each stage of a run; see `cost_of`.

    Args:
        parts: bytes of their weights.
        tokens: of the longest window.
    """
    layout = plan.sharing or Layout()
    tokens //= layout.parts
    passes = 1 + (plan.is_guided and layout.guidance == 1)
    stream = stream_bytes(config, tokens, weight_bytes, passes)
    if plan.cache is not None:  # keeps a residual of the residual stream for each pass
        stream += passes * tokens * config["dim"] * weight_bytes
    decoder = decoder_bytes(plan.height, plan.width, vae_bytes, holding.tiled)
    if on_cpu:
        everything = sum(parts.values())
        return {"denoising": Stage(everything, stream), "decoding": Stage(everything, decoder)}
    encoders = parts["text_encoder"], parts["image_encoder"]
    if holding.layers:
        share = EMBEDDINGS / TEXT_ENCODER  # layers come after the embeddings have left
        encoders = tuple(size * max(share, (1 - share) / TEXT_LAYERS) for size in encoders)
    resident = parts["transformer"] + parts["vae"] if holding.offload == "none" else 0
    block = parts["transformer"] / config["num_layers"]  # layers outside of blocks are about one block more
    sampling = {"none": resident, "parts": parts["transformer"], "blocks": 3 * block}[holding.offload]
    return {
        "texts": Stage(resident + max(encoders), TEXT_ACTIVATIONS * (max(encoders) > 0)),
        "denoising": Stage(sampling, stream),
        "decoding": Stage(resident or parts["vae"], decoder),
    }


def alike(plan: Plan) -> Iterator[tuple[WindowPlan, int]]:
    """A window of each kind, and how many of that kind there are; windows of a plan share their schedules."""
    kinds = {(id(window.schedule), window.is_guided): window for window in plan.windows}
    counts = Counter((id(window.schedule), window.is_guided) for window in plan.windows)
    return ((kinds[kind], count) for kind, count in counts.items())


def part_bytes(config: dict, weight_bytes: int, vae_bytes: int = 4) -> dict[str, float]:
    """Bytes of a model's parts; encoders and VAE of models smaller than the published ones count as 0."""
    published = config.get("text_dim", 4096) == 4096
    return {
        "transformer": parameters(config) * weight_bytes,
        "text_encoder": published * TEXT_ENCODER * weight_bytes,
        "image_encoder": published * IMAGE_ENCODER * (config["model_type"] == "i2v") * weight_bytes,
        "vae": published * VAE * vae_bytes,
    }


def decoder_bytes(height: int, width: int, vae_bytes: int, tiled: bool) -> float:
    """Bytes of activations while the VAE decodes; encoding takes less.

    Args:
        height, width: of the video, in pixels.
        tiled: see `modules.vae_tiles`.
    """
    frame = VAE_CHANNELS * vae_bytes
    if not tiled:
        return float(VAE_FRAMES * height * width * frame)
    tile = 1
    for side in (height, width):
        tile *= min(side, -(-side // -(-side // TILE_PIXELS)) + TILE_SURROUNDINGS)
    return float(VAE_FRAMES * tile * frame + TILED_WHOLE * height * width * VAE_CHANNELS * 4)


def stream_bytes(config: dict, tokens: int, weight_bytes: int, passes: int) -> float:
    """Bytes of activations in a denoising step of one or two passes.

    Inside a block: the residual stream, its float32 normalisation, the feed-forward's hidden activations, and 20 % for
    smaller tensors (measured from torch's allocations for 14B models). Outside: keys and values of the prompts.
    """
    d = config["dim"]
    block = 1.2 * tokens * (d * (2 * weight_bytes + 4) + 2 * config["ffn_dim"] * weight_bytes)
    read = config.get("text_len", 512) + IMAGE_TOKENS * (config["model_type"] == "i2v")
    return block + passes * config["num_layers"] * 2 * read * d * weight_bytes
