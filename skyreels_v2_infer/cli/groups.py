"""--gpus_per_job and --ray: the processes that make the videos of a batch, and how many share one."""

from __future__ import annotations

import argparse
import re
from importlib.util import find_spec

from skyreels_v2_infer.cli.checks import check_own_devices
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch

LOCAL, RUNNING = "local", "auto"  # --ray: a cluster of this machine that ends with the command; one that runs here


def cluster_address(text: str) -> str:
    """The address of a Ray cluster. Raises ArgumentTypeError."""
    host, _, port = text.rpartition(":")
    if text in (LOCAL, RUNNING) or (re.fullmatch(r"[^\s/]+", host) and port.isdecimal() and 0 < int(port) < 2**16):
        return text
    legal = "must be HOST:PORT, the address that ray start prints (as 10.0.0.1:6379), auto, or local"
    if text.startswith("ray://"):
        legal += "; start the script on a machine of the cluster"
    raise argparse.ArgumentTypeError(f"{text}: {legal}")


def processes_of_a_job(args: argparse.Namespace, launch: Launch) -> int:
    """The number of processes that share a video."""
    if args.ray is not None:
        check_ray(args, launch)
        return args.gpus_per_job or 1
    group = args.gpus_per_job or (launch.size if args.use_usp else 1)
    if not launch.by_torchrun and (group > 1 or args.use_usp):
        if args.use_usp:
            raise InputError("use_usp", None, "needs torchrun: torchrun --nproc_per_node=GPUS SCRIPT ...")
        raise InputError("gpus_per_job", None, "needs torchrun (torchrun --nproc_per_node=GPUS SCRIPT ...) or --ray")
    if launch.size % group:
        raise InputError("gpus_per_job", group, f"must divide the number of processes, {launch.size}")
    if launch.size > 1:
        check_own_devices(args)
    return group


def check_ray(args: argparse.Namespace, launch: Launch) -> None:
    """Raises an `InputError` if the videos cannot be made by workers of a Ray cluster."""
    if launch.by_torchrun:
        raise InputError("ray", args.ray, "not under torchrun, which starts processes itself; start with python")
    if args.use_usp:
        raise InputError("use_usp", None, "not with --ray, where --gpus_per_job N makes groups of N")
    check_own_devices(args)
    if find_spec("ray") is None:
        raise InputError("ray", None, "needs Ray, the extra ray of this package: pip install ray")
