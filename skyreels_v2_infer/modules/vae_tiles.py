"""The VAE on tiles of the frame, for devices with little memory: the same frames up to rounding, without seams.

Its convolutions see a few pixels around each pixel, its norms none. A tile is therefore computed with as much of its
surroundings as the layers still to come look at, and is cropped to that after each layer: what remains in the end
equals the untiled result at every pixel, and nothing has to be blended. Only the layers in the middle, whose attention
sees the whole frame, are not tiled; they run at the resolution of the latents, where frames are small.

Features of the past, which the layers cache (see `vae`), are kept in host memory for every tile but the current one.

B batch, C channels, T frames.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

import torch
from torch import nn

from skyreels_v2_infer.modules.vae import (
    CHUNK_PIXELS,
    SPATIAL_STRIDE,
    TEMPORAL_STRIDE,
    Cache,
    CausalConv3d,
    Downsample,
    Head,
    ResidualBlock,
    Upsample,
    WanVAE,
    in_range,
    run,
)

TILE = 40  # height and width of a tile, in latent pixels; at most, and without its surroundings
# Latent frames of which all tiles are computed before the next ones: more of them move cached features less often
# between device and host, fewer keep less of the video on the device.
CHUNK = 8

Extent = tuple[int, int]  # the pixels [low, high) along one axis
TileCache = dict[object, Cache]


def needed(layer: nn.Module, out: Extent) -> Extent:
    """What a layer looks at along one axis for an extent of its output, not limited to the frame."""
    low, high = out
    if isinstance(layer, Upsample):  # doubles pixels, then a 3x3 convolution
        return (low - 1) // 2, (high + 2) // 2
    if isinstance(layer, Downsample):  # pixel i comes from 2i to 2i + 2; an even number keeps pairs together
        return 2 * low, 2 * high + 2
    reach = {ResidualBlock: 2, Head: 1, CausalConv3d: 1}[type(layer)]  # 3x3 convolutions, one after the other
    return low - reach, high + reach


def made(layer: nn.Module, given: int) -> int:
    """The size, or the first pixel, of what a layer makes of a size, or a first pixel, along one axis."""
    if isinstance(layer, Upsample):
        return 2 * given
    return given // 2 if isinstance(layer, Downsample) else given


def extents(layers: Sequence[nn.Module], size: int, out: Extent) -> list[Extent]:
    """Along one axis, the extent of every layer's input, and of the last one's output.

    Args:
        size: of the whole frame before the first layer.
        out: extent wanted of the last layer's output.
    """
    sizes = [size]
    for layer in layers[:-1]:
        sizes.append(made(layer, sizes[-1]))
    found = [out]
    for layer, limit in zip(reversed(layers), reversed(sizes), strict=True):
        low, high = needed(layer, found[0])
        found.insert(0, (max(low, 0), min(high, limit)))
    return found


@dataclass(frozen=True)
class Tile:
    """A tile on its way through layers.

    Attributes:
        layers: convolutional ones.
        rows, columns: see `extents`.
    """

    layers: tuple[nn.Module, ...]
    rows: list[Extent]
    columns: list[Extent]

    def source(self, x: torch.Tensor) -> torch.Tensor:
        """The part of the first layer's input ``[B, C, T, H, W]`` that the tile is computed from."""
        return x[..., slice(*self.rows[0]), slice(*self.columns[0])]

    def target(self, x: torch.Tensor) -> torch.Tensor:
        """The tile's own part of the last layer's output."""
        return x[..., slice(*self.rows[-1]), slice(*self.columns[-1])]

    def run(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        """What the layers make of `source`, as it belongs in `target`."""
        for i, layer in enumerate(self.layers):
            x = run([layer], x, cache)
            top, left = made(layer, self.rows[i][0]), made(layer, self.columns[i][0])
            (low, high), (first, last) = self.rows[i + 1], self.columns[i + 1]
            x = x[..., low - top : high - top, first - left : last - left]
        return x


def tiles(layers: Sequence[nn.Module], size: tuple[int, int], latent: tuple[int, int], largest: int) -> list[Tile]:
    """Tiles of about equal size that cover the frame.

    Args:
        size: height and width before the first layer. latent: those of the latents.
        largest: height and width of a tile in latent pixels.
    """
    axes = []
    for whole, latents in zip(size, latent, strict=True):
        scale, end = latents, whole  # of the output: end / scale pixels for a latent one
        for layer in layers:
            end = made(layer, end)
        count = -(-latents // largest)
        edges = [i * latents // count * end // scale for i in range(count + 1)]
        axes.append([extents(layers, whole, out) for out in pairwise(edges)])
    return [Tile(tuple(layers), rows, columns) for rows, columns in product(*axes)]


def moved(cache: Cache, device: torch.device) -> Cache:
    return {layer: past.to(device) for layer, past in cache.items()}


def together(pixels: int) -> int:
    """Latent frames that pass through together, as in `WanVAE`, where one covers `pixels` of the frame."""
    return max(1, CHUNK_PIXELS // (TEMPORAL_STRIDE * pixels))


def decode_stream(
    vae: WanVAE, latents: torch.Tensor, cache: TileCache | None = None, largest: int = TILE
) -> Iterator[torch.Tensor]:
    """As `WanVAE.decode_stream`, tile by tile; yields more frames at a time.

    Args:
        cache: as there, but made by this function.
        largest: height and width of a tile, in latent pixels.
    """
    vae.check_latents(latents)
    kept, cache = cache is not None, {} if cache is None else cache
    size = tuple(latents.shape[-2:])
    cut = tiles([*vae.decoder.upsamples, vae.decoder.head], size, size, largest)
    step = together(SPATIAL_STRIDE**2 * min(largest, size[0]) * min(largest, size[1]))
    for start in range(0, latents.shape[2], CHUNK):
        chunk = latents[:, :, start : start + CHUNK]
        first = 0 if "middle" in cache else TEMPORAL_STRIDE - 1  # frames that the first latent frame has fewer
        middle = moved(cache.get("middle", {}), vae.device)
        parts = [vae.to_decoder(chunk[:, :, i : i + 1], middle) for i in range(chunk.shape[2])]
        x = torch.cat([run([vae.decoder.conv1, *vae.decoder.middle], part, middle) for part in parts], dim=2)
        frames = TEMPORAL_STRIDE * x.shape[2] - first
        shape = len(x), 3, frames, size[0] * SPATIAL_STRIDE, size[1] * SPATIAL_STRIDE
        out = torch.empty(shape, dtype=torch.float32, device=x.device)
        last = not kept and start + CHUNK >= latents.shape[2]
        for number, tile in enumerate(cut):
            past, done = moved(cache.get(number, {}), vae.device), 0
            for i in range(0, x.shape[2], step):
                piece = tile.run(tile.source(x[:, :, i : i + step]), past)
                tile.target(out)[:, :, done : done + piece.shape[2]] = piece
                done += piece.shape[2]
            if not last:
                cache[number] = moved(past, torch.device("cpu"))
            del past
        cache["middle"] = moved(middle, torch.device("cpu"))
        yield in_range(out)


def encode(vae: WanVAE, video: torch.Tensor, largest: int = TILE) -> torch.Tensor:
    """As `WanVAE.encode`, tile by tile.

    Args:
        largest: height and width of a tile, in latent pixels.
    """
    vae.check_video(video)
    frames, *size = video.shape[2:]
    latent = size[0] // SPATIAL_STRIDE, size[1] // SPATIAL_STRIDE
    cut = tiles([vae.encoder.conv1, *vae.encoder.downsamples], tuple(size), latent, largest)
    step = TEMPORAL_STRIDE * together(SPATIAL_STRIDE**2 * min(largest, latent[0]) * min(largest, latent[1]))
    x = None
    for tile in cut:
        past: Cache = {}
        source = tile.source(video)
        starts = [(0, 1), *((i, i + step) for i in range(1, frames, step))]
        pieces = [tile.run(vae.to_encoder(source[:, :, slice(*ends)]), past) for ends in starts]
        if x is None:
            shape = len(video), pieces[0].shape[1], (frames - 1) // TEMPORAL_STRIDE + 1, *latent
            x = pieces[0].new_empty(shape)
        tile.target(x)[:] = torch.cat(pieces, dim=2)
        del past, pieces
    past = {}
    layers = [*vae.encoder.middle, vae.encoder.head]
    pieces = [run(layers, x[:, :, i : i + 1], past) for i in range(x.shape[2])]
    return vae.normalised(vae.conv1(torch.cat(pieces, dim=2), past).chunk(2, dim=1)[0])
