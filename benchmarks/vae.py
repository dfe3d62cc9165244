"""The VAE encodes and decodes a window's frames, beside diffusers'."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import peer
from benchmarks.measure import Run, alternate, clear, peak, reason, relative_error
from benchmarks.sizes import random_vae
from benchmarks.table import Row, row
from skyreels_v2_infer.modules import WanVAE
from skyreels_v2_infer.modules.vae import compile_norms

FLOAT32, COMPILED, BFLOAT16, DIFFUSERS = "float32", "float32, compiled norms", "bfloat16, compiled norms", "diffusers"
COUNTED = (4, 5)  # latent frames of the videos whose operations are counted
WARM = 4  # latent frames with which a decoder is warmed up and its results compared


def models(run: Run) -> dict[str, WanVAE]:
    vae = random_vae(run.size.vae_dim, run.device)
    found = {FLOAT32: vae}
    if run.cuda:
        found |= {COMPILED: copy.deepcopy(vae), BFLOAT16: copy.deepcopy(vae).to(torch.bfloat16)}
        compile_norms(found[COMPILED])
        compile_norms(found[BFLOAT16])
    return found


def arithmetic(dim: int, frames: int, height: int, width: int) -> dict[str, float]:
    """Operations of encoding and of decoding a video: counted for two short ones; further latent frames are alike."""

    def counted(latent_frames: int) -> dict[str, int]:
        with torch.device("meta"):
            vae = WanVAE(dim=dim)
            latents = torch.empty(1, 16, latent_frames, height // 8, width // 8)
            video = torch.empty(1, 3, 4 * latent_frames - 3, height, width)
        found = {}
        for verb, work in (("encode", lambda: vae.encode_moments(video)), ("decode", lambda: streamed(vae, latents))):
            with FlopCounterMode(display=False) as counter:
                work()
            found[verb] = counter.get_total_flops()
        return found

    (few, more), further = (counted(n) for n in COUNTED), (frames + 3) // 4 - COUNTED[0]
    return {verb: few[verb] + further * (more[verb] - few[verb]) / (COUNTED[1] - COUNTED[0]) for verb in few}


def streamed(vae: WanVAE, latents: torch.Tensor) -> torch.Tensor:
    """Decodes without keeping frames, as a run does, which writes them; returns the last four."""
    for piece in vae.decode_stream(latents):
        last = piece
    return last[:, :, -4:]


def psnr(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Of frames in -1..1, in decibels."""
    return float(10 * torch.log10(4 / (ours - reference).double().square().mean()))


def sides(run: Run) -> tuple[dict[str, Callable], dict[str, Callable]]:
    """(decoders, encoders) by name: latents -> the last frames; video -> latents."""
    found = models(run)
    decoders = {name: lambda latents, vae=vae: streamed(vae, latents) for name, vae in found.items()}
    encoders = {name: vae.encode for name, vae in found.items()}
    if peer.installed():
        from peers import peer_vae

        vae = found[FLOAT32]
        theirs = peer_vae(vae, run.size.vae_dim)
        mean, std = vae.statistics()
        decoders[DIFFUSERS] = lambda latents: theirs.decode(latents * std + mean).sample[:, :, -4:]
        encoders[DIFFUSERS] = lambda video: (theirs.encode(video).latent_dist.mode() - mean) / std
    return decoders, encoders


def compared(run: Run, verb: str, works: dict[str, Callable], whole, short, flop: float) -> Iterator[Row]:
    """A row for each side; `short` is for warming up and for comparing results."""
    runs = min(run.runs, 2) if run.cuda else run.runs  # seconds each
    reference, errors, peaks = None, {}, {}
    for name in list(works):
        try:
            out = works[name](short)
            reference = out if reference is None else reference
            errors[name] = {"error": relative_error(out, reference)}
            if name == BFLOAT16 and verb == "decode":
                errors[name]["PSNR, dB"] = psnr(out, reference)
        except Exception as error:
            del works[name]
            yield row(f"{verb}, {name}", None, failed=reason(error))

    if run.cuda:
        works.pop(FLOAT32, None)  # it is there for comparison; a run of this length compiles its norms

    def watched(name: str) -> None:
        with peak(run.device) as gib:
            works[name](whole)
        peaks[name] = gib()

    times = alternate({name: lambda name=name: watched(name) for name in works}, run.device, runs)
    for name, took in times.items():
        ratio = times[DIFFUSERS] / took if DIFFUSERS in times and name != DIFFUSERS else None
        columns = {"diffusers_/_it": ratio, "peak,_GiB": peaks[name], **run.limit(flop, took), **errors[name]}
        yield row(f"{verb}, {name}", took / 1e3, "s", **columns)


def rows(run: Run) -> Iterator[Row]:
    frames, height, width = run.size.video
    flop = arithmetic(run.size.vae_dim, frames, height, width)
    for verb, operations in flop.items():
        yield row(f"arithmetic, {verb}, {frames} frames of {height}x{width}", operations / 1e15, "PFLOP")
    decoders, encoders = sides(run)
    latents = run.random(1, 16, (frames + 3) // 4, height // 8, width // 8, dtype=torch.float32)
    yield from compared(run, "decode", decoders, latents, latents[:, :, :WARM], flop["decode"])
    clear(run.device)
    video = run.random(1, 3, frames, height, width, dtype=torch.float32).clamp_(-1, 1)
    yield from compared(run, "encode", encoders, video, video[:, :, :13], flop["encode"])
