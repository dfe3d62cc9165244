"""Sequence and guidance parallelism over xDiT's attention engine (the package yunchang).

Every rank holds all latent frames and a part of the tokens of each, so what is said per frame (timesteps, blocks of
causal attention, a cache's decisions) is the same on all ranks. B batch, F latent frames, S tokens of a frame, D model
width, H heads, E head size, L tokens of this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from skyreels_v2_infer.modules.attention import (
    DEFAULTS,
    AttentionChoice,
    WholeSequence,
    attend,
    attend_with_log_sum,
)
from skyreels_v2_infer.plan.sharing import Layout

Branch = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class SharedSequence(WholeSequence):
    """This rank's part of the tokens.

    Args:
        layout: how the ranks share the tokens.
        group: the ranks that share them.
        choice: the attention kernels.
    """

    def __init__(self, layout: Layout, group: dist.ProcessGroup, choice: AttentionChoice = DEFAULTS):
        from yunchang import LongContextAttention

        super().__init__(choice)
        self.layout, self.group = layout, group
        # "custom" is none of its kinds, which makes it take the function; the kinds it has return no usable
        # log-sum-exp on a CPU or under cuDNN, without which a ring adds its parts up wrongly.
        self.attention = LongContextAttention(attn_type="custom", attn_processor=_ring_step(layout.ring, choice))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        parts = self.layout.parts
        if x.shape[2] % parts:
            raise ValueError(f"{x.shape[2]} tokens a frame cannot be split over {parts} ranks")
        return x.chunk(parts, dim=2)[dist.get_rank(self.group)]

    def join(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(self.layout.parts)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, dim=2)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return self.attention(q.contiguous(), k.contiguous(), v.contiguous())


def _ring_step(ring: int, choice: AttentionChoice):
    """Attention as the engine calls it, on ``[B, L, H, E]`` -> (output, float32 log-sum-exp ``[B, H, L]``)."""

    def step(q, k, v, *, softmax_scale=None, **_unused):
        if ring > 1:
            return attend_with_log_sum(q, k, v, choice)
        unused = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
        return attend(q, k, v, choice), unused

    return step


class BranchPair:
    """Both branches of guidance, each computed by one of two ranks that hold the same tokens.

    Args:
        group: the two.
        branch: which of them this rank computes: 0 the prompt's, 1 the negative prompt's.
    """

    def __init__(self, group: dist.ProcessGroup, branch: int):
        self.group, self.branch = group, branch

    def __call__(self, positive: Branch, negative: Branch, x: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
        mine = (positive, negative)[self.branch](x, t).contiguous()
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine, group=self.group)
        return both


def agree(x: torch.Tensor) -> torch.Tensor:
    """Rank 0's tensor, on all ranks: encoders on different GPUs may differ in the last bit."""
    x = x.contiguous()
    dist.broadcast(x, src=0)
    return x


@dataclass(frozen=True)
class Shared:
    """What a pipeline calls instead of doing all by itself; branches is None where each rank computes both."""

    sequence: WholeSequence
    branches: BranchPair | None
    agree: Callable[[torch.Tensor], torch.Tensor] = agree


def share(layout: Layout, choice: AttentionChoice = DEFAULTS) -> Shared:
    """Sets up the groups of a layout for all ranks of torch's default process group, which each have to call this.

    Raises:
        ValueError: the group has another number of ranks than the layout.
        ImportError: the attention engine is not installed.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    if layout.ranks != size:
        raise ValueError(f"{layout}: is for {layout.ranks} ranks, there are {size}")
    if layout.parts > 1:
        from yunchang import set_seq_parallel_pg

        set_seq_parallel_pg(layout.ulysses, layout.ring, rank, size)
    branch, place = divmod(rank, layout.parts)
    # Every rank has to make every group, its own or not.
    groups = [dist.new_group([b * layout.parts + i for i in range(layout.parts)]) for b in range(layout.guidance)]
    sequence = SharedSequence(layout, groups[branch], choice) if layout.parts > 1 else WholeSequence(choice)
    if layout.guidance == 1:
        return Shared(sequence, None)
    pairs = [dist.new_group([i, i + layout.parts]) for i in range(layout.parts)]
    return Shared(sequence, BranchPair(pairs[place], branch))
