"""Times our components beside diffusers' with the same weights and inputs, in turn, in one process.

    python benchmarks/side_by_side.py                # on the CPU, about six minutes
    python benchmarks/side_by_side.py --device cuda --dtype bfloat16 --scale full

A row gives the medians, their ratio (diffusers / ours: above 1 we are faster) and how far apart the results are.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import UniPCMultistepScheduler

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from peers import apart, peer_transformer, peer_vae, randomize

from skyreels_v2_infer.modules import WanModel, WanVAE
from skyreels_v2_infer.scheduler import FlowUniPCMultistepScheduler, flow_sigmas, flow_timesteps
from skyreels_v2_infer.weights.key_tables import KEEP_FLOAT32

# dim, heads, layers, ffn; latent frames, height, width of the transformer; width, frames, height, width of the VAE
SCALES = {
    "small": ((256, 2, 8, 1024), (5, 34, 60), (96, 17, 128, 128)),
    "full": ((1536, 12, 30, 8960), (25, 68, 120), (96, 97, 544, 960)),
}


def timed(run: Callable, device: torch.device) -> tuple[float, torch.Tensor]:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    out = run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, out


def compare(name: str, ours: Callable, theirs: Callable, device: torch.device, runs: int) -> None:
    times: dict[Callable, list[float]] = {ours: [], theirs: []}
    for run in range(runs + 1):
        results = []
        for side in (ours, theirs):
            seconds, out = timed(side, device)
            results.append(out)
            if run:
                times[side].append(seconds)
    mine, peer = (1e3 * statistics.median(times[side]) for side in (ours, theirs))
    print(f"{name:34} {mine:10.1f} {peer:10.1f} {peer / mine:8.2f} {apart(*results):12.1e}", flush=True)


def lowered(module: torch.nn.Module, dtype: torch.dtype, kept: Callable[[str], object]) -> torch.nn.Module:
    """With parameters in `dtype` as loading leaves them: those whose names are `kept`, and buffers, stay float32."""
    for name, parameter in module.named_parameters():
        if not kept(name):
            parameter.data = parameter.data.to(dtype)
    return module


def transformer_rows(sizes, grid, device: torch.device, dtype: torch.dtype, runs: int) -> None:
    dim, heads, layers, ffn = sizes
    model = randomize(WanModel(dim=dim, num_heads=heads, num_layers=layers, ffn_dim=ffn, text_dim=64))
    peer = peer_transformer(model).to(device)
    theirs = set(peer._keep_in_fp32_modules)
    peer = lowered(peer, dtype, lambda name: theirs & set(name.split(".")))
    model = lowered(model.to(device), dtype, KEEP_FLOAT32.search)
    frames = grid[0]
    x = torch.randn(1, 16, *grid, device=device, dtype=dtype)
    text = torch.randn(1, 512, 64, device=device, dtype=dtype)
    shared, each = torch.tensor([500], device=device), torch.full((1, frames), 500, device=device)
    for name, t in (("shared timestep", shared), ("timestep per frame", each)):
        compare(
            f"transformer, {name}",
            lambda t=t: model(x, t, model.prepare_context(text)),
            lambda t=t: peer(x, t, text, enable_diffusion_forcing=t.ndim == 2, return_dict=False)[0],
            device,
            runs,
        )


def vae_rows(sizes, device: torch.device, runs: int) -> None:
    dim, frames, height, width = sizes
    vae = randomize(WanVAE(dim=dim))
    peer = peer_vae(vae, dim).to(device)
    vae = vae.to(device)
    video = torch.rand(1, 3, frames, height, width, device=device) * 2 - 1
    mean, std = vae.statistics()
    latents = vae.encode(video)
    compare(
        "VAE, encode",
        lambda: vae.encode(video),
        lambda: (peer.encode(video).latent_dist.mode() - mean) / std,
        device,
        runs,
    )
    compare("VAE, decode", lambda: vae.decode(latents), lambda: peer.decode(latents * std + mean).sample, device, runs)


def solver_row(grid, device: torch.device, runs: int) -> None:
    """A row of diffusion forcing: every frame one step behind the one before it."""
    frames = grid[0]
    steps = frames + runs + 1
    sigmas = flow_sigmas(steps, 8.0)
    start = torch.randn(1, 16, *grid, device=device)
    velocity = torch.randn_like(start)
    mine, x, rows, their_rows = FlowUniPCMultistepScheduler(), start.clone(), itertools.count(), itertools.count()
    mine.set_timesteps(steps, shift=8.0)

    def ours() -> torch.Tensor:
        at = next(rows) - np.arange(frames)  # below 0: not begun
        return mine.step_frames(velocity, at.clip(0), x, at >= 0)

    peers = [UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True) for _ in range(frames)]
    for peer in peers:
        peer.set_timesteps(steps, device=device)
        peer.sigmas, peer.timesteps = torch.from_numpy(sigmas), torch.from_numpy(flow_timesteps(sigmas))
        peer.set_begin_index(0)
    y = [start[:, :, f].clone() for f in range(frames)]

    def theirs() -> torch.Tensor:
        for f, peer in enumerate(peers[: next(their_rows) + 1]):
            y[f] = peer.step(velocity[:, :, f], 0, y[f], return_dict=False)[0]
        return torch.stack(y, dim=2)

    for _ in range(frames - 1):  # until all have begun
        ours(), theirs()
    compare(f"solver, a row of {frames} frames", ours, theirs, device, runs)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the transformer")
    parser.add_argument("--scale", choices=SCALES, default="small", help="full: the 1.3B at 540P, for a GPU")
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    device = torch.device(args.device)
    transformer, grid, vae = SCALES[args.scale]
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, transformer {args.dtype}")
    print(f"{'':34} {'ours ms':>10} {'theirs ms':>10} {'ratio':>8} {'apart':>12}")
    transformer_rows(transformer, grid, device, getattr(torch, args.dtype), args.runs)
    vae_rows(vae, device, args.runs)
    solver_row((25, 68, 120), device, max(args.runs, 10))


if __name__ == "__main__":
    main()
