"""Exactness and speed of every fast path on a GPU of compute capability 9 (H100, H200), in a few minutes.

    python benchmarks/hopper.py --out results                     # one table; results/results.json has all of it
    python benchmarks/hopper.py --out results --sections vae      # some of it
    python benchmarks/hopper.py --out /tmp/x --device cpu --tiny  # only whether the script runs

Sizes are the 14B's for 97 frames at 544x960 (51,000 tokens) with random weights; a guided step is 40 layers, two
passes, scaled from `LAYERS`. Errors are norms of the difference over norms of the reference. Needs no package beside
torch; flash-attn-4 is measured where it is installed. A section that fails is reported and the next one runs.
"""

import argparse
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer.modules import WanModel, WanVAE, attention, compiled, linear, vae
from skyreels_v2_infer.modules.attention import AttentionChoice, WholeSequence, attend, attend_with_log_sum
from skyreels_v2_infer.modules.rope import rotary_table, rotate, rotate_real
from skyreels_v2_infer.modules.transformer import Block, RMSNorm
from skyreels_v2_infer.plan.cost import forward_flop
from skyreels_v2_infer.plan.models import SIZES
from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32

LAYERS = 4
FULL = {"model": SIZES["14B"], "frames": 25, "rows": 34, "columns": 60, "text": 512}
TINY = {"model": {"dim": 128, "ffn_dim": 256, "num_heads": 2, "num_layers": 40}, "frames": 3, "rows": 2, "columns": 4}
TINY |= {"text": 512}


def apart(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    ours, reference = ours.double(), reference.to(ours.device).double()
    return float((ours - reference).norm() / reference.norm())


def reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip()}"[:300].replace("\n", " ")


class Run:
    """What the sections share: the device, the sizes, the clock, and where results go."""

    def __init__(self, device: torch.device, sizes: dict, out: Path, budget: float):
        self.device, self.sizes, self.out, self.budget = device, sizes, out, budget
        self.began = time.monotonic()
        self.results: dict[str, object] = {}
        self.config = sizes["model"] | {"model_type": "t2v"}
        self.heads = self.config["num_heads"]
        self.head_size = self.config["dim"] // self.heads
        self.tokens = sizes["frames"] * sizes["rows"] * sizes["columns"]
        self.cuda = device.type == "cuda"
        self.draw = torch.Generator(device).manual_seed(0)

    @property
    def left(self) -> float:
        return self.budget - (time.monotonic() - self.began)

    def note(self, section: str, name: str, **values) -> None:
        """One row of the table, also kept in results.json."""
        self.results.setdefault(section, {})[name] = values
        cells = [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in values.items()
        ]
        print(f"{section:12} {name:44} {'  '.join(cells)}", flush=True)
        self.save()

    def save(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "results.json").write_text(json.dumps(self.results, indent=1))

    def random(self, *shape: int, dtype=torch.bfloat16) -> torch.Tensor:
        return torch.randn(shape, generator=self.draw, device=self.device, dtype=dtype)

    def wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def milliseconds(self, work: Callable, runs: int = 3, warm: int = 1) -> float:
        """Median time of `work()`, measured on the device."""
        for _ in range(warm):
            work()
        self.wait()
        times = []
        for _ in range(runs):
            if self.cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                work()
                end.record()
                end.synchronize()
                times.append(start.elapsed_time(end))
            else:
                began = time.perf_counter()
                work()
                times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)

    def kernels(self, section: str, name: str, work: Callable, count: int = 30) -> None:
        """Which kernels take the time of one `work()`."""
        if not self.cuda:
            return
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as found:
            work()
            self.wait()
        rows = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)[:count]
        table = [(row.key[:120], row.count, round(row.self_device_time_total / 1e3, 3)) for row in rows]
        self.results.setdefault(section, {})[f"kernels of {name}"] = table
        self.save()
        for key, calls, took in table[:12]:
            print(f"    {took:9.2f} ms {calls:5} x {key[:90]}", flush=True)


@contextmanager
def guarded(run: Run, section: str, name: str) -> Iterator[None]:
    """A row that fails is reported, and the next one runs."""
    try:
        yield
    except Exception as error:  # of compilers and drivers too
        traceback.print_exc(limit=-4)
        run.note(section, name, failed=reason(error))
        if run.cuda:
            torch.cuda.empty_cache()


def usable(run: Run, kernel: str, head_size: int | None = None) -> bool:
    return attention.refusal(kernel, run.device, torch.bfloat16, head_size or run.head_size) is None


# Sections


def machine(run: Run) -> None:
    name = torch.cuda.get_device_name(run.device) if run.cuda else "CPU"
    run.note("machine", name, torch=torch.__version__, fa4=usable(run, "fa4"), sage=usable(run, "sage"))
    began = time.perf_counter()
    choice = attention.choose_attention(run.device, torch.bfloat16, run.head_size, say=print)
    run.note("machine", "choose_attention", chosen=str(choice), seconds=time.perf_counter() - began)


def in_float64(q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def attention_exact(run: Run) -> None:
    cases = ((2000, 2000, 128), (300, 257, 128), (77, 1024, 128), (512, 512, 64))
    for kernel in ("fa4", "cudnn", "flash", "efficient", "sage"):
        if not usable(run, kernel):
            continue
        with guarded(run, "exact", f"attention {kernel}"):
            choice, found = AttentionChoice(kernel, kernel), []
            for queries, keys, size in cases:
                qkv = [run.random(2, tokens, 4, size) for tokens in (queries, keys, keys)]
                found.append(apart(attend(*qkv, choice), in_float64(*qkv)[0]))
            run.note("exact", f"attention {kernel}", error=max(found))
    with guarded(run, "exact", "log-sum-exp"):
        for kernel in ("fa4", "flash"):
            if usable(run, kernel) and run.cuda:
                qkv = [run.random(1, tokens, 4, 128) for tokens in (300, 512, 512)]
                out, log_sum = attend_with_log_sum(*qkv, AttentionChoice(kernel, kernel))
                expected, expected_sum = in_float64(*qkv)
                errors = {"out": apart(out, expected), "log_sum": apart(log_sum, expected_sum)}
                run.note("exact", f"log-sum-exp {kernel}", **errors)
    with guarded(run, "exact", "rotary"):
        x, table = run.random(1, 300, 4, 128), rotary_table(3, 10, 10, 128).to(run.device)
        fused = torch.compile(rotate_real)(x, table)
        equal = {"eager_equal": torch.equal(rotate(x, table), rotate_real(x, table))}
        run.note("exact", "rotary real", **equal, compiled=apart(fused, rotate(x.float(), table)))


def attention_times(run: Run) -> None:
    flop = 4 * run.tokens**2 * run.head_size
    for heads in (run.heads, 12):
        q, k, v = (run.random(1, run.tokens, heads, run.head_size) for _ in range(3))
        for kernel in ("fa4", "cudnn") if heads == run.heads else ("fa4",):
            if usable(run, kernel):
                with guarded(run, "attention", f"{heads} heads, {kernel}"):
                    took = run.milliseconds(partial(attend, q, k, v, AttentionChoice(kernel, kernel)), 5)
                    run.note("attention", f"{heads} heads, {kernel}", ms=took, tflops=flop * heads / took / 1e9)
    q, k, v = (run.random(1, run.tokens, run.heads, run.head_size) for _ in range(3))
    if usable(run, "fa4") and run.cuda:
        from flash_attn.cute.interface import _flash_attn_fwd

        expected = attend(q, k, v, AttentionChoice("fa4", "fa4"))
        for tile in ((128, 128), (128, 144), (128, 160), (128, 176), (128, 112)):
            with guarded(run, "attention", f"fa4 tile {tile}"):
                work = partial(_flash_attn_fwd, q, k, v, tile_mn=tile)
                took, error = run.milliseconds(work, 5), apart(work()[0], expected)
                run.note("attention", f"fa4 tile {tile}", ms=took, tflops=flop * run.heads / took / 1e9, error=error)
    for keys in (257, 512, 1024, 2040, 4080, 8160):
        k, v = (run.random(1, keys, run.heads, run.head_size) for _ in range(2))
        found = {}
        for kernel in ("fa4", "cudnn", "flash"):
            if usable(run, kernel):
                with guarded(run, "attention", f"{keys} keys, {kernel}"):
                    found[kernel] = run.milliseconds(partial(attend, q, k, v, AttentionChoice(kernel, kernel)), 5)
        run.note("attention", f"{run.tokens} queries, {keys} keys, ms", **found)


def random_weights(run: Run, module: torch.nn.Module) -> torch.nn.Module:
    """Fills a module on the meta device with weights of the usual sizes; dtypes as loading leaves them."""
    module.to_empty(device=run.device)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=run.draw, device=run.device)
        if parameter.ndim == 1:
            scale = "gamma" in name or ("norm" in name and name.endswith("weight"))
            parameter.data = 0.1 * noise + (1.0 if scale else 0.0)
        elif "modulation" in name or "gamma" in name:
            parameter.data = 0.1 * noise + (1.0 if "gamma" in name else 0.0)
        else:
            parameter.data = noise / parameter[0].numel() ** 0.5
    return module.eval().requires_grad_(False)


def transformer(run: Run, layers: int, dtype: torch.dtype) -> WanModel:
    with torch.device("meta"):
        model = WanModel(**run.config | {"num_layers": layers})
    random_weights(run, model)
    for name, parameter in model.named_parameters():
        if not KEEP_FLOAT32.search(name):
            parameter.data = parameter.data.to(dtype)
    return model


def model_inputs(run: Run, model: WanModel, frames: int, rows: int, columns: int) -> dict:
    text = run.random(1, run.sizes["text"], model.text_dim)
    return {
        "x": run.random(1, 16, frames, 2 * rows, 2 * columns, dtype=torch.float32),
        "t": torch.linspace(200, 900, frames, device=run.device).round().unsqueeze(0),
        "context": model.prepare_context(text),
    }


def best(run: Run) -> AttentionChoice:
    if not run.cuda:
        return attention.DEFAULTS
    return AttentionChoice("fa4", "cudnn") if usable(run, "fa4") else AttentionChoice("cudnn", "cudnn")


def whole_block(model: WanModel) -> None:
    """Each block compiled in one piece, attention inside as a custom operator, for comparison with the two halves."""
    forward = torch.compile(Block.forward, fullgraph=True)
    for block in model.blocks:
        block.forward = partial(forward, block)


def transformer_exact(run: Run) -> None:
    """Two layers of the 14B's width and few tokens, against the same weights in float32."""
    model = transformer(run, 2, torch.bfloat16)
    given = model_inputs(run, model, 5, 8, 10) if run.cuda else model_inputs(run, model, 3, 2, 4)
    wide = transformer(run, 2, torch.float32)
    wide.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    blocks = [[tuple(x.float() for x in pair) for pair in pairs] for pairs in given["context"].blocks]
    expected = wide(**given | {"context": type(given["context"])(blocks)})
    del wide
    sequence = WholeSequence(best(run))
    run.note("exact", "transformer eager, default", error=apart(model(**given), expected))
    with guarded(run, "exact", "transformer eager, chosen"):
        run.note("exact", "transformer eager, chosen", error=apart(model(**given, sequence=sequence), expected))
    with guarded(run, "exact", "transformer compiled"):
        compiled.compile_blocks(model, say=print)
        run.note("exact", "transformer compiled", error=apart(model(**given, sequence=sequence), expected))
        compiled.restore_blocks(model)
    for kind in ("int8", "fp8"):
        with guarded(run, "exact", f"transformer {kind}"):
            other = transformer(run, 2, torch.bfloat16)
            other.load_state_dict(model.state_dict())
            linear.quantize_blocks(other, kind, run.device)
            eager = apart(other(**given, sequence=sequence), expected)
            compiled.compile_blocks(other, say=print)
            errors = {"eager": eager, "compiled": apart(other(**given, sequence=sequence), expected)}
            run.note("exact", f"transformer {kind}", **errors)


def timed_model(run: Run, name: str, model: WanModel, given: dict, runs: int, **kw) -> torch.Tensor:
    """Times a forward of `LAYERS` layers and states the guided step of 40 that it would make."""
    began = time.perf_counter()
    out = model(**given, **kw)
    run.wait()
    first = time.perf_counter() - began
    took = run.milliseconds(lambda: model(**given, **kw), runs)
    layers = len(model.blocks)
    flop = forward_flop(run.config | {"num_layers": layers}, run.sizes["frames"], run.tokens // run.sizes["frames"])
    step = took * 40 / layers * 2 / 1e3
    run.note("model", name, ms=took, tflops=flop / took / 1e9, guided_step_s=step, first_call_s=first)
    return out


def model_times(run: Run) -> None:
    model = transformer(run, LAYERS, torch.bfloat16)
    size = (run.sizes["frames"], run.sizes["rows"], run.sizes["columns"])
    given = model_inputs(run, model, *size)
    chosen = {"sequence": WholeSequence(best(run))}
    eager = timed_model(run, "eager, default kernels", model, given, 3)
    run.results["model"]["eager, default kernels"]["error"] = 0.0
    with guarded(run, "model", "eager, chosen kernels"):
        out = timed_model(run, "eager, chosen kernels", model, given, 3, **chosen)
        run.note("model", "  apart from eager default", error=apart(out, eager))
    with guarded(run, "model", "compiled, any length"):
        compiled.compile_blocks(model, say=print)
        out = timed_model(run, "compiled, any length", model, given, 5, **chosen)
        run.note("model", "  apart from eager default ", error=apart(out, eager))
        run.kernels("model", "compiled", lambda: model(**given, **chosen))
        shorter = model_inputs(run, model, max(2, size[0] - 8), *size[1:])
        began = time.perf_counter()
        model(**shorter, **chosen)
        run.wait()
        run.note("model", "  another length", first_call_s=time.perf_counter() - began)
    compiled.restore_blocks(model)
    with guarded(run, "model", "fp8, compiled"):
        linear.quantize_blocks(model, "fp8", run.device)
        compiled.compile_blocks(model, say=print)
        out = timed_model(run, "fp8, compiled", model, given, 5, **chosen)
        run.note("model", "  fp8 apart from eager default", error=apart(out, eager))
        run.kernels("model", "fp8, compiled", lambda: model(**given, **chosen))
    compiled.restore_blocks(model)


def whole_block_times(run: Run) -> None:
    model = transformer(run, LAYERS, torch.bfloat16)
    given = model_inputs(run, model, run.sizes["frames"], run.sizes["rows"], run.sizes["columns"])
    chosen = {"sequence": WholeSequence(best(run))}
    with guarded(run, "model", "whole block compiled, this length"):
        whole_block(model)
        timed_model(run, "whole block compiled, this length", model, given, 5, **chosen)


def linears(run: Run) -> None:
    dim, ffn = run.config["dim"], run.config["ffn_dim"]
    for inner, outer in ((dim, dim), (dim, ffn), (ffn, dim)):
        name = f"{inner} -> {outer}"
        with guarded(run, "linear", name):
            x, weight = run.random(run.tokens, inner), run.random(outer, inner) / inner**0.5
            bias = run.random(outer)
            with torch.device("meta"):
                layer = linear.Fp8Linear(inner, outer)
            layer.from_dense(weight)
            layer.bias = torch.nn.Parameter(bias, requires_grad=False)
            some = x[:256]
            expected = some.double() @ weight.double().T + bias.double()
            errors = {"bf16": apart(F.linear(some, weight, bias), expected), "fp8": apart(layer(some), expected)}
            run.note("linear", f"{name}, errors", **errors)
            flop = 2 * run.tokens * inner * outer
            works = {"bf16": partial(F.linear, x, weight, bias), "bf16, no bias": lambda x=x, w=weight: x @ w.T}
            if run.cuda:
                rows = linear.quantize_rows(x)
                for fast in (True, False):
                    works[f"fp8, {'fast' if fast else 'exact'} sums"] = partial(
                        torch._scaled_mm,
                        rows.values,
                        layer.weight.t(),
                        scale_a=rows.scale,
                        scale_b=layer.scale.t(),
                        bias=bias,
                        out_dtype=torch.bfloat16,
                        use_fast_accum=fast,
                    )
            for kind, work in works.items():
                with guarded(run, "linear", f"{name}, {kind}"):
                    took = run.milliseconds(work, 7, 2)
                    run.note("linear", f"{name}, {kind}", ms=took, tflops=flop / took / 1e9)
            with guarded(run, "linear", f"{name}, quantising rows"):
                took = run.milliseconds(partial(torch.compile(linear.quantize_rows), x), 7, 2)
                run.note("linear", f"{name}, quantising rows, compiled", ms=took)
    with guarded(run, "linear", "gelu"):
        x, weight, bias = run.random(run.tokens, dim), run.random(ffn, dim) / dim**0.5, run.random(ffn)

        def gelu_after(x):
            return F.gelu(F.linear(x, weight, bias), approximate="tanh")

        found = {
            "separate": run.milliseconds(partial(torch.compile(gelu_after), x), 5),
            "in_the_product": run.milliseconds(lambda: torch._addmm_activation(bias, x, weight.T, use_gelu=True), 5),
        }
        run.note("linear", "feed-forward's first layer and GELU, ms", **found)


def norm_rotary(run: Run) -> None:
    """Norm + rotary positions of queries, in the forms that a compiler could get, beside the bytes they move."""
    dim = run.config["dim"]
    norm = RMSNorm(dim, 1e-6).to(run.device).requires_grad_(False)
    table = rotary_table(run.sizes["frames"], run.sizes["rows"], run.sizes["columns"], run.head_size).to(run.device)
    x = run.random(1, run.tokens, dim)

    def stacked(x, table):
        a, b = x.float().unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = table.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack([a * cosine - b * sine, a * sine + b * cosine], dim=-1).flatten(-2).to(x.dtype)

    for name, turn in (("flipped", rotate_real), ("stacked", stacked)):
        with guarded(run, "fused", f"norm + rotary, {name}"):
            fused = torch.compile(lambda x, turn=turn: turn(norm(x).unflatten(-1, (run.heads, -1)), table))
            took = run.milliseconds(partial(fused, x), 7, 2)
            run.note("fused", f"norm + rotary, {name}", ms=took, gb_s=2 * x.nbytes / took / 1e6)
    with guarded(run, "fused", "copy"):
        took = run.milliseconds(lambda: x.clone(), 7, 2)
        run.note("fused", "copy of the same bytes", ms=took, gb_s=2 * x.nbytes / took / 1e6)


def decoded(run: Run, model: WanVAE, latents: torch.Tensor, name: str, runs: int = 1) -> torch.Tensor:
    """Times `decode_stream` without keeping frames; returns the last piece for comparison."""

    def work() -> torch.Tensor:
        for piece in model.decode_stream(latents):
            last = piece
        return last

    last = work()
    if run.cuda:
        torch.cuda.reset_peak_memory_stats()
    took = run.milliseconds(work, runs, 0)
    peak = torch.cuda.max_memory_allocated() / 2**30 if run.cuda else 0.0
    run.note("vae", name, ms=took, frames=4 * latents.shape[2] - 3, peak_gib=peak)
    return last


@contextmanager
def copies() -> Iterator[None]:
    """The decoder as it was: norms apart from convolutions."""
    before = vae.in_place_of_copies
    vae.in_place_of_copies = lambda x: False
    try:
        yield
    finally:
        vae.in_place_of_copies = before


def vae_times(run: Run) -> None:
    with torch.device("meta"):
        model = WanVAE() if run.cuda else WanVAE(dim=16)
    random_weights(run, model)
    rows, columns = 2 * run.sizes["rows"], 2 * run.sizes["columns"]
    short = run.random(1, 16, 7, rows, columns, dtype=torch.float32)
    whole = run.random(1, 16, run.sizes["frames"], rows, columns, dtype=torch.float32)
    with copies():
        old = decoded(run, model, short, "float32, copies")
    new = decoded(run, model, short, "float32, uncompiled")
    run.note("vae", "  apart", error=apart(new, old))
    with guarded(run, "vae", "float32, compiled norms"):
        vae.compile_norms(model)
        new = decoded(run, model, short, "float32, compiled norms")
        run.note("vae", "  apart ", error=apart(new, old))
    decoded(run, model, whole, "float32, whole window")
    run.kernels("vae", "float32", lambda: [piece.shape for piece in model.decode_stream(short)])
    with guarded(run, "vae", "encode"):
        video = run.random(1, 3, 4 * whole.shape[2] - 3, 8 * rows, 8 * columns, dtype=torch.float32).clamp_(-1, 1)
        moments = model.encode(video[:, :, :17])
        took = run.milliseconds(lambda: model.encode(video), 1, 0)
        run.note("vae", "float32, encoding the whole window", ms=took)
    with guarded(run, "vae", "bfloat16"):
        model.to(torch.bfloat16)
        half = decoded(run, model, short, "bfloat16, compiled norms")
        levels = (half - old).abs().mul(127.5)
        psnr = float(10 * torch.log10(4 / (half - old).double().square().mean()))
        errors = {"psnr_db": psnr, "mean_of_255": float(levels.mean()), "most_of_255": float(levels.max())}
        run.note("vae", "  bfloat16 apart", error=apart(half, old), **errors)
        decoded(run, model, whole, "bfloat16, whole window")
        run.kernels("vae", "bfloat16", lambda: [piece.shape for piece in model.decode_stream(short)])
        errors = {"error": apart(model.encode(video[:, :, :17]), moments)}
        run.note(
            "vae",
            "bfloat16, encoding the whole window",
            ms=run.milliseconds(lambda: model.encode(video), 1, 0),
            **errors,
        )


# name -> (section, seconds it may need)
SECTIONS = {
    "machine": (machine, 10),
    "attention_exact": (attention_exact, 15),
    "model": (model_times, 50),
    "attention": (attention_times, 25),
    "vae": (vae_times, 45),
    "exact": (transformer_exact, 45),
    "linear": (linears, 15),
    "whole_block": (whole_block_times, 25),
    "fused": (norm_rotary, 10),
}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for results.json")
    parser.add_argument(
        "--budget", type=float, default=240, metavar="SECONDS", help="sections that would not fit are left out"
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="small sizes: whether it runs")
    args = parser.parse_args()
    run = Run(torch.device(args.device), TINY if args.tiny else FULL, args.out, args.budget)
    for name in args.sections:
        section, needs = SECTIONS[name]
        if run.left < needs:
            run.note(name, "left out", seconds_left=run.left, needs=needs)
            continue
        began = time.monotonic()
        torch._dynamo.reset()  # codes of other sections count against the limit of each function
        with guarded(run, name, "section"):
            section(run)
        if run.cuda:
            torch.cuda.empty_cache()
        run.note("seconds", name, took=time.monotonic() - began, left=run.left)


if __name__ == "__main__":
    main()
