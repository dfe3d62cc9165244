"""How long the embedded model's transformer learns from a batch, forwards and backwards, by how its products are taken.

In turn, in one process, from the same weights: float32; bfloat16 in linear layers alone, as training has it on CPUs
that are able; and torch's autocast. On one core, as each of a run's two processes has one.

    python benchmarks/training_update.py

A row gives the medians, the ratio of the first two (above 1 what training does is faster), and how far the gradients of
these are apart, relative to their norm.
"""

import argparse
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from training import dit, products

CPU = torch.device("cpu")


def gradients(model, x: torch.Tensor, t: torch.Tensor, words: torch.Tensor, around) -> torch.Tensor:
    model.zero_grad()
    with around:
        out = model(x, t, model.prepare_context(words))
    (out.float() - x).pow(2).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=24, help="clips (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=7, help="of each (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    able = "has" if products.worth_it(CPU) else "has no"
    print(f"This CPU {able} instructions for bfloat16.")
    print(f"| layers | latents | float32, ms | {products.Bfloat16Linear.__name__}, ms | ratio | autocast, ms | apart |")
    print("|" + "---|" * 7)
    for layers, latents in ((5, 5), (5, 9), (10, 5), (10, 9)):
        plain, swift = (dit.new_transformer(**dit.SHAPE, num_layers=layers) for _ in range(2))
        torch.nn.init.normal_(plain.head.head.weight, std=0.1)
        swift.load_state_dict(plain.state_dict())
        products.use_bfloat16(swift)
        x = torch.randn(args.batch, 16, latents, 8, 8)
        t, words = 1000 * torch.rand(args.batch, latents), torch.randn(args.batch, 64, dit.SHAPE["text_dim"])
        ways = {
            "float32": (plain, nullcontext),
            "products": (swift, nullcontext),
            "autocast": (plain, lambda: torch.autocast("cpu", torch.bfloat16)),
        }
        seconds, learned = {way: [] for way in ways}, {}
        for run in range(args.runs + 1):
            for way, (model, around) in ways.items():
                began = time.perf_counter()
                learned[way] = gradients(model, x, t, words, around())
                if run:
                    seconds[way].append(time.perf_counter() - began)
        ours, theirs, third = (1e3 * statistics.median(seconds[way]) for way in ("products", "float32", "autocast"))
        apart = (learned["products"] - learned["float32"]).norm() / learned["float32"].norm()
        print(f"| {layers} | {latents} | {theirs:.0f} | {ours:.0f} | {theirs / ours:.2f} | {third:.0f} | {apart:.0e} |")


if __name__ == "__main__":
    main()
