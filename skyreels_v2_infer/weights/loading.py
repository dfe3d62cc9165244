"""Loads modules from checkpoint files: built on the meta device, then filled tensor by tensor.

Names and shapes are compared before any weight is read. Files are memory-mapped: on the CPU a tensor that already has
the right dtype stays a view of its file, others are converted one at a time, so that the peak is little more than the
size of the module.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import torch
from safetensors import safe_open
from torch import nn

from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.modules import image_encoder, text_encoder
from skyreels_v2_infer.modules.image_encoder import ImageEncoder
from skyreels_v2_infer.modules.text_encoder import TextEncoder
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.modules.vae import LATENTS_MEAN, LATENTS_STD, MULTIPLIERS, WanVAE
from skyreels_v2_infer.weights import key_tables
from skyreels_v2_infer.weights.layouts import Part, refusal
from skyreels_v2_infer.weights.locate import Checkpoint
from skyreels_v2_infer.weights.verify import check_archive, read_header

# Pages of a mapped file count as resident until the mapping is closed. While tensors are converted the file is
# therefore reopened after each such fraction of it, which keeps the peak near the size of the result.
MAPPED_AT_ONCE = 1 / 16
EXAMPLES = 3  # tensors that a message names of each kind

# Fields of AutoencoderKLWan's config.json with one supported value, the one of the published VAE.
VAE_FIXED = {
    "temperal_downsample": ([False, True, True],),
    "attn_scales": ([],),
    "is_residual": (False,),
    "patch_size": (None, 1),
}


class Weights:
    """The tensors of one part of a checkpoint, under their names in the files.

    Args:
        table: maps tensor names of the files to our parameter names.

    Attributes:
        sizes: (shape, bytes) of every tensor to load.
    """

    def __init__(self, part: Part, model_id: str, table: key_tables.Table):
        self.model_id, self.table = model_id, table
        self.home: dict[str, Path] = {}
        self.sizes: dict[str, tuple[tuple[int, ...], int]] = {}
        for file in part.files:
            sizes = self.headers(file)
            self.home.update(dict.fromkeys(sizes, file))
            self.sizes.update(sizes)

    def drop(self, patterns: list[str]) -> None:
        """Excludes tensors whose name matches any of the patterns from loading."""
        for name in [name for name in self.sizes if any(re.search(pattern, name) for pattern in patterns)]:
            del self.sizes[name], self.home[name]

    def headers(self, file: Path) -> dict[str, tuple[tuple[int, ...], int]]:
        if file.suffix == ".safetensors":
            return read_header(file, self.model_id)
        tensors = open_archive(file, self.model_id)
        return {name: (tuple(tensor.shape), tensor.nbytes) for name, tensor in tensors.items()}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (shape, _) in self.sizes.items()}

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in the file, tensor) pairs on the CPU; the tensors are views of the mapped file."""
        for file in dict.fromkeys(self.home.values()):
            waiting = deque(name for name, home in self.home.items() if home == file)
            budget = file.stat().st_size * MAPPED_AT_ONCE
            while waiting:
                read, used = open_tensors(file, self.model_id), 0
                while waiting and used <= budget:
                    name = waiting.popleft()
                    used += self.sizes[name][1]
                    yield name, read(name)


def open_tensors(file: Path, model_id: str) -> Callable[[str], torch.Tensor]:
    if file.suffix == ".safetensors":
        return safe_open(file, framework="pt").get_tensor
    return open_archive(file, model_id).__getitem__


def open_archive(file: Path, model_id: str) -> dict[str, torch.Tensor]:
    """The tensors of a ``.pth`` file, memory-mapped; unpickled with ``weights_only``, so that no code in it runs."""
    check_archive(file, model_id)
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # a damaged pickle can raise anything
        reason = "a plain dict of tensors, opened without running code, was expected"
        raise refusal(model_id, f"{file.name} was refused ({reason}): {first_line(error, 120)}") from error
    if not isinstance(tensors, dict) or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise refusal(model_id, f"{file.name} is not a plain dict of tensors")
    return tensors


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether a tensor has a parameter's shape, apart from leading axes of size 1 as in some published files."""
    front = len(shape) - len(wanted)
    return front >= 0 and set(shape[:front]) <= {1} and shape[front:] == wanted


def compare(module: nn.Module, weights: Weights, label: str) -> None:
    """Raises an `InputError` that names missing, unexpected and misshapen tensors; reads no weights."""
    wanted = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    given, unexpected, misshapen = set(), [], []
    for name, shape in weights.shapes.items():
        ours = key_tables.targets(name, weights.table)
        for target in ours:
            if target not in wanted or target in given:
                unexpected.append(name)
                continue
            given.add(target)
            whole = (wanted[target][0] * len(ours), *wanted[target][1:]) if len(ours) > 1 else wanted[target]
            if not fits(shape, whole):
                misshapen.append(f"{name} is {list(shape)}, must be {list(whole)}")
    problems = []
    for kind, names in (
        ("missing", sorted(set(wanted) - given)),
        ("unexpected", list(dict.fromkeys(unexpected))),
        ("of another shape", list(dict.fromkeys(misshapen))),
    ):
        if names:
            more = ", ..." if len(names) > EXAMPLES else ""
            problems.append(f"{len(names)} {kind} ({', '.join(names[:EXAMPLES])}{more})")
    if problems:
        raise refusal(weights.model_id, f"the {label}'s tensors do not fit: {'; '.join(problems)}")


def load_into(
    module: nn.Module,
    weights: Weights,
    label: str,
    device: str | torch.device,
    dtype: torch.dtype,
    keep_float32: re.Pattern | None = None,
) -> nn.Module:
    """Fills a module that was built on the meta device and returns it in eval mode, without gradients; strict.

    Args:
        label: name of the module in messages.
        dtype: of every parameter except those whose name matches `keep_float32`.

    Raises:
        InputError: tensors are missing, unexpected or misshapen; a file is truncated or damaged.
    """
    compare(module, weights, label)
    for name, tensor in weights:
        ours = key_tables.targets(name, weights.table)
        for target, piece in zip(ours, tensor.chunk(len(ours)) if len(ours) > 1 else [tensor], strict=True):
            owner, _, leaf = target.rpartition(".")
            owner = module.get_submodule(owner)
            wanted = torch.float32 if keep_float32 is not None and keep_float32.search(target) else dtype
            # Copied, because a view would keep the mapping alive, with all pages that converting its neighbours has
            # touched. Converted on the device: torchrun leaves the CPU one thread.
            value = piece.reshape(getattr(owner, leaf).shape).to(device).to(wanted, copy=wanted != dtype)
            setattr(owner, leaf, nn.Parameter(value, requires_grad=False))
    module.to(device)  # buffers, which no file contains
    assert not any(tensor.is_meta for tensor in [*module.parameters(), *module.buffers()])
    return module.eval()


def get_transformer(
    model_path: str | Path | Checkpoint, device: str | torch.device = "cuda", weight_dtype: torch.dtype = torch.bfloat16
) -> WanModel:
    """The diffusion transformer of a folder, hub id or opened checkpoint.

    Args:
        weight_dtype: of the parameters, except those of `key_tables.KEEP_FLOAT32`, which stay float32.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    checkpoint = Checkpoint.open(model_path, ("transformer",))
    part = checkpoint.parts["transformer"]
    table = key_tables.DIFFUSERS_TRANSFORMER if part.layout == "diffusers" else []
    with torch.device("meta"):
        model = WanModel(**checkpoint.transformer_config)
    weights = Weights(part, checkpoint.model_id, table)
    return load_into(model, weights, "transformer", device, weight_dtype, key_tables.KEEP_FLOAT32)


def get_vae(
    model_path: str | Path | Checkpoint, device: str | torch.device = "cuda", weight_dtype: torch.dtype = torch.float32
) -> WanVAE:
    """The VAE of a folder, hub id or opened checkpoint, or of the file ``Wan2.1_VAE.pth`` (as published callers do).

    Raises:
        InputError: the checkpoint cannot be used, or its VAE has another architecture.
    """
    if not isinstance(model_path, Checkpoint) and Path(model_path).is_file():
        part, model_id = Part((Path(model_path),)), str(model_path)
    else:
        checkpoint = Checkpoint.open(model_path, ("vae",))
        part, model_id = checkpoint.parts["vae"], checkpoint.model_id
    for name, legal in VAE_FIXED.items():
        if name in part.config and part.config[name] not in legal:
            raise refusal(model_id, f"vae/config.json has {name} {part.config[name]}; only {legal[0]} is supported")
    multipliers, blocks = part.config.get("dim_mult", MULTIPLIERS), part.config.get("num_res_blocks", 2)
    if not is_size(blocks):
        raise refusal(model_id, f"vae/config.json has num_res_blocks {blocks}; it must be a positive integer")
    stages = len(MULTIPLIERS)
    if not isinstance(multipliers, list | tuple) or len(multipliers) != stages or not all(map(is_size, multipliers)):
        raise refusal(model_id, f"vae/config.json has dim_mult {multipliers}; it must be {stages} positive integers")
    table = key_tables.diffusers_vae(blocks) if part.layout == "diffusers" else []
    weights = Weights(part, model_id, table)
    shapes = {key_tables.renamed(name, table): shape for name, shape in weights.shapes.items()}
    mean, std = (part.config.get(f"latents_{kind}") for kind in ("mean", "std"))
    mean, std = LATENTS_MEAN if mean is None else mean, LATENTS_STD if std is None else std
    try:
        dim, z_dim = shapes["encoder.conv1.weight"][0], shapes["conv2.weight"][0]
    except KeyError as error:
        raise refusal(model_id, f"the VAE's tensors do not fit: {error.args[0]} is missing") from error
    if not len(mean) == len(std) == z_dim:
        raise refusal(model_id, f"the VAE has {z_dim} latent channels, but {len(mean)} means and {len(std)} deviations")
    with torch.device("meta"):
        model = WanVAE(dim, z_dim, mean, std, multipliers, blocks)
    return load_into(model, weights, "VAE", device, weight_dtype)


def is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def empty(room: ModuleType, part: Part, weights: Weights, label: str) -> nn.Module:
    """An encoder on the meta device; its sizes come from config.json, or without one from tensor shapes."""
    try:
        return room.empty_model(part.config or room.config_from_shapes(weights.shapes))
    except KeyError as error:
        raise refusal(weights.model_id, f"the {label}'s tensors do not fit: {error.args[0]} is missing") from error
    except Exception as error:  # transformers validates configurations with its own exception types
        reason = f"no {label} can be built from its {'config.json' if part.config else 'tensors'}: {first_line(error)}"
        raise refusal(weights.model_id, reason) from error


def get_text_encoder(
    model_path: str | Path | Checkpoint, device: str | torch.device = "cuda", weight_dtype: torch.dtype = torch.bfloat16
) -> TextEncoder:
    """umT5 and its tokenizer, of a folder, hub id or opened checkpoint.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    checkpoint = Checkpoint.open(model_path, ("text_encoder", "tokenizer"))
    part, model_id = checkpoint.parts["text_encoder"], checkpoint.model_id
    if part.layout == "diffusers":
        weights = Weights(part, model_id, key_tables.DIFFUSERS_TEXT_ENCODER)
        if "shared.weight" in weights.sizes:  # the tied name, if present, is the same tensor
            weights.drop([r"^encoder\.embed_tokens\.weight$"])
    else:
        weights = Weights(part, model_id, key_tables.ORIGINAL_TEXT_ENCODER)
    folder = checkpoint.parts["tokenizer"].files[0]
    try:
        tokenizer = text_encoder.load_tokenizer(folder)
    except Exception as error:  # tokenizers raises bare Exception
        hint = "" if (folder / "tokenizer.json").is_file() else "; without tokenizer.json it needs sentencepiece"
        raise refusal(model_id, f"the tokenizer in {folder.name}/ cannot be read: {first_line(error)}{hint}") from error
    model = empty(text_encoder, part, weights, "text encoder")
    if len(tokenizer) > model.config.vocab_size:
        words = f"{len(tokenizer)} words, the text encoder {model.config.vocab_size}"
        raise refusal(model_id, f"the tokenizer belongs to another text encoder: it has {words}")
    # Activations exceed float16's 65504: transformers keeps this layer in float32, and its forward expects that.
    wide = re.compile(r"DenseReluDense\.wo\.") if weight_dtype is torch.float16 else None
    load_into(model, weights, "text encoder", device, weight_dtype, wide)
    return TextEncoder(model, tokenizer).eval()


def get_image_encoder(
    model_path: str | Path | Checkpoint, device: str | torch.device = "cuda", weight_dtype: torch.dtype = torch.bfloat16
) -> ImageEncoder:
    """CLIP's vision tower without its last layer, of a folder, hub id or opened checkpoint.

    Raises:
        InputError: the checkpoint cannot be used.
    """
    checkpoint = Checkpoint.open(model_path, ("image_encoder",))
    if "image_encoder" not in checkpoint.parts:
        raise refusal(checkpoint.model_id, "is no image-to-video model, so no image encoder belongs to it")
    part, model_id = checkpoint.parts["image_encoder"], checkpoint.model_id
    if part.layout == "diffusers":
        table, unused = key_tables.DIFFUSERS_IMAGE_ENCODER, key_tables.DIFFUSERS_IMAGE_ENCODER_UNUSED
    else:
        table, unused = key_tables.ORIGINAL_IMAGE_ENCODER, key_tables.ORIGINAL_IMAGE_ENCODER_UNUSED
    weights = Weights(part, model_id, table)
    model = empty(image_encoder, part, weights, "image encoder")
    weights.drop([pattern.format(last=model.config.num_hidden_layers) for pattern in unused])
    return ImageEncoder(load_into(model, weights, "image encoder", device, weight_dtype)).eval()
