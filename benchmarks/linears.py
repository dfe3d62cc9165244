"""Linear layers of a block: in bfloat16 and float8, and from stored quantised weights, which are expanded each time."""

from collections.abc import Iterator
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.measure import GIB, Run, alternate, attempt, clear, peak, relative_error, timed
from benchmarks.table import Row, row
from skyreels_v2_infer.modules import linear
from skyreels_v2_infer.modules.quantized import BYTE_FORMATS, GGUF, Quantized, QuantizedLinear

STORED_TOKENS = 32_760  # 81 frames of 480 x 832
CHUNKS = (2**22, 2**20, 2**18)
CHUNKED = ("Q4_K", "IQ4_XS", "float8_e4m3fn")


def dense(run: Run, inner: int, outer: int) -> Iterator[Row]:
    """A product of all tokens with one layer."""
    tokens = run.size.tokens
    x, weight = run.random(tokens, inner), run.random(outer, inner, seed=1) / inner**0.5
    bias = run.random(outer, seed=2)
    layer = linear.quantized(linear_layer(weight, bias), linear.Fp8Linear)
    some = x[:256]
    exact = some.double() @ weight.double().T + bias.double()
    works = {str(run.dtype).removeprefix("torch."): partial(F.linear, x, weight, bias)}
    errors = [relative_error(F.linear(some, weight, bias), exact), relative_error(layer(some), exact)]
    rows_of = torch.compile(linear.quantize_rows) if run.compiled else linear.quantize_rows
    quantised = rows_of(x)
    works["float8"] = partial(layer, quantised)
    works["rows to float8"] = partial(rows_of, x)
    for work in works.values():
        work()
    flop = 2 * tokens * inner * outer
    for (name, took), error in zip(
        alternate(works, run.device, 2 * run.runs + 1).items(), [*errors, None], strict=True
    ):
        more = run.limit(flop, took) if error is not None else {}
        yield row(f"{inner} -> {outer}, {tokens} tokens, {name}", took, "ms", error=error, **more)


def linear_layer(weight: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
    with torch.device("meta"):
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = (torch.nn.Parameter(tensor, requires_grad=False) for tensor in (weight, bias))
    return layer


def random_matrix(form: str, rows: int, columns: int, device: torch.device | str = "cpu") -> Quantized:
    """Random bytes; in byte formats with a scale for each row."""
    if form in GGUF:
        numbers, size, _ = GGUF[form]
        stored = torch.randint(0, 100, (rows, columns // numbers * size), dtype=torch.uint8, device=device)
        return Quantized(form, stored)
    stored = torch.randint(0, 100, (rows, columns), dtype=torch.uint8, device=device)
    return Quantized(form, stored, torch.rand(rows, 1, device=device))


def stored(run: Run, rows: int, columns: int, tokens: int) -> Iterator[Row]:
    """Every format's forward beside a dense one; whether it expands to the same numbers as on the CPU."""
    x, dense = run.random(1, tokens, columns), run.random(rows, columns, seed=1)
    name = f"{rows} x {columns}, {tokens} tokens"
    yield row(f"{name}, dense", timed(partial(F.linear, x, dense), run.device, 2 * run.runs + 1), "ms")
    for form in (*BYTE_FORMATS, *GGUF):
        yield from attempt(form, partial(one_form, run, form, rows, columns, x), run.device)


def one_form(run: Run, form: str, rows: int, columns: int, x: torch.Tensor) -> Iterator[Row]:
    small = random_matrix(form, 512, 1024)
    here, on_cpu = small.to(run.device).dequantize(torch.float32).cpu(), small.dequantize(torch.float32)
    same = torch.equal(here.nan_to_num(), on_cpu.nan_to_num())
    layer = QuantizedLinear(random_matrix(form, rows, columns, run.device), None, run.dtype)
    times = {"forward": timed(partial(layer, x), run.device, run.runs)}
    times["expanding"] = timed(layer.dequantize, run.device, run.runs)
    yield row(form, times["forward"], "ms", expanding_ms=times["expanding"], same_numbers_as_on_the_CPU=same)


def chunks(run: Run, rows: int, columns: int) -> Iterator[Row]:
    """Time and memory of expanding by the number of weights that are expanded at a time."""
    for form in CHUNKED:
        matrix = random_matrix(form, rows, columns, run.device)
        for size in CHUNKS:
            work = partial(matrix.dequantize, run.dtype, chunk=size)
            took = timed(work, run.device, run.runs)
            held = torch.cuda.memory_allocated(run.device) if run.cuda else 0
            with peak(run.device) as gib:
                nbytes = work().nbytes
            of_layer = (gib() * GIB - held) / nbytes if run.cuda else None
            yield row(f"expanding {form}, 2^{size.bit_length() - 1} at a time", took, "ms", peak_of_the_layer=of_layer)


def rows(run: Run) -> Iterator[Row]:
    dim, ffn = run.size.model["dim"], run.size.model["ffn_dim"]
    for inner, outer in ((dim, dim), (dim, ffn), (ffn, dim)):
        yield from attempt(f"{inner} -> {outer}", partial(dense, run, inner, outer), run.device)
        clear(run.device)
    tokens = STORED_TOKENS if run.cuda else 256
    yield from attempt("stored", partial(stored, run, ffn, dim, tokens), run.device)
    yield from attempt("chunks", partial(chunks, run, ffn, dim), run.device)
