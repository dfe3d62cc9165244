"""The causal video VAE of Wan 2.1: 4n+1 frames of H x W <-> n+1 latent frames of H/8 x W/8.

B batch, C channels, T frames. Videos and features are ``[B, C, T, H, W]`` with channels last in memory.

Everything in it looks backwards in time only, so a video can pass through in pieces of any length: what a layer needs
of the past is in one `Cache`, keyed by layer, and a layer that finds nothing there stands at the start of the video.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

from skyreels_v2_infer.errors import first_line

LATENTS_MEAN = (
    *(-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508),
    *(0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921),
)
LATENTS_STD = (
    *(2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743),
    *(3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160),
)
MULTIPLIERS = (1, 2, 4, 4)
TEMPORAL_DOWNSAMPLING = (False, True, True)
SPATIAL_STRIDE, TEMPORAL_STRIDE = 8, 4

# Frames that pass through together: enough to keep a processor busy, few enough for its caches and for flat memory.
CHUNK_PIXELS = 4 * 128 * 128

Cache = dict[nn.Module, torch.Tensor]


def frames_first(x: torch.Tensor) -> torch.Tensor:
    """``[B, C, T, H, W]`` -> images ``[B*T, C, H, W]``."""
    return x.transpose(1, 2).flatten(0, 1)


def frames_last(images: torch.Tensor, batch: int) -> torch.Tensor:
    """The inverse of `frames_first`."""
    return images.unflatten(0, (batch, -1)).transpose(1, 2)


def channels_last(x: torch.Tensor) -> torch.Tensor:
    """x ``[B, C, T, H, W]`` so that convolutions see its layout.

    They take it from the strides, which say nothing of it where a size is 1: all that follows on a single frame would
    be in the other layout, and be turned round before and after every convolution.
    """
    _, channels, _, height, width = x.shape
    if x.stride()[1:] == (1, height * width * channels, width * channels, channels):
        return x
    return torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d).copy_(x)


def causal_conv_fused(x: torch.Tensor, conv: nn.Conv3d, missing: int) -> torch.Tensor:
    """One 3-D convolution over x ``[B, C, T, H, W]``, before which `missing` frames of zeros are put."""
    padding = (0, *conv.padding[1:])
    if missing:
        x = F.pad(x, (0, 0, 0, 0, missing, 0))
    return F.conv3d(x, conv.weight, conv.bias, conv.stride, padding)


def causal_conv_taps(x: torch.Tensor, conv: nn.Conv3d, missing: int) -> torch.Tensor:
    """The same as a sum of 2-D convolutions, one for each frame of the kernel.

    On CPUs this is as fast as the 3-D kernel with wide layers and three times as fast with narrow ones, and the frames
    of zeros before a video cost nothing.
    """
    batch, kernel, stride = x.shape[0], conv.kernel_size[0], conv.stride[0]
    length = (x.shape[2] + missing - kernel) // stride + 1
    out = None
    for tap in reversed(range(kernel)):
        first = max(0, -((tap - missing) // stride))  # the first output frame for which this tap sees more than zeros
        if first >= length:
            continue
        start = first * stride - missing + tap
        source = x[:, :, start : start + (length - first - 1) * stride + 1 : stride]
        bias = conv.bias if out is None else None
        image = F.conv2d(frames_first(source), conv.weight[:, :, tap], bias, conv.stride[1:], conv.padding[1:])
        if out is None:
            out = frames_last(image, batch)
        else:
            out[:, :, first:] += frames_last(image, batch)
    return out


class CausalConv3d(nn.Conv3d):
    """A convolution whose kernel ends at the current frame."""

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        past = self.kernel_size[0] - self.stride[0]  # frames of the past that the first output frame looks at
        if past > 0:
            if self in cache:
                x = torch.cat([cache[self], x], dim=2)
                missing = 0
            else:
                missing = past
            held = x[:, :, -past:]
            if held.shape[2] < past:
                held = F.pad(held, (0, 0, 0, 0, past - held.shape[2], 0))
            cache[self] = held.clone()
        else:
            missing = 0
        if x.is_cuda:
            x = channels_last(x)
        # in training the sum of convolutions loses more backwards than it gains forwards
        conv = causal_conv_fused if x.is_cuda or x.requires_grad else causal_conv_taps
        return conv(x, self, missing)

    def activated(self, x: torch.Tensor, norm: "RMSNorm", cache: Cache) -> torch.Tensor:
        """The same after norm and SiLU, which are written behind the frames of the past, where this layer reads them.

        What `forward` would copy twice, to put the past in front and to remember the end, is copied only as far as it
        is remembered. For layers that are 3 frames long.
        """
        batch, channels, frames, height, width = x.shape
        past = self.kernel_size[0] - 1
        size = batch, channels, past + frames, height, width
        buffer = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
        if self in cache:
            buffer[:, :, :past] = cache[self]
        else:
            buffer[:, :, :past] = 0
        norm.silu_into(x, buffer[:, :, past:])
        cache[self] = buffer[:, :, -past:].clone()
        return causal_conv_fused(buffer, self, 0)


class RMSNorm(nn.Module):
    """Root-mean-square norm over channels."""

    def __init__(self, dim: int, spatial_dims: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.requires_grad and x.ndim == 5:  # in training: twice as fast backwards, though slower forwards
            y = F.rms_norm(x.movedim(1, -1), self.gamma.shape[:1], self.gamma.flatten().to(x.dtype), 1e-24)
            return y.movedim(-1, 1)
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True, dtype=torch.float32).clamp_min(1e-12)
        return (x / norm.to(x.dtype)).mul_(self.gamma * self.gamma.shape[0] ** 0.5)

    def silu_into(self, x: torch.Tensor, out: torch.Tensor) -> None:
        """Writes the SiLU of the norm of x ``[B, C, T, H, W]`` to `out`, of the same shape."""
        torch.ops.aten.silu.out(self(x), out=out)


def norm_silu_rows(x: torch.Tensor, gamma: torch.Tensor, out: torch.Tensor) -> None:
    """`RMSNorm.silu_into` for pixels x and out ``[N, C]``, gamma ``[C]``; in float32, one pass where it is compiled."""
    wide = x.float()
    norm = wide.square().sum(dim=1, keepdim=True).sqrt().clamp_min(1e-12)
    out.copy_(F.silu(wide / norm * (gamma.float() * gamma.shape[0] ** 0.5)))


def pixels(x: torch.Tensor) -> torch.Tensor:
    """``[C, T, H, W]``, channels last in memory, as ``[T*H*W, C]``; no view, since guards would look at its base."""
    return x.permute(1, 2, 3, 0).view(-1, x.shape[0]).data


def compile_norms(vae: "WanVAE", say: Callable[[str], object] | None = None, **options) -> None:
    """From now on norm and SiLU before a convolution are one kernel on a GPU, for every size of frames.

    If the compiler fails, they run as before.

    Args:
        say: called with one line if the compiler fails.
        options: of `torch.compile`.
    """
    rows = torch.compile(norm_silu_rows, fullgraph=True, **options)
    norms = [layer for layer in vae.modules() if isinstance(layer, RMSNorm)]

    def silu_into(self: RMSNorm, x: torch.Tensor, out: torch.Tensor) -> None:
        try:
            for source, target in zip(channels_last(x), out, strict=True):
                source, target = pixels(source), pixels(target)
                for tensor in (source, target):
                    torch._dynamo.maybe_mark_dynamic(tensor, 0)
                    torch._dynamo.mark_static(tensor, 1)
                rows(source, self.gamma.flatten(), target)
        except torch._dynamo.exc.TorchDynamoException as error:
            for layer in norms:
                layer.__dict__.pop("silu_into", None)
            if say is not None:
                cause = getattr(error, "inner_exception", error)  # what the backend raised says more
                say(f"compile: failed ({first_line(cause, 120)}); the VAE's norms run uncompiled")
            self.silu_into(x, out)

    for layer in norms:
        layer.silu_into = MethodType(silu_into, layer)


def in_place_of_copies(x: torch.Tensor) -> bool:
    """Whether norms write where convolutions read; nothing is gained on a CPU, whose convolutions run by frames."""
    return x.is_cuda and not x.requires_grad


class ResidualBlock(nn.Module):
    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.residual = nn.Sequential(
            RMSNorm(in_dim, 3),
            nn.SiLU(inplace=True),
            CausalConv3d(in_dim, out_dim, 3, padding=1),
            RMSNorm(out_dim, 3),
            nn.SiLU(inplace=True),
            nn.Identity(),  # published: dropout; it keeps the next layer's name
            CausalConv3d(out_dim, out_dim, 3, padding=1),
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        if in_place_of_copies(x):
            norm, _, conv, second_norm, *_, second_conv = self.residual
            y = second_conv.activated(conv.activated(x, norm, cache), second_norm, cache)
        else:
            y = run(self.residual, x, cache)
        return y.add_(run([self.shortcut], x, cache))


class AttentionBlock(nn.Module):
    """Self-attention within each frame; one head."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 2)
        self.to_qkv = nn.Conv2d(dim, dim * 3, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        images = frames_first(x)
        tokens = self.to_qkv(self.norm(images)).flatten(2).transpose(1, 2).unsqueeze(1)  # [B*T, 1, H*W, 3*C]
        out = F.scaled_dot_product_attention(*tokens.chunk(3, dim=-1))
        out = self.proj(out.squeeze(1).transpose(1, 2).reshape(images.shape))
        return x + frames_last(out, x.shape[0])


class Downsample(nn.Module):
    """Halves height and width, and time if asked; the first frame of a video stays a frame of its own."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        if temporal:
            self.time_conv = CausalConv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1))
        self.temporal = temporal

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        x = frames_last(self.resample(frames_first(x)), x.shape[0])
        if not self.temporal:
            return x
        if self.time_conv in cache:
            return self.time_conv(x, cache)
        cache[self.time_conv] = x[:, :, :1].clone()
        if x.shape[2] == 1:
            return x
        return torch.cat([x[:, :, :1], self.time_conv(x[:, :, 1:], cache)], dim=2)


class Upsample(nn.Module):
    """Doubles height and width (and halves channels), and time if asked; the first frame stays one frame."""

    def __init__(self, dim: int, temporal: bool):
        super().__init__()
        self.resample = nn.Sequential(
            nn.Upsample(scale_factor=2.0, mode="nearest-exact"), nn.Conv2d(dim, dim // 2, 3, padding=1)
        )
        if temporal:
            self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1))
        self.temporal = temporal

    def double_time(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        first = None
        if self not in cache:  # the convolution through time starts at the second frame and never sees the first
            cache[self] = x.new_empty(0)
            first, x = x[:, :, :1], x[:, :, 1:]
            if x.shape[2] == 0:
                return first
        pairs = self.time_conv(x, cache).unflatten(1, (2, -1))  # [B, 2, C, T, H, W]
        x = pairs.permute(0, 3, 1, 4, 5, 2).flatten(1, 2).permute(0, 4, 1, 2, 3)  # in memory still channels last
        return x if first is None else torch.cat([first, x], dim=2)

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        if self.temporal:
            x = self.double_time(x, cache)
        return frames_last(self.resample(frames_first(x)), x.shape[0])


def run(layers, x: torch.Tensor, cache: Cache) -> torch.Tensor:
    """Layers one after the other; those that look into the past get the cache."""
    for layer in layers:
        x = layer(x, cache) if isinstance(layer, STREAMED) else layer(x)
    return x


def middle(dim: int) -> nn.Sequential:
    return nn.Sequential(ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim))


class Head(nn.Sequential):
    def __init__(self, dim: int, out_dim: int):
        super().__init__(RMSNorm(dim, 3), nn.SiLU(inplace=True), CausalConv3d(dim, out_dim, 3, padding=1))

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        if in_place_of_copies(x):
            norm, _, conv = self
            return conv.activated(x, norm, cache)
        return run(self, x, cache)


STREAMED = (CausalConv3d, ResidualBlock, Downsample, Upsample, Head)


class Encoder(nn.Module):
    def __init__(self, dim: int, z_dim: int, multipliers: Sequence[int], blocks: int):
        super().__init__()
        dims = [dim * m for m in (1, *multipliers)]
        self.conv1 = CausalConv3d(3, dims[0], 3, padding=1)
        layers: list[nn.Module] = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(dims)):
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks)]
            if stage < len(TEMPORAL_DOWNSAMPLING):
                layers.append(Downsample(out_dim, TEMPORAL_DOWNSAMPLING[stage]))
        self.downsamples = nn.Sequential(*layers)
        self.middle = middle(dims[-1])
        self.head = Head(dims[-1], z_dim)

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        return run([self.conv1, *self.downsamples, *self.middle, self.head], x, cache)


class Decoder(nn.Module):
    def __init__(self, dim: int, z_dim: int, multipliers: Sequence[int], blocks: int):
        super().__init__()
        dims = [dim * m for m in (multipliers[-1], *reversed(multipliers))]
        temporal = TEMPORAL_DOWNSAMPLING[::-1]
        self.conv1 = CausalConv3d(z_dim, dims[0], 3, padding=1)
        self.middle = middle(dims[0])
        layers: list[nn.Module] = []
        for stage, (in_dim, out_dim) in enumerate(pairwise(dims)):
            in_dim = in_dim // 2 if stage else in_dim  # the upsampling before has halved it
            layers += [ResidualBlock(in_dim if i == 0 else out_dim, out_dim) for i in range(blocks + 1)]
            if stage < len(temporal):
                layers.append(Upsample(out_dim, temporal[stage]))
        self.upsamples = nn.Sequential(*layers)
        self.head = Head(dims[-1], 3)

    def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
        return run([self.conv1, *self.middle, *self.upsamples, self.head], x, cache)


def in_range(frames: torch.Tensor) -> torch.Tensor:
    """Float32 frames limited to -1..1, in place; NaN and infinity are NaN."""
    return frames.masked_fill_(frames.isinf(), torch.nan).clamp_(-1, 1)


class WanVAE(nn.Module):
    """Encodes and decodes videos; its tensors carry the names of ``Wan2.1_VAE.pth``.

    Args:
        dim: width of the first stage (published: 96).
        z_dim: channels of the latents.
        multipliers: width of each stage, in `dim`.
        blocks: residual blocks of a stage of the encoder; the decoder has one more.
        latents_mean, latents_std: per channel, of the latents before normalisation; None: the published 16.
    """

    def __init__(
        self,
        dim: int = 96,
        z_dim: int = 16,
        latents_mean=None,
        latents_std=None,
        multipliers: Sequence[int] = MULTIPLIERS,
        blocks: int = 2,
    ):
        super().__init__()
        self.z_dim = z_dim
        self.latents_mean = tuple(LATENTS_MEAN if latents_mean is None else latents_mean)
        self.latents_std = tuple(LATENTS_STD if latents_std is None else latents_std)
        if not len(self.latents_mean) == len(self.latents_std) == z_dim:
            raise ValueError(f"latents_mean, latents_std: this VAE needs {z_dim} values of each")
        self.encoder = Encoder(dim, 2 * z_dim, multipliers, blocks)
        self.conv1 = CausalConv3d(2 * z_dim, 2 * z_dim, 1)
        self.conv2 = CausalConv3d(z_dim, z_dim, 1)
        self.decoder = Decoder(dim, z_dim, multipliers, blocks)

    @property
    def dtype(self) -> torch.dtype:
        return self.conv2.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.conv2.weight.device

    def statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents, float32 ``[1, z_dim, 1, 1, 1]``."""
        mean, std = torch.tensor([self.latents_mean, self.latents_std], device=self.device).view(2, 1, -1, 1, 1, 1)
        return mean, std

    def encode_moments(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log-variance of the posterior, before normalisation.

        Args:
            video: ``[B, 3, 4n+1, H, W]`` in -1..1, H and W divisible by 8.

        Returns:
            two tensors ``[B, z_dim, n+1, H/8, W/8]``.
        """
        self.check_video(video)
        t, h, w = video.shape[2:]
        step = TEMPORAL_STRIDE * max(1, CHUNK_PIXELS // (TEMPORAL_STRIDE * h * w))
        video = self.to_encoder(video)
        cache: Cache = {}
        pieces = [self.encoder(video[:, :, :1], cache)]
        pieces += [self.encoder(video[:, :, i : i + step], cache) for i in range(1, t, step)]
        mean, logvar = self.conv1(torch.cat(pieces, dim=2), cache).chunk(2, dim=1)
        return mean, logvar

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """``[B, 3, 4n+1, H, W]`` in -1..1 -> normalised latents, float32 ``[B, z_dim, n+1, H/8, W/8]``."""
        return self.normalised(self.encode_moments(video)[0])

    def check_video(self, video: torch.Tensor) -> None:
        """Raises a ValueError unless the encoder can take a video."""
        t, h, w = video.shape[2:]
        if video.shape[1] != 3 or t % TEMPORAL_STRIDE != 1 or h % SPATIAL_STRIDE or w % SPATIAL_STRIDE:
            raise ValueError(f"video {list(video.shape)}: must be [B, 3, 4n+1, H, W] with H and W divisible by 8")

    def to_encoder(self, video: torch.Tensor) -> torch.Tensor:
        """A video as the encoder's layers take it."""
        return video.to(self.device, self.dtype).contiguous(memory_format=torch.channels_last_3d)

    def normalised(self, moments: torch.Tensor) -> torch.Tensor:
        """Means of the posterior ``[B, z_dim, F, H/8, W/8]`` -> normalised latents, float32."""
        mean, std = self.statistics()
        return (moments.float() - mean).div_(std).contiguous()

    @property
    def decoder_memory(self) -> int:
        """How many latent frames of the past a frame depends on, by the convolutions through time."""
        rate, past = 1, 0.0  # frames for a latent frame; latent frames
        for layer in self.decoder.modules():  # in the order in which they are run
            if isinstance(layer, CausalConv3d):
                past += (layer.kernel_size[0] - 1) / rate
            if isinstance(layer, Upsample) and layer.temporal:
                rate *= 2  # its own convolution, which comes next, still runs at the rate before
                past += (layer.time_conv.kernel_size[0] - 1) / rate
        return math.ceil(past)

    def decode_stream(self, latents: torch.Tensor, cache: Cache | None = None) -> Iterator[torch.Tensor]:
        """The frames of normalised latents ``[B, z_dim, n+1, H/8, W/8]``, piece by piece.

        Args:
            cache: features of earlier latents; empty at the beginning of a video. With the one of an earlier call these
                latents continue those, and make 4 frames each.

        Yields:
            float32 ``[B, 3, t, H, W]`` in -1..1, 4n+1 frames in all; memory does not depend on n. NaN and infinity are
            NaN.
        """
        self.check_latents(latents)
        t, h, w = latents.shape[2:]
        step = max(1, CHUNK_PIXELS // (TEMPORAL_STRIDE * SPATIAL_STRIDE**2 * h * w))
        cache = {} if cache is None else cache
        for i in range(0, t, step):
            yield in_range(self.decoder(self.to_decoder(latents[:, :, i : i + step], cache), cache).float())

    def check_latents(self, latents: torch.Tensor) -> None:
        """Raises a ValueError unless the decoder can take latents."""
        if latents.ndim != 5 or latents.shape[1] != self.z_dim:
            raise ValueError(f"latents {list(latents.shape)}: must be [B, {self.z_dim}, F, H/8, W/8]")

    def to_decoder(self, latents: torch.Tensor, cache: Cache) -> torch.Tensor:
        """Normalised latents as the decoder's layers take them."""
        mean, std = self.statistics()
        z = torch.addcmul(mean, latents.to(self.device, torch.float32), std).to(self.dtype)
        return self.conv2(z.contiguous(memory_format=torch.channels_last_3d), cache)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """``[B, z_dim, n+1, H/8, W/8]`` normalised -> float32 ``[B, 3, 4n+1, H, W]`` in -1..1."""
        return torch.cat(list(self.decode_stream(latents)), dim=2).contiguous()
