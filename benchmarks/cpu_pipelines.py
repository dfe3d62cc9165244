"""Whole videos of the embedded model on one CPU thread beside diffusers' pipelines, in turn, in one process.

    python benchmarks/cpu_pipelines.py               # about three minutes on an idle core
    python benchmarks/cpu_pipelines.py --rows text   # one row

33 frames of 64 x 64 (in the last two rows 65), 20 steps, guidance, decoded. Both sides get the same weights, prompt
embeddings, noise and noise levels; latents are compared first (`apart`: largest difference over the largest value).
Seconds are CPU time of the process, medians over the runs; `ratio` is the median of the runs' ratios (diffusers / ours:
above 1 ours is faster), `wall` the same of the clock.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

STEPS, SHIFT, GUIDANCE, SIZE = 20, 3.0, 2.0, 64
PROMPT = "a red circle moves slowly to the right on a black background"


class Case(NamedTuple):
    """A row: what both pipelines are asked for.

    Attributes:
        name: of the row.
        forcing: diffusion forcing, or text to video.
        ours, theirs: arguments that only one side takes.
    """

    name: str
    forcing: bool
    ours: dict
    theirs: dict


WINDOWS = {"num_frames": 65, "base_num_frames": 33, "overlap_history": 17}
CASES = {
    "text": Case("text to video", False, {}, {}),
    "sync": Case("diffusion forcing, synchronous", True, {"ar_step": 0}, {"ar_step": 0}),
    "async": Case("asynchronous, ar_step 4", True, {"ar_step": 4}, {"ar_step": 4}),
    "causal": Case(
        "causal, ar_step 4, block 3",
        True,
        {"ar_step": 4, "causal_block_size": 3, "causal_attention": True},
        {"ar_step": 4, "causal_block_size": 3},
    ),
    "windows": Case(
        "65 frames, history in latents",
        True,
        {"ar_step": 0, "history": "latent", **WINDOWS},
        {"ar_step": 0, **WINDOWS},
    ),
    "pixels": Case(
        "65 frames, history in pixels (diffusers: latents)", True, {"ar_step": 0, **WINDOWS}, {"ar_step": 0, **WINDOWS}
    ),
}


def sides(case: Case, embeds: dict) -> tuple[Callable[[str], torch.Tensor], Callable[[str], torch.Tensor]]:
    """(ours, diffusers'): output type -> latents ``[1, 16, F, 8, 8]`` or frames ``[1, T, 3, 64, 64]``."""
    import diffusers
    from peers import PeerScheduler

    from skyreels_v2_infer import DiffusionForcingPipeline, Text2VideoPipeline, embedded

    folder = embedded.folder(image_to_video=False)
    kind = DiffusionForcingPipeline if case.forcing else Text2VideoPipeline
    theirs_kind = diffusers.SkyReelsV2DiffusionForcingPipeline if case.forcing else diffusers.SkyReelsV2Pipeline
    pipeline = kind(str(folder), device="cpu")
    peer = theirs_kind.from_pretrained(folder, dtype=torch.float32)
    peer.scheduler = PeerScheduler(SHIFT)
    peer.set_progress_bar_config(disable=True)
    shared = {"height": SIZE, "width": SIZE, "num_frames": 33, "num_inference_steps": STEPS, "guidance_scale": GUIDANCE}

    def ours(output_type: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        arguments = shared | embeds | case.ours
        return pipeline(**arguments, shift=SHIFT, generator=generator, output_type=output_type)

    def theirs(output_type: str) -> torch.Tensor:
        generator = torch.Generator().manual_seed(7)
        arguments = shared | embeds | case.theirs | ({"prompt": None} if case.forcing else {})
        return peer(**arguments, generator=generator, output_type=output_type, return_dict=False)[0]

    return ours, theirs


def measured(run: Callable[[str], torch.Tensor]) -> tuple[float, float]:
    """(CPU seconds, seconds by the clock) of one video."""
    cpu, wall = time.process_time(), time.perf_counter()
    run("pt")
    return time.process_time() - cpu, time.perf_counter() - wall


def embeddings() -> dict:
    """Of the prompt and of the empty one, ``[1, 64, 64]`` each."""
    from skyreels_v2_infer import Text2VideoPipeline, embedded

    pipeline = Text2VideoPipeline(str(embedded.folder(image_to_video=False)), device="cpu")
    with torch.no_grad():
        both = pipeline.text_encoder.encode([PROMPT, ""], pipeline.transformer.text_len)
    return {"prompt_embeds": both[:1], "negative_prompt_embeds": both[1:]}


def rows(names=tuple(CASES), runs: int = 7) -> list[dict]:
    """One dict per case: name, ours and theirs (CPU seconds), ratio, wall (a ratio too), apart (of the latents)."""
    from peers import apart

    embeds, table = embeddings(), []
    for name in names:
        ours, theirs = sides(CASES[name], embeds)
        difference = apart(ours("latent"), theirs("latent"))
        measured(ours), measured(theirs)
        pairs = [(measured(ours), measured(theirs)) for _ in range(runs)]
        row = {"name": CASES[name].name}
        row["ours"], row["theirs"] = (statistics.median(pair[side][0] for pair in pairs) for side in (0, 1))
        row["ratio"], row["wall"] = (statistics.median(b[clock] / a[clock] for a, b in pairs) for clock in (0, 1))
        row["apart"] = difference
        table.append(row)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--runs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| tiny, one thread | ours, s | diffusers, s | ratio | wall | apart |\n|---|---|---|---|---|---|")
    for name in args.rows:
        for row in rows([name], args.runs):
            figures = "{ours:.3f} | {theirs:.3f} | {ratio:.2f} | {wall:.2f} | {apart:.1e}".format(**row)
            print(f"| {row['name']} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
