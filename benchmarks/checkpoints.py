"""Random checkpoints with the files, names, shapes and precision of published models."""

import json
import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import small_checkpoints
import torch
from small_checkpoints import published_shapes

from skyreels_v2_infer.weights.layouts import ORIGINAL_TOKENIZER

# by width: name in the table of shapes, kind of config.json
PUBLISHED = {5120: ("SkyReels-V2-DF-14B and SkyReels-V2-T2V-14B", "t2v"), 1536: ("SkyReels-V2-DF-1.3B-540P", "df")}
SHARD_BYTES = 5e9
SMALL = 2**20  # elements; what is larger is cut from one piece of noise, since drawing it all would take minutes
SIZE_OF_WEIGHTS = 0.02  # about 1 / sqrt(width): signals neither die out nor explode

Shapes = dict[str, tuple[int, ...]]


class Noise:
    """Random bfloat16 tensors, the large ones cut from the same values, each from another place on."""

    def __init__(self):
        self.values = (SIZE_OF_WEIGHTS * torch.randn(2**26, generator=torch.Generator().manual_seed(0))).bfloat16()

    def pieces(self, name: str, shape: tuple[int, ...]) -> Iterator[torch.Tensor]:
        """The values of a tensor, flat, one stretch after the other."""
        missing = torch.Size(shape).numel()
        if missing <= SMALL:
            yield small_checkpoints.random_tensor(name, shape, 0).bfloat16().flatten()
            return
        start = sum(name.encode()) * 4099 % (len(self.values) // 2)
        while missing:
            piece = self.values[start : start + missing]
            yield piece
            missing, start = missing - len(piece), 0


def write_archive(file: Path, shapes: Shapes, noise: Noise) -> None:
    """As `torch.save` does, but filled in where it lies: nothing is held in memory, and several threads share it."""
    with torch.serialization.skip_data():
        torch.save({name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}, file)
    with torch.serialization.set_default_mmap_options(mmap.MAP_SHARED):
        tensors = torch.load(file, mmap=True)
    for name, shape in shapes.items():
        torch.cat(list(noise.pieces(name, shape)), out=tensors[name].view(-1))


def write_shard(file: Path, shapes: Shapes, noise: Noise) -> None:
    """A safetensors file; the library's own writer would hold a whole shard in memory, several of them at once."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            for piece in noise.pieces(name, shape):
                stream.write(piece.view(torch.int16).numpy().data)


def shards(shapes: Shapes) -> list[Shapes]:
    found, room = [{}], SHARD_BYTES
    for name, shape in shapes.items():
        room -= 2 * torch.Size(shape).numel()
        if room < 0 and found[-1]:
            found.append({})
            room = SHARD_BYTES - 2 * torch.Size(shape).numel()
        found[-1][name] = shape
    return found


def write_checkpoint(folder: Path, model: dict, layers: int, text_layers: int) -> Path:
    """A text-to-video model in the original layout -> its folder.

    Args:
        model: arguments of `WanModel`; if their width is no published one's, a very small checkpoint is written.
        layers, text_layers: of the transformer and of the text encoder.
    """
    if model["dim"] not in PUBLISHED:
        return small_checkpoints.write_original(folder, "t2v")
    folder.mkdir(parents=True, exist_ok=True)
    name, kind = PUBLISHED[model["dim"]]
    noise = Noise()
    parts = shards(published_shapes(name, layers))

    def write_vae() -> None:
        shapes = published_shapes(small_checkpoints.VAE)
        torch.save(small_checkpoints.random_weights(shapes, 0), folder / small_checkpoints.VAE)

    with ThreadPoolExecutor(len(parts) + 2) as pool:
        shapes = published_shapes(small_checkpoints.T5, text_layers)
        work = [pool.submit(write_archive, folder / small_checkpoints.T5, shapes, noise), pool.submit(write_vae)]
        for i, part in enumerate(parts, start=1):
            file = folder / f"model-{i:05}-of-{len(parts):05}.safetensors"
            work.append(pool.submit(write_shard, file, part, noise))
        for done in work:
            done.result()
    small_checkpoints.write_tokenizer(folder / ORIGINAL_TOKENIZER)
    sizes = model["dim"], model["ffn_dim"], model["num_heads"]
    config = small_checkpoints.transformer_config(kind, *sizes, layers) | {"text_dim": 4096}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return folder


def size_gib(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**30
