"""Whole videos through the pipeline that the scripts use.

With random weights of all layers and random embeddings of the prompt; on a CPU also the embedded model beside
diffusers' pipelines.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import torch

from benchmarks import cpu_pipelines, peer
from benchmarks.measure import GIB, Run, attempt, check_memory, clear, peak, seconds
from benchmarks.sizes import random_transformer, random_vae
from benchmarks.table import Row, row
from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.distributed.xdit_context_parallel import alone
from skyreels_v2_infer.media.write import VideoWriter
from skyreels_v2_infer.modules.attention import choose_attention
from skyreels_v2_infer.modules.compiled import compile_blocks
from skyreels_v2_infer.modules.vae import compile_norms
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
from skyreels_v2_infer.plan.cost import VAE, cost_of
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan, make_plan
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.run.session import on_host
from skyreels_v2_infer.run.worker import Worker

FRAMES = 97
DISTILLED = {"shift": 5.0, "guidance_scale": 1.0, "solver": "euler"}  # as --preset 4steps


class Maker:
    """A model and how it makes videos."""

    def __init__(self, run: Run):
        self.run, config = run, run.size.model | {"model_type": "t2v"}
        self.model = random_transformer(config, run.device, run.dtype)
        self.vae = random_vae(run.size.vae_dim if run.cuda else 8, run.device)
        if run.compiled:
            compile_blocks(self.model, print)
        if run.cuda:
            compile_norms(self.vae)
        ranks = Ranks.of(alone(choose_attention(run.device, run.dtype, run.size.head_size)))
        self.hooks = Hooks(ranks=ranks)
        text = run.random(1, self.model.text_len, self.model.text_dim)
        self.inputs = Inputs(prompt_embeds=text, negative_prompt_embeds=text)

    def plan(self, frames: int, steps: int, **settings) -> Plan:
        height, width = self.run.size.whole
        settings = {"shift": 8.0, "guidance_scale": 6.0, "base_num_frames": FRAMES, "seed": 1} | settings
        return make_plan(frames, steps, height=height, width=width, **settings)

    def parts(self, plan: Plan, hooks: Hooks | None = None):
        pipeline = DiffusionForcingPipeline.from_parts(self.model, self.vae, hooks=hooks or self.hooks)
        return pipeline.execute(plan, self.inputs)

    def write(self, plan: Plan, name: str) -> None:
        """Denoises, decodes and writes, each beside the others, as a session does."""
        worker, writer = Worker(), VideoWriter(self.run.folder, name, *self.run.size.whole, 24)
        for part in self.parts(plan):
            for frames in part.pieces:
                worker.put(partial(append, writer, on_host(frames)))
        worker.finish()
        writer.close()

    def step_seconds(self, plan: Plan) -> list[float]:
        """Of each row, between events of the device; nothing is decoded."""
        marks: list = []

        def mark() -> None:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            marks.append(event)

        class Marking(VideoProgress):
            @contextmanager
            def rows(self, window: int):
                mark()
                yield mark

        for _ in self.parts(plan, Hooks(progress=Marking, ranks=self.hooks.ranks)):
            pass
        torch.cuda.synchronize(self.run.device)
        return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


def append(writer: VideoWriter, fetch) -> None:
    writer.write(fetch())


def few_steps(run: Run, maker: Maker) -> Iterator[Row]:
    first = seconds(lambda: maker.write(maker.plan(FRAMES, 1, **DISTILLED), "warm"), run.device)[0]
    yield row(f"{FRAMES} frames in 1 step, the first video", first, "s")
    with peak(run.device) as gib:
        took = seconds(lambda: maker.write(maker.plan(FRAMES, 4, **DISTILLED), "four"), run.device)[0]
    name = f"{FRAMES} frames in 4 steps without guidance, decoded and written"
    yield row(name, took, "s", **{"peak, GiB": gib()} if run.cuda else {})


def guided(run: Run, maker: Maker) -> Iterator[Row]:
    """The second of two steps."""
    plan = maker.plan(FRAMES, 2)
    took = maker.step_seconds(plan)[-1]
    flop = 1e15 * cost_of(plan, run.size.model | {"model_type": "t2v"}, weight_bytes=2).pflop / 2
    yield row(f"a guided step of all {run.size.model['num_layers']} layers", took, "s", **run.limit(flop, 1e3 * took))


def rows(run: Run) -> Iterator[Row]:
    config = run.size.model | {"model_type": "t2v"}
    needed = cost_of(
        make_plan(FRAMES, 1, 8.0, height=run.size.whole[0], width=run.size.whole[1]), config, weight_bytes=2
    )
    check_memory(run.device, needed.weights_gib + needed.activations_gib + 4 * VAE / GIB)
    took, maker = seconds(lambda: Maker(run), run.device)
    yield row("random weights made on the device", took, "s")
    yield from attempt("4 steps", partial(few_steps, run, maker), run.device)
    if run.cuda:
        yield from attempt("guided step", partial(guided, run, maker), run.device)
    del maker
    clear(run.device)
    if not run.cuda and peer.installed():
        yield from attempt("beside diffusers", partial(beside_diffusers, run), run.device)


def beside_diffusers(run: Run) -> Iterator[Row]:
    """The embedded model on one thread, see `cpu_pipelines`."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in cpu_pipelines.CASES:
            for found in cpu_pipelines.rows([name], run.runs):
                more = {"diffusers, s": found["theirs"], "diffusers / it": found["ratio"], "apart": found["apart"]}
                yield row(f"tiny, {found['name']}, one thread", found["ours"], "s of CPU time", **more)
    finally:
        torch.set_num_threads(threads)
