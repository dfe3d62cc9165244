"""Sequence and guidance parallelism over xDiT's attention engine (the package yunchang).

Every rank holds all latent frames and a part of the tokens of each, so that whatever is per frame (timesteps, blocks of
causal attention, a cache's decisions) is the same on all ranks. B batch, F latent frames, S tokens of a frame, D model
width, H heads, E head size, L tokens of this rank.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import timedelta
from typing import TypeVar

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
T = TypeVar("T")


class SharedSequence(WholeSequence):
    """This rank's part of the tokens.

    Args:
        layout: how the ranks share the tokens.
        group: the ranks that share them.
        attention: yunchang's, over these ranks.
        choice: the attention kernels.
    """

    def __init__(
        self, layout: Layout, group: dist.ProcessGroup, attention: torch.nn.Module, choice: AttentionChoice = DEFAULTS
    ):
        super().__init__(choice)
        self.layout, self.group, self.attention = layout, group, attention

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
        # Without a ring nothing is combined, so the log-sum-exp is not read.
        unused = q.new_zeros(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
        return attend(q, k, v, choice), unused

    return step


class BranchPair:
    """The conditional and the unconditional pass, each computed by one of two ranks that hold the same tokens.

    Args:
        group: the two.
        branch: the pass that this rank computes: 0 the conditional, 1 the unconditional.
    """

    def __init__(self, group: dist.ProcessGroup, branch: int):
        self.group, self.branch = group, branch

    def __call__(self, positive: Branch, negative: Branch, x: torch.Tensor, t: torch.Tensor) -> list[torch.Tensor]:
        mine = (positive, negative)[self.branch](x, t).contiguous()
        both = [torch.empty_like(mine) for _ in range(2)]
        dist.all_gather(both, mine, group=self.group)
        return both


def agree(value: T) -> T:
    """Rank 0's tensors, on all ranks: what GPUs compute by themselves may differ in the last bit.

    Args:
        value: a tensor, or lists, tuples, dicts and dataclasses of tensors (a `PromptContext`), of the same structure,
            shapes and dtypes on all ranks; anything else in them is kept as it is.

    Returns:
        the same structure with new tensors; the arguments are not changed.
    """
    if isinstance(value, torch.Tensor):
        return _from_rank_0(value)
    if isinstance(value, list | tuple):
        return type(value)(agree(part) for part in value)
    if isinstance(value, dict):
        return {key: agree(part) for key, part in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: agree(getattr(value, field.name)) for field in fields(value)})
    return value


def _from_rank_0(x: torch.Tensor) -> torch.Tensor:
    sent = x.contiguous() if dist.get_rank() == 0 else torch.empty_like(x, memory_format=torch.contiguous_format)
    if x.device.type == "cpu" and dist.get_backend() == "nccl":  # a caller's process group, which knows GPUs only
        sent = sent.to(torch.device("cuda", torch.cuda.current_device()))
    dist.broadcast(sent, src=0)
    return sent.to(x.device)


@dataclass(frozen=True)
class Shared:
    """What a pipeline calls instead of computing everything itself.

    Attributes:
        sequence: this rank's part of the tokens.
        branches: runs the conditional and the unconditional pass; None where each rank computes both.
        agree: see `agree`.
    """

    sequence: WholeSequence
    branches: BranchPair | None
    agree: Callable[[T], T] = agree


def alone(choice: AttentionChoice = DEFAULTS) -> Shared:
    """On one rank nothing is shared."""
    return Shared(WholeSequence(choice), None, lambda value: value)


class RankGroups:
    """The process groups of layouts, made once for each, in torch's default process group.

    Args:
        meet: waits until all ranks have called it; collectives that other ranks may reach much later come after it.
        timeout: of collectives in the groups; None: torch's default.
    """

    def __init__(self, meet: Callable[[], None] = lambda: None, timeout: timedelta | None = None):
        self.meet, self.timeout = meet, timeout
        self._groups: dict[tuple[int, ...], dist.ProcessGroup] = {}
        self._shared: dict[tuple[Layout, AttentionChoice], Shared] = {}

    def share(self, layout: Layout, choice: AttentionChoice = DEFAULTS) -> Shared:
        """What a pipeline needs to work in a layout; all ranks have to call this, in the same order.

        Raises:
            ValueError: there are not as many ranks as in the layout.
            ImportError: the attention engine is not installed.
        """
        key = layout, choice
        if key not in self._shared:
            self._shared[key] = self._make(layout, choice)
        return self._shared[key]

    def agree(self, value: T) -> T:
        """As the function `agree`, after all ranks have met."""
        self.meet()
        return agree(value)

    def _make(self, layout: Layout, choice: AttentionChoice) -> Shared:
        rank, size = dist.get_rank(), dist.get_world_size()
        if layout.ranks != size:
            raise ValueError(f"{layout}: is for {layout.ranks} ranks, there are {size}")
        self.meet()
        parts, (branch, place) = layout.parts, divmod(rank, layout.parts)
        sequence = WholeSequence(choice)
        if parts > 1:
            groups = [self._group(range(b * parts, (b + 1) * parts)) for b in range(layout.guidance)]
            sequence = SharedSequence(layout, groups[branch], self._attention(layout, choice), choice)
        branches = None
        if layout.guidance == 2:
            pairs = [self._group((i, i + parts)) for i in range(parts)]
            branches = BranchPair(pairs[place], branch)
        return Shared(sequence, branches, self.agree)

    def _group(self, ranks) -> dist.ProcessGroup:
        """Every rank has to make every group, whether it is in it or not."""
        ranks = tuple(ranks)
        if ranks not in self._groups:
            self._groups[ranks] = dist.new_group(list(ranks), timeout=self.timeout)
        return self._groups[ranks]

    def _attention(self, layout: Layout, choice: AttentionChoice) -> torch.nn.Module:
        """The engine's attention; it keeps the groups that are the engine's current ones when it is made."""
        from yunchang import LongContextAttention, set_seq_parallel_pg

        set_seq_parallel_pg(layout.ulysses, layout.ring, dist.get_rank(), dist.get_world_size())
        # "custom" is none of its kinds, which makes it take the function; the kinds it has return no usable
        # log-sum-exp on a CPU or under cuDNN, without which a ring adds its parts up wrongly.
        attention = LongContextAttention(attn_type="custom", attn_processor=_ring_step(layout.ring, choice))
        if self.timeout is not None:
            for group in (attention.ulysses_pg, attention.ring_pg):  # which the engine makes with torch's default
                dist.distributed_c10d._set_pg_timeout(self.timeout, group)
        return attention


def share(layout: Layout, choice: AttentionChoice = DEFAULTS) -> Shared:
    """As `RankGroups.share`, with groups of its own; for a process group that the caller has made."""
    return RankGroups().share(layout, choice)
