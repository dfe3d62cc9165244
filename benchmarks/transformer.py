"""A forward of the transformer as wide as a published one, beside diffusers', and the guided step that it makes."""

from collections.abc import Callable, Iterator

import torch

from benchmarks import peer
from benchmarks.measure import MATMUL, Run, alternate, clear, reason, relative_error, timed, wait
from benchmarks.sizes import random_transformer, twin, window_inputs
from benchmarks.table import Row, row
from skyreels_v2_infer.modules import WanModel
from skyreels_v2_infer.modules.attention import WholeSequence, choose_attention
from skyreels_v2_infer.modules.compiled import compile_blocks
from skyreels_v2_infer.modules.linear import quantize_blocks

UNCOMPILED, COMPILED, FP8 = "ours, uncompiled", "ours, compiled", "ours, compiled, float8 linears"
DEFAULT, BEST = "diffusers, default", "diffusers, best"
Forward = Callable[[], torch.Tensor]


class Watched(WholeSequence):
    """Records the time of each self-attention on the device."""

    def __init__(self, choice):
        super().__init__(choice)
        self.spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def attend(self, q, k, v):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        out = super().attend(q, k, v)
        end.record()
        self.spans.append((start, end))
        return out

    @property
    def milliseconds(self) -> float:
        return sum(start.elapsed_time(end) for start, end in self.spans)


def must_compile(failure: str) -> None:
    """In place of the message with which blocks go on uncompiled."""
    raise RuntimeError(failure)


def ours(run: Run, model: WanModel, given: dict) -> dict[str, Forward]:
    """Our variants, which share their weights as far as these are the same."""
    choice = choose_attention(run.device, run.dtype, run.size.head_size)
    given = given | {"context": model.prepare_context(given["context"])}  # once per video, as a pipeline does
    chosen = given | {"sequence": WholeSequence(choice)}
    if run.cuda:
        works = {
            f"{UNCOMPILED}, torch's kernels": lambda: model(**given),
            f"{UNCOMPILED}, {choice}": lambda: model(**chosen),
        }
    else:
        works = {UNCOMPILED: lambda: model(**given)}
    if run.compiled:
        fused, rounded = twin(model), twin(model)
        compile_blocks(fused, must_compile)
        works[COMPILED] = lambda: fused(**chosen)
        quantize_blocks(rounded, "fp8", run.device)
        compile_blocks(rounded, must_compile)
        works[FP8] = lambda: rounded(**chosen)
    return works


def theirs(run: Run, model: WanModel, given: dict) -> dict[str, Forward]:
    default = peer.transformer(model, run.dtype)
    given = {
        "hidden_states": given["x"].to(run.dtype),
        "timestep": given["t"],
        "encoder_hidden_states": given["context"],
        "enable_diffusion_forcing": given["t"].ndim == 2,
        "return_dict": False,
    }
    works = {DEFAULT: lambda: default(**given)[0]}
    if run.compiled:
        best = peer.at_its_best(default, run.cuda)
        works[BEST] = lambda: best(**given)[0]
    return works


def forwards(run: Run, model: WanModel, given: dict, columns: dict) -> Iterator[Row]:
    """A row for each variant, all of them timed in turn.

    diffusers' default is timed once more before anything of ours has run: which kernel torch takes by default depends
    on what the process has asked for before.
    """
    works, alone = {}, None
    if peer.installed():
        try:
            works = theirs(run, model, given)
            yield row("diffusers has the same weights", True)
            alone = timed(works[DEFAULT], run.device, run.runs)
            more = {"ms": alone, **run.limit(run.size.flop, alone)} | columns
            yield row(f"{DEFAULT}, before ours has run", 2 * alone * run.size.scale / 1e3, "s", **more)
        except Exception as error:
            yield row("diffusers", None, failed=reason(error))
    else:
        yield row("diffusers", None, failed="not installed: pip install diffusers")
    works = ours(run, model, given) | works
    reference, errors = None, {}
    for name in list(works):
        try:
            out = works[name]()
            reference = out if reference is None else reference
            errors[name] = relative_error(out, reference)
        except Exception as error:
            del works[name]
            yield row(name, None, failed=reason(error))
    times = alternate(works, run.device, run.runs)
    peers = {"default": alone, "best": times.get(BEST)}
    for name, took in times.items():
        more = {"ms": took, **run.limit(run.size.flop, took)} | columns
        more["error to the first"] = errors[name]
        if name.startswith("ours"):
            more |= {f"diffusers {kind} / it": its / took for kind, its in peers.items() if its is not None}
        yield row(name, 2 * took * run.size.scale / 1e3, "s", **more)


def inside(run: Run, model: WanModel, given: dict) -> Iterator[Row]:
    """Attention's own time inside a forward, on a GPU."""
    watched = Watched(choose_attention(run.device, run.dtype, run.size.head_size))
    fused = twin(model)
    compile_blocks(fused, must_compile)
    given = given | {"context": model.prepare_context(given["context"]), "sequence": watched}
    found = []
    for _ in range(2):
        watched.spans.clear()
        fused(**given)
        wait(run.device)
        found.append(watched.milliseconds)
    took = min(found)
    yield row("self-attention inside the model", took, "ms", **run.limit(run.size.attention_flop, took))


def rows(run: Run) -> Iterator[Row]:
    """The value is a guided step of all layers (two forwards), in seconds; `ms` one forward of those measured."""
    size = run.size
    petaflop = 2 * size.flop * size.scale / 1e15
    more = {"seconds_at_790_TFLOP/s": 1e3 * petaflop / MATMUL} if run.cuda else {}
    layers = f"{size.layers} of {size.model['num_layers']} layers"
    yield row(f"arithmetic of a guided step, {size.tokens} tokens, {layers} measured", petaflop, "PFLOP", **more)
    model = random_transformer(size.config, run.device, run.dtype)
    given = window_inputs(model, size.latents, run.device)
    yield from forwards(run, model, given, {})
    clear(run.device)
    if run.cuda:
        yield from inside(run, model, given)
    else:
        shared = given | {"t": given["t"][:, 0]}
        yield from forwards(run, model, shared, {"timesteps": "shared by all frames"})
