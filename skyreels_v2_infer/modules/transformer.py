"""The video diffusion transformer of SkyReels-V2 (Wan 2.1's, with a timestep per frame).

B batch, F latent frames, S tokens of a frame, D model width, H heads, E head size, M text tokens.
Tokens are ``[B, F, S, D]`` throughout, so that what is said per frame, ``[B, F, 1, D]``, or for all of them,
``[B, 1, 1, D]``, is broadcast and never repeated per token.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from skyreels_v2_infer.modules.attention import (
    DEFAULTS,
    WHOLE,
    AttentionChoice,
    WholeSequence,
    attend,
    attend_block_causal,
)
from skyreels_v2_infer.modules.dense import linear, linear_gelu
from skyreels_v2_infer.modules.linear import project
from skyreels_v2_infer.modules.rope import rotary_table, rotate

# (tokens [B, F, S, D], time [B, F or 1, D], modulation [B, F or 1, 6, D], what runs the blocks) -> tokens
Around = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Callable[[torch.Tensor], torch.Tensor]], torch.Tensor]

IMAGE_CHANNELS = 20  # what an image-to-video model sees beside the noise: 4 of mask, 16 of latents


class Float32Linear(nn.Linear):
    """A linear layer that computes in float32 whatever its weights are stored in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x.float(), self.weight.float(), self.bias.float())


class RMSNorm(nn.Module):
    """Root-mean-square norm over all heads together, in float32."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps).to(x.dtype)


def modulate(x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor, eps: float) -> torch.Tensor:
    """Layer norm, then ``x * (1 + scale) + shift``; in float32, dtype kept."""
    return torch.addcmul(shift, F.layer_norm(x.float(), x.shape[-1:], eps=eps), 1 + scale).to(x.dtype)


def gated(x: torch.Tensor, update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    """``x + update * gate`` in float32, dtype kept."""
    return torch.addcmul(x.float(), update.float(), gate).to(x.dtype)


class SelfAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int, eps: float):
        super().__init__()
        self.num_heads = num_heads
        self.q, self.k, self.v, self.o = (nn.Linear(dim, dim) for _ in range(4))
        self.norm_q, self.norm_k = RMSNorm(dim, eps), RMSNorm(dim, eps)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.num_heads, -1))  # [B, L, H, E]

    def queries_keys_values(
        self, x: torch.Tensor, rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """x ``[B, F, S, D]``, rotary ``[F*S, 1, E]`` -> three ``[B, F*S, H, E]``."""
        q, k, v = project(x.flatten(1, 2), self.q, self.k, self.v)
        q = rotate(self.heads(self.norm_q(q)), rotary)
        k = rotate(self.heads(self.norm_k(k)), rotary)
        return q, k, self.heads(v)


class CrossAttention(SelfAttention):
    """Attention to a prompt whose keys and values are made once, by `keys_values`, and then used in every step."""

    def __init__(self, dim: int, num_heads: int, eps: float, with_image: bool):
        super().__init__(dim, num_heads, eps)
        if with_image:
            self.k_img, self.v_img = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_k_img = RMSNorm(dim, eps)

    def keys_values(self, text: torch.Tensor, image: torch.Tensor | None) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """(keys, values), each ``[B, M, H, E]``: of the text and, if there is one, of the image."""
        pairs = [(self.heads(self.norm_k(self.k(text))), self.heads(self.v(text)))]
        if image is not None:
            pairs.append((self.heads(self.norm_k_img(self.k_img(image))), self.heads(self.v_img(image))))
        return pairs

    def forward(self, x: torch.Tensor, keys_values, choice: AttentionChoice) -> torch.Tensor:
        q = self.heads(self.norm_q(linear(self.q, x.flatten(1, 2))))
        (k, v), *image = keys_values
        out = attend(q, k, v, choice)
        for k, v in image:
            out = out + attend(q, k, v, choice)
        return linear(self.o, out.flatten(2)).view(x.shape)


class Block(nn.Module):
    def __init__(self, dim: int, ffn_dim: int, num_heads: int, cross_attn_norm: bool, eps: float, with_image: bool):
        super().__init__()
        self.eps = eps
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps) if cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(dim, num_heads, eps, with_image)
        self.ffn = nn.Sequential(nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim))
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def normed_query(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(self.norm3, nn.Identity):
            return x
        weight, bias = self.norm3.weight.float(), self.norm3.bias.float()
        return F.layer_norm(x.float(), x.shape[-1:], weight, bias, self.eps).to(x.dtype)

    def modulations(self, modulation: torch.Tensor) -> list[torch.Tensor]:
        """Shift, scale and gate of attention, then of the feed-forward; each float32 ``[B, F or 1, 1, D]``."""
        return [m.unsqueeze(2) for m in (self.modulation.float().unsqueeze(1) + modulation).unbind(2)]

    def before_attention(
        self, x: torch.Tensor, modulation: torch.Tensor, rotary: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shift, scale = self.modulations(modulation)[:2]
        return self.self_attn.queries_keys_values(modulate(x, shift, scale, self.eps), rotary)

    def after_attention(
        self, x: torch.Tensor, attended: torch.Tensor, modulation: torch.Tensor, keys_values, choice: AttentionChoice
    ) -> torch.Tensor:
        """attended ``[B, F*S, H, E]``: what attention made of the output of `before_attention`."""
        gate_a, shift, scale, gate_f = self.modulations(modulation)[2:]
        x = gated(x, linear(self.self_attn.o, attended.flatten(2)).view(x.shape), gate_a)
        x = x + self.cross_attn(self.normed_query(x), keys_values, choice)
        inner = linear_gelu(self.ffn[0], modulate(x, shift, scale, self.eps))
        return gated(x, linear(self.ffn[2], inner), gate_f)

    def forward(
        self, x, modulation, keys_values, rotary, attention, choice: AttentionChoice = DEFAULTS
    ) -> torch.Tensor:
        """x ``[B, F, S, D]``; modulation float32 ``[B, F or 1, 6, D]``; `choice`: the kernels of cross-attention.

        The two halves are what `compile_blocks` compiles; attention itself, which may be a ring over ranks or a loop
        over blocks of frames, runs as it is.
        """
        q, k, v = self.before_attention(x, modulation, rotary)
        return self.after_attention(x, attention(q, k, v), modulation, keys_values, choice)


class Head(nn.Module):
    def __init__(self, dim: int, out_features: int, eps: float):
        super().__init__()
        self.eps = eps
        self.head = nn.Linear(dim, out_features)
        self.modulation = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    def forward(self, x: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
        """x ``[B, F, S, D]``, time float32 ``[B, F or 1, D]`` -> ``[B, F, S, out_features]``."""
        shift, scale = (self.modulation.float().unsqueeze(1) + time.unsqueeze(2)).unsqueeze(3).unbind(2)
        return linear(self.head, modulate(x, shift, scale, self.eps))


class ImageProjection(nn.Module):
    """CLIP features ``[B, tokens, img_dim]`` -> ``[B, tokens, D]``."""

    def __init__(self, img_dim: int, dim: int):
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(img_dim), nn.Linear(img_dim, img_dim), nn.GELU(), nn.Linear(img_dim, dim), nn.LayerNorm(dim)
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        x = features
        for layer in self.proj:
            if isinstance(layer, nn.LayerNorm):
                weight, bias = layer.weight.float(), layer.bias.float()
                x = F.layer_norm(x.float(), layer.normalized_shape, weight, bias, layer.eps).to(features.dtype)
            else:
                x = layer(x)
        return x


def repeat_last(x: torch.Tensor, times: int) -> torch.Tensor:
    """``[B, M, ...]`` -> ``[B, M + times, ...]``."""
    return torch.cat([x, x[:, -1:].expand(-1, times, *(-1,) * (x.ndim - 2))], dim=1)


@dataclass(frozen=True)
class PromptContext:
    """A prompt (and image) as the blocks read it: for each block a list of (keys, values), each ``[B, M, H, E]``."""

    blocks: list[list[tuple[torch.Tensor, torch.Tensor]]]

    def joined(self, other: "PromptContext") -> "PromptContext":
        """This batch followed by the other's."""
        pairs = zip(self.blocks, other.blocks, strict=True)
        return PromptContext([[joined_pair(*p) for p in zip(mine, others, strict=True)] for mine, others in pairs])


def joined_pair(mine: tuple[torch.Tensor, ...], other: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
    return tuple(torch.cat(both) for both in zip(mine, other, strict=True))


def timestep_features(t: torch.Tensor, size: int) -> torch.Tensor:
    """Sinusoids of t (any shape) -> float32 ``[*t.shape, size]``: cosines first."""
    half = size // 2
    wide = torch.float32 if t.device.type == "mps" else torch.float64  # MPS has no float64
    frequencies = torch.pow(10000.0, torch.arange(half, dtype=wide, device=t.device) / -half)
    angles = t.to(wide).unsqueeze(-1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class WanModel(nn.Module):
    """Predicts the velocity of noisy latents.

    The arguments are the fields of the official ``config.json`` and those that it leaves out because they never
    change; keys that are not known are ignored, since later releases may add some. The names and shapes of
    ``state_dict()`` are those of the published safetensors.

    Args:
        model_type: ``"t2v"`` or ``"i2v"``; the latter sees an image through `clip_fea` and `y`.
        patch_size: latent frames, rows and columns in a token.
        text_len: text tokens that a prompt is padded to; padding is part of what the model has learned.
        inject_sample_info: whether the frame rate is an input of the model.
    """

    def __init__(
        self,
        *,
        dim: int,
        ffn_dim: int,
        num_heads: int,
        num_layers: int,
        model_type: str = "t2v",
        patch_size: tuple[int, int, int] = (1, 2, 2),
        text_len: int = 512,
        in_dim: int = 16,
        freq_dim: int = 256,
        text_dim: int = 4096,
        img_dim: int = 1280,
        out_dim: int = 16,
        cross_attn_norm: bool = True,
        eps: float = 1e-6,
        inject_sample_info: bool = False,
        **_unknown,
    ):
        super().__init__()
        if dim % num_heads or (dim // num_heads) % 2:
            raise ValueError(f"dim {dim}: must be num_heads ({num_heads}) times an even head size")
        if model_type not in ("t2v", "i2v"):
            raise ValueError(f"model_type {model_type!r}: must be 't2v' or 'i2v'")
        self.dim, self.num_heads, self.num_layers, self.ffn_dim = dim, num_heads, num_layers, ffn_dim
        self.model_type, self.patch_size, self.text_len = model_type, tuple(patch_size), text_len
        self.in_dim, self.out_dim, self.freq_dim, self.text_dim = in_dim, out_dim, freq_dim, text_dim
        self.inject_sample_info = inject_sample_info
        self.causal_block_size: int | None = None
        self._rotary: tuple[tuple, torch.Tensor] | None = None
        is_i2v = model_type == "i2v"

        self.patch_embedding = nn.Conv3d(in_dim, dim, kernel_size=self.patch_size, stride=self.patch_size)
        self.text_embedding = nn.Sequential(nn.Linear(text_dim, dim), nn.GELU(approximate="tanh"), nn.Linear(dim, dim))
        self.time_embedding = nn.Sequential(Float32Linear(freq_dim, dim), nn.SiLU(), Float32Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), Float32Linear(dim, 6 * dim))
        if inject_sample_info:
            self.fps_embedding = nn.Embedding(2, dim)
            self.fps_projection = nn.Sequential(Float32Linear(dim, dim), nn.SiLU(), Float32Linear(dim, 6 * dim))
        self.blocks = nn.ModuleList(
            Block(dim, ffn_dim, num_heads, cross_attn_norm, eps, is_i2v) for _ in range(num_layers)
        )
        pt, ph, pw = self.patch_size
        self.head = Head(dim, pt * ph * pw * out_dim, eps)
        if is_i2v:
            self.img_emb = ImageProjection(img_dim, dim)

    @property
    def dtype(self) -> torch.dtype:
        """What the token stream is computed in."""
        return self.patch_embedding.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.patch_embedding.weight.device

    def set_ar_attention(self, causal_block_size: int) -> None:
        """Makes block-causal attention the default of `forward`, as published code asks for it."""
        self.causal_block_size = causal_block_size

    def prepare_context(
        self, context: torch.Tensor, clip_fea: torch.Tensor | None = None, at_work=nullcontext
    ) -> PromptContext:
        """Keys and values of a prompt for every block, to be made once per prompt and handed to `forward`.

        Args:
            context: text embeddings ``[B, L, text_dim]``, ``L <= text_len``; zeros are appended up to text_len.
            clip_fea: CLIP features of the image ``[B, tokens, img_dim]``; for image-to-video models only.
            at_work: context manager that makes a layer resident on the device while it computes.
        """
        if context.ndim != 3 or context.shape[2] != self.text_dim or context.shape[1] > self.text_len:
            raise ValueError(
                f"context {list(context.shape)}: must be [B, up to {self.text_len}, {self.text_dim}] for this model"
            )
        if (clip_fea is not None) != (self.model_type == "i2v"):
            raise ValueError(f"clip_fea: a {self.model_type} model takes {'one' if clip_fea is None else 'none'}")
        text = context.to(self.dtype)
        padding = self.text_len - text.shape[1]
        if padding:  # all its tokens are alike, so one is computed, and repeated in the end
            text = F.pad(text, (0, 0, 0, 1))
        with at_work(self.text_embedding):
            text = self.text_embedding(text)
        image = None
        if clip_fea is not None:
            with at_work(self.img_emb):
                image = self.img_emb(clip_fea.to(self.dtype))
        blocks = []
        for block in self.blocks:
            with at_work(block.cross_attn):
                blocks.append(block.cross_attn.keys_values(text, image))
        if padding > 1:
            blocks = [[tuple(repeat_last(x, padding - 1) for x in words), *images] for words, *images in blocks]
        return PromptContext(blocks)

    def embed_patches(self, x: torch.Tensor) -> torch.Tensor:
        """``[B, C, F, H, W]`` -> tokens ``[B, F, S, D]``: the patch convolution as one matrix product."""
        pt, ph, pw = self.patch_size
        b, c, f, h, w = x.shape
        x = x.view(b, c, f // pt, pt, h // ph, ph, w // pw, pw)
        x = x.permute(0, 2, 4, 6, 1, 3, 5, 7).reshape(b, f // pt, (h // ph) * (w // pw), c * pt * ph * pw)
        return F.linear(x, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)

    def embed_time(self, t: torch.Tensor, fps: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """t ``[B, F or 1]`` -> time ``[B, F or 1, D]`` and modulation ``[B, F or 1, 6, D]``, both float32."""
        time = self.time_embedding(timestep_features(t, self.freq_dim))
        modulation = self.time_projection(time)
        if self.inject_sample_info:
            if fps is None:
                raise ValueError(
                    "fps: the frame rate is an input of this model; give ids [B], 0 for 16 fps and 1 otherwise"
                )
            modulation = modulation + self.fps_projection(self.fps_embedding(fps)).unsqueeze(1)
        return time, modulation.unflatten(-1, (6, self.dim))

    @property
    def time_layers(self) -> nn.ModuleList:
        """The layers of `embed_time`."""
        of_fps = [self.fps_embedding, self.fps_projection] if self.inject_sample_info else []
        return nn.ModuleList([self.time_embedding, self.time_projection, *of_fps])

    def rotary(self, *grid: int) -> torch.Tensor:
        """Rotations of the tokens of a grid; the last table is kept, since all forwards of a window share it."""
        key = (*grid, self.device)
        if self._rotary is None or self._rotary[0] != key:
            self._rotary = key, rotary_table(*grid, self.dim // self.num_heads).to(self.device)
        return self._rotary[1]

    def unpatchify(self, x: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """``[B, F, S, pt*ph*pw*out_dim]`` -> float32 ``[B, out_dim, F*pt, height, width]``."""
        pt, ph, pw = self.patch_size
        b, f = x.shape[:2]
        x = x.float().view(b, f, height // ph, width // pw, pt, ph, pw, self.out_dim)
        return x.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(b, self.out_dim, f * pt, height, width)

    def forward(
        self,
        x: torch.Tensor,
        t: torch.Tensor,
        context: torch.Tensor | PromptContext,
        clip_fea: torch.Tensor | None = None,
        y: torch.Tensor | None = None,
        fps: torch.Tensor | None = None,
        causal_block_size: int | None = None,
        around: Around | None = None,
        sequence: WholeSequence = WHOLE,
    ) -> torch.Tensor:
        """The velocity ``noise - data`` at x.

        Args:
            x: noisy latents ``[B, 16, F, H, W]``, H and W even.
            t: timesteps 0..1000, shared ``[B]`` or one per latent frame ``[B, F]``; ``[1]`` and ``[1, F]`` are those of
                the whole batch.
            context: text embeddings ``[B, L, text_dim]``, or what `prepare_context` made of them and of `clip_fea`.
            clip_fea: image features ``[B, tokens, img_dim]`` (image-to-video only, with raw `context`).
            y: mask and image latents ``[B, 20, F, H, W]`` (image-to-video only).
            fps: ids ``[B]`` (``[1]`` with t of the whole batch), 0 for 16 fps and 1 for any other (models with
                `inject_sample_info` only).
            causal_block_size: latent frames in a block; a block then sees itself and those before it. None: what
                `set_ar_attention` has set, at first attention without blocks.
            around: wraps the block stack: (tokens, time embedding, its projection, run) -> tokens after all blocks.
            sequence: what splits tokens over ranks, joins them, and attends to those of all ranks.

        Returns:
            float32 ``[B, out_dim, F, H, W]``.
        """
        if causal_block_size is None:
            causal_block_size = self.causal_block_size
        if y is not None:
            x = torch.cat([x, y.to(x.dtype)], dim=1)
        self.check_shapes(x, t, causal_block_size)
        if not isinstance(context, PromptContext):
            context = self.prepare_context(context, clip_fea)
        height, width = x.shape[3:]
        _, ph, pw = self.patch_size

        tokens = self.embed_patches(x.to(self.dtype))
        frames, frame_tokens = tokens.shape[1:3]
        tokens = sequence.split(tokens)  # [B, F, S, D]
        time, modulation = self.embed_time(t.reshape(t.shape[0], -1), fps)
        rotary = self.rotary(frames, height // ph, width // pw).view(1, frames, frame_tokens, -1)  # [.., E]
        rotary = sequence.split(rotary).flatten(0, 2).unsqueeze(1)

        attention = sequence.attend
        if causal_block_size is not None:

            def attention(q, k, v):
                return attend_block_causal(q, k, v, causal_block_size * tokens.shape[2], sequence.attend)

        def run(tokens: torch.Tensor) -> torch.Tensor:
            for block, keys_values in zip(self.blocks, context.blocks, strict=True):
                tokens = block(tokens, modulation, keys_values, rotary, attention, sequence.choice)
            return tokens

        tokens = run(tokens) if around is None else around(tokens, time, modulation, run)
        return self.unpatchify(sequence.join(self.head(tokens, time)), height, width)

    def check_shapes(self, x: torch.Tensor, t: torch.Tensor, causal_block_size: int | None) -> None:
        pt, ph, pw = self.patch_size
        if x.ndim != 5 or x.shape[1] != self.in_dim or x.shape[2] % pt or x.shape[3] % ph or x.shape[4] % pw:
            hint = f", {IMAGE_CHANNELS} of them from y" if self.model_type == "i2v" else ""
            raise ValueError(
                f"x {list(x.shape)}: must be [B, {self.in_dim}{hint}, F, H, W] with H divisible by {ph}, W by {pw}"
            )
        if t.shape[0] not in (1, x.shape[0]) or t.shape[1:] not in ((), (x.shape[2] // pt,)):
            raise ValueError(f"t {list(t.shape)}: must be [{x.shape[0]}] or [{x.shape[0]}, {x.shape[2] // pt}]")
        if causal_block_size is not None and causal_block_size < 1:
            raise ValueError(f"causal_block_size {causal_block_size}: must be at least 1")
