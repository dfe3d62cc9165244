"""``python -m training STAGE``: trains a part of the embedded model, from where it stopped."""

import argparse
import math
import os
from pathlib import Path

STAGES = ("vae",)


def worker(rank: int, args: argparse.Namespace) -> None:
    import torch
    import torch.distributed as dist

    from training import vae

    torch.set_num_threads(max(1, args.threads))
    if args.processes > 1:
        os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
        os.environ.setdefault("MASTER_PORT", "29517")
        dist.init_process_group("gloo", rank=rank, world_size=args.processes)
    try:
        done = vae.train(args.out / "vae", torch.device(args.device), args.minutes, args.batch)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        print("done" if done else "stopped; the same command goes on", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("training_out"), help="checkpoints, logs, what is exported")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--processes", type=int, default=2, help="on the CPU, one a core is fastest")
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--batch", type=int, default=3, help="clips a process takes at a time")
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; resume any time")
    args = parser.parse_args()
    if args.processes == 1:
        worker(0, args)
    else:
        import torch.multiprocessing as mp

        mp.spawn(worker, args=(args,), nprocs=args.processes)
    return 0
