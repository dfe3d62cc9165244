"""How long the embedded model's transformer learns from a batch, forwards and backwards, on one CPU core.

In float32; with bfloat16 products in linear layers alone, as training has it on CPUs that have instructions for them;
and under torch's autocast. `gradients` compares those of the first two, relative to their norm.
"""

from collections.abc import Iterator
from contextlib import nullcontext

import torch

from benchmarks.measure import Run, alternate, relative_error
from benchmarks.table import Row, row
from training import dit, products

CASES = ((5, 5), (5, 9), (10, 5), (10, 9))  # layers, latent frames
CLIPS = 24
CPU = torch.device("cpu")


def gradients(model, x: torch.Tensor, t: torch.Tensor, words: torch.Tensor, around) -> torch.Tensor:
    model.zero_grad()
    with around:
        out = model(x, t, model.prepare_context(words))
    (out.float() - x).pow(2).mean().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def case(layers: int, latents: int, clips: int, runs: int) -> Row:
    plain, swift = (dit.new_transformer(**dit.SHAPE, num_layers=layers) for _ in range(2))
    torch.nn.init.normal_(plain.head.head.weight, std=0.1)
    swift.load_state_dict(plain.state_dict())
    products.use_bfloat16(swift)
    x = torch.randn(clips, 16, latents, 8, 8)
    given = x, 1000 * torch.rand(clips, latents), torch.randn(clips, 64, dit.SHAPE["text_dim"])
    works = {
        "float32": lambda: gradients(plain, *given, nullcontext()),
        "bfloat16": lambda: gradients(swift, *given, nullcontext()),
        "autocast": lambda: gradients(plain, *given, torch.autocast("cpu", torch.bfloat16)),
    }
    learned = {name: work() for name, work in works.items()}
    times = alternate(works, CPU, runs)
    more = {f"{name}, ms": times[name] for name in ("float32", "autocast")}
    more["float32 / it"] = times["float32"] / times["bfloat16"]
    more["gradients"] = relative_error(learned["bfloat16"], learned["float32"])
    return row(f"{layers} layers, {latents} latent frames, {clips} clips", times["bfloat16"], "ms", **more)


def rows(run: Run, clips: int = CLIPS) -> Iterator[Row]:
    yield row("this CPU has instructions for bfloat16", products.worth_it(CPU))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.enable_grad():
            for layers, latents in CASES:
                yield case(layers, latents, clips, run.runs)
    finally:
        torch.set_num_threads(threads)
