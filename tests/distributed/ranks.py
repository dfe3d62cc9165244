"""What each rank of a torchrun does in `test_distributed.py`: every mode in every layout, against itself alone.

``torchrun ... ranks.py FOLDER OUT``: FOLDER has small checkpoints t2v, df and i2v; rank 0 writes to OUT, as JSON,
for every mode and layout the largest relative difference of the latents from those that one rank makes by itself; and
how far the work of rank 0 is from its share ("work"), how far any rank is from the tensors of rank 0 after they have
agreed ("agree"), and how many process groups it takes to share in the same way once more ("groups").
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image

from skyreels_v2_infer import DiffusionForcingPipeline, Image2VideoPipeline, Text2VideoPipeline
from skyreels_v2_infer.distributed.xdit_context_parallel import RankGroups
from skyreels_v2_infer.modules.attention import attend
from skyreels_v2_infer.modules.caches.easycache import EasyCache
from skyreels_v2_infer.modules.caches.magcache import MagCache
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.modules.transformer import PromptContext
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
from skyreels_v2_infer.plan.sharing import layouts

HEADS, FRAME_TOKENS = 4, 16
HEIGHT, WIDTH = 64, 64
COMMON = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 4, "seed": 5, "output_type": "latent"}
FORCING = COMMON | {"num_frames": 17, "base_num_frames": 17}
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8))
MODES = {
    "t2v": ("t2v", COMMON | {"num_frames": 9}),
    "t2v without guidance": ("t2v", COMMON | {"num_frames": 9, "guidance_scale": 1.0}),
    "i2v": ("i2v", COMMON | {"num_frames": 9, "image": PICTURE}),
    "df synchronous": ("df", FORCING | {"ar_step": 0}),
    "df asynchronous": ("df", FORCING | {"ar_step": 1, "causal_block_size": 2}),
    "df causal": ("df", FORCING | {"ar_step": 1, "causal_block_size": 2, "causal_attention": True}),
    "df image and end": ("df", FORCING | {"ar_step": 0, "image": PICTURE, "end_image": PICTURE}),
    "df long": ("df", FORCING | {"ar_step": 0, "num_frames": 41, "overlap_history": 5, "addnoise_condition": 20}),
    "df by latents": (
        "df",
        FORCING | {"ar_step": 0, "num_frames": 41, "overlap_history": 5, "history": "latent"},
    ),
    "t2v with a cache": ("t2v", COMMON | {"num_frames": 9, "num_inference_steps": 8}),
    "df asynchronous with a cache": ("df", FORCING | {"ar_step": 1, "num_inference_steps": 8}),
    "df with easycache": ("df", FORCING | {"ar_step": 1, "causal_block_size": 3, "num_inference_steps": 8}),
    "t2v with magcache": ("t2v", COMMON | {"num_frames": 9, "num_inference_steps": 8}),
}
# Thresholds at which about half of the rows are computed; the passes of magcache decide apart.
CACHES = {
    "t2v with a cache": TeaCache(0.3, (0.0, 0.0, 0.0, 1.0, 0.0)),
    "df asynchronous with a cache": TeaCache(0.3, (0.0, 0.0, 0.0, 1.0, 0.0)),
    "df with easycache": EasyCache(2.0, 0.0),
    "t2v with magcache": MagCache(0.1, 3, 0.0, ((1.0,) + (0.97,) * 7, (1.0,) + (0.93,) * 7)),
}
FRAMES_OF_ALL_ROWS = {"df with easycache": 9 * 5, "t2v with magcache": 8 * 3}  # in each pass, without a cache
KINDS = {"t2v": Text2VideoPipeline, "df": DiffusionForcingPipeline, "i2v": Image2VideoPipeline}


def run(pipeline, mode: str) -> torch.Tensor:
    _, settings = MODES[mode]
    pipeline.hooks = replace(pipeline.hooks, cache=CACHES.get(mode))
    return pipeline(prompt="a swan", negative_prompt="blurred", **settings)


def worked(pipeline, mode: str) -> tuple[torch.Tensor, int]:
    """The latents, and how many tokens went through the first block here."""
    seen = []
    first = pipeline.transformer.blocks[0]
    hook = first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[:3].numel()))
    made = run(pipeline, mode)
    hook.remove()
    return made, sum(seen)


def share_of(layout, mode: str) -> int:
    """One rank's work is one of so many parts of the whole; a cache may run one branch more often than the other."""
    return layout.parts * (1 if "without guidance" in mode else layout.guidance)


def relative(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference on any rank."""
    difference = ((one - other).abs().max() / other.abs().max()).reshape(1)
    dist.all_reduce(difference, op=dist.ReduceOp.MAX)
    return difference.item()


def attention(sequence, frames: int = 3) -> float:
    """One attention, split and whole."""
    q, k, v = torch.randn(3, 1, frames, FRAME_TOKENS, HEADS, 8, generator=torch.Generator().manual_seed(0))
    whole = attend(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2)).view(q.shape)
    parts = [sequence.split(x).flatten(1, 2) for x in (q, k, v)]
    made = sequence.attend(*parts).unflatten(1, (frames, -1))
    return relative(made, sequence.split(whole))


def agreement(agree) -> float:
    """Tensors of every kind that pipelines have: alone, in a prompt's keys and values, transposed, of bools."""

    def of(rank: int) -> tuple:
        pairs = [(torch.full((1, 3, 4, 2), 1.0 + rank + i), torch.full((1, 3, 4, 2), 2.0 + rank)) for i in range(2)]
        mask = torch.tensor([True, False]) if rank else torch.tensor([False, True])
        return PromptContext([pairs, pairs[:1]]), torch.arange(6.0).view(2, 3).T + rank, {"mask": mask, "none": None}

    def tensors(value) -> list[torch.Tensor]:
        context, matrix, others = value
        return [x for block in context.blocks for pair in block for x in pair] + [matrix, others["mask"]]

    mine, first = of(dist.get_rank()), of(0)
    agreed = agree(mine)
    assert agreed[2]["none"] is None and isinstance(agreed[0], PromptContext)
    assert all(map(torch.equal, tensors(mine), tensors(of(dist.get_rank()))))  # arguments are left alone
    return max(relative(x.float(), y.float()) for x, y in zip(tensors(agreed), tensors(first), strict=True))


def main() -> None:
    folder, out = map(Path, sys.argv[1:])
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    pipelines = {task: KINDS[task](str(folder / task), device="cpu") for task in KINDS}
    alone = {mode: worked(pipelines[task], mode) for mode, (task, _) in MODES.items()}
    assert all(alone[mode][1] < 0.8 * rows * 2 * FRAME_TOKENS for mode, rows in FRAMES_OF_ALL_ROWS.items())
    apart: dict[str, dict[str, float]] = {mode: {} for mode in (*MODES, "attention", "work", "agree", "groups")}
    groups = RankGroups()
    for layout in layouts(size, HEADS, FRAME_TOKENS, guided=True):
        shared, name = groups.share(layout), f"{layout.guidance} {layout.ulysses} {layout.ring}"
        for pipeline in pipelines.values():
            pipeline.hooks = Hooks(ranks=Ranks.of(shared))
        strayed = 0
        for mode, (task, _) in MODES.items():
            made, work = worked(pipelines[task], mode)
            apart[mode][name] = relative(made, alone[mode][0])
            if mode not in CACHES:
                strayed += abs(work * share_of(layout, mode) - alone[mode][1])
        apart["work"][name] = float(strayed)
        apart["agree"][name] = agreement(shared.agree)
        before = len(dist.distributed_c10d._world.pg_map)
        assert groups.share(layout) is shared
        apart["groups"][name] = float(len(dist.distributed_c10d._world.pg_map) - before)
        apart["attention"][name] = attention(shared.sequence)
    if rank == 0:
        out.write_text(json.dumps(apart, indent=1))
    dist.destroy_process_group()


main()
