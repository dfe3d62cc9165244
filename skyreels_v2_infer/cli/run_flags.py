"""Flags about the run, in groups, with their help texts: output, machine, caches, several GPUs, many videos."""

from __future__ import annotations

import argparse
from pathlib import Path

from skyreels_v2_infer.cli.defaults import TEACACHE_THRESHOLD
from skyreels_v2_infer.cli.groups import LOCAL, cluster_address
from skyreels_v2_infer.cli.help import DIFFUSION_FORCING
from skyreels_v2_infer.cli.parser import Parser
from skyreels_v2_infer.cli.reading import (
    cache,
    device_name,
    gpu_rate,
    name_pattern,
    number,
    numbers,
    one_of,
    ratios,
    some_path,
    some_text,
    whole,
)
from skyreels_v2_infer.cli.sweep import shard, swept
from skyreels_v2_infer.console import called
from skyreels_v2_infer.media.ffmpeg import BEST, QUALITY, WORST
from skyreels_v2_infer.plan.gpu_rates import MEASURED, PEAKS
from skyreels_v2_infer.plan.kernels import KERNELS


def add_output(parser: Parser) -> None:
    group = parser.add_argument_group("output, resuming and replaying")
    group.add_argument(
        "--outdir",
        metavar="DIR",
        type=some_path,
        default=Path("video_out"),
        help="folder for the video, created if missing; existing files are never overwritten (default: %(default)s)",
    )
    group.add_argument(
        "--name",
        metavar="PATTERN",
        type=name_pattern,
        help='file name of the video, with fields in braces: settings by the name of their flag, as in "{prompt:.20}_'
        '{guidance_scale}_{seed}"; .N limits a text, 0N adds leading zeros (default: prompt and seed)',
    )
    group.add_argument(
        "--quality",
        metavar="X",
        type=number(WORST, most=BEST),
        default=QUALITY,
        help="of the mp4, from 0 to 10: x264's crf is (10 - X) x 5.1, rounded down: 8 is crf 10, 6 crf 20, 10 crf 1 "
        "(default: %(default)g)",
    )
    group.add_argument(
        "--frames_dir",
        metavar="DIR",
        type=some_path,
        help="also write every frame as a PNG file, 000000.png and so on, into this new or empty folder, as windows "
        "are finished; with --jobs or --sweep each video into a folder of its name there",
    )
    group.add_argument(
        "--keep_parts",
        action="store_true",
        help="keep the files of the windows beside the finished video, and reuse those of an earlier kept run that are "
        f"the same: after a change to the --story of {called(DIFFUSION_FORCING)} only later windows are made",
    )
    group.add_argument(
        "--no_preview",
        action="store_true",
        help="do not write the preview, an image with frames spread over the video, beside it",
    )
    group.add_argument(
        "--preview_every",
        metavar="N",
        type=whole(1),
        help="every N rows of a window write a small picture of what the latents are becoming, in approximate colours, "
        "beside the video: NAME.latents.png",
    )
    group.add_argument(
        "--no_report",
        action="store_true",
        help="do not write report.html, a page that plays the videos in --outdir; it is written after a video of "
        "several windows and as videos of a batch finish, and updated after any video where it exists",
    )
    group.add_argument(
        "--replay",
        metavar="FILE",
        type=some_path,
        help="make a video again from the settings recorded in the mp4 or in the .json beside it; flags given as well "
        "override them. Only settings that change the frames are recorded",
    )
    group.add_argument(
        "--trust_replay",
        action="store_true",
        help="--replay, --config: also use the input files, addresses and unpublished models that are named there",
    )
    group.add_argument(
        "--config",
        metavar="FILE",
        type=some_path,
        help="flags from a YAML or JSON file, by their names without dashes; this command line, and rows of --jobs, "
        "override them; a manifest is a valid one (docs/usage.md)",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="resume the interrupted run of the same settings in --outdir; start a new one if there is none",
    )
    group.add_argument(
        "--dry_run",
        metavar="json",
        nargs="?",
        const="table",
        type=one_of("table", "json"),
        help="only print the plan: windows, steps, arithmetic, memory, time, download, legal numbers of GPUs, file "
        "name; needs no weights (--dry_run json: as JSON)",
    )
    group.add_argument(
        "--rate",
        metavar="TFLOPS",
        type=gpu_rate,
        help=f"--dry_run: speed of the GPU that the time is for, in TFLOP/s, or one of {', '.join(PEAKS)} (default: of "
        f"this machine's GPU, else {MEASURED:g}, measured on an H200)",
    )


def add_machine(parser: Parser) -> None:
    group = parser.add_argument_group("machine and precision")
    group.add_argument(
        "--device", type=device_name, help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, else cpu)"
    )
    group.add_argument(
        "--dtype",
        metavar="{float32,bfloat16,float16}",
        type=one_of("float32", "bfloat16", "float16"),
        help="number format of the weights (default: float32 on cpu, bfloat16 on a GPU, float16 before Ampere)",
    )
    group.add_argument(
        "--vae_dtype",
        metavar="{float32,bfloat16}",
        type=one_of("float32", "bfloat16"),
        default="float32",
        help="number format of the VAE; bfloat16 takes about half the time, at a PSNR of 48 dB (default: %(default)s)",
    )
    group.add_argument(
        "--attention",
        metavar=f"{{auto,{','.join(KERNELS)}}}",
        type=one_of("auto", *KERNELS),
        default="auto",
        help="attention kernel; auto: the fastest exact one for this GPU and length (default: %(default)s)",
    )
    group.add_argument(
        "--compile",
        metavar="{auto,on,off}",
        type=one_of("auto", "on", "off"),
        default="auto",
        help="compile the transformer's blocks; auto: on a GPU, where the run is long enough (default: %(default)s)",
    )
    group.add_argument(
        "--offload",
        action="store_true",
        help="keep weights in host memory, and on the GPU only the module that computes, of the transformer one block "
        "and the next one in transfer; the same video with less GPU memory; a step takes as long on an H200, longer "
        "where transfers are slow (no effect on a cpu)",
    )
    group.add_argument(
        "--memory",
        metavar="GIB",
        type=number(above=0, below=10_000),
        help="GPU memory that the run may take; if weights and activations do not fit, the fastest way that does is "
        "chosen and printed: encoders by layers, part by part, --offload, --vae_tiling (default: what is free)",
    )
    group.add_argument(
        "--vae_tiling",
        metavar="{auto,on,off}",
        type=one_of("auto", "on", "off"),
        default="auto",
        help="compute the VAE in overlapping tiles of the frame: a quarter of the memory, the same frames up to "
        "rounding; auto: where they do not fit otherwise (default: %(default)s)",
    )


def add_speed(parser: Parser) -> None:
    group = parser.add_argument_group(
        "faster, approximate",
        "Steps that are expected to change little reuse what the transformer computed in an earlier step (error and "
        "speed-up: docs/knobs.md).",
    )
    group.add_argument(
        "--cache",
        metavar="NAME[:KEY=VALUE,...]",
        type=cache,
        help="easycache (threshold=0.05, retention=0.2), for every model; magcache (threshold=0.12, skips=4, "
        "retention=0.2), from a calibration of the model; or teacache (threshold=0.2, ret_steps=0); default: none",
    )
    group.add_argument(
        "--magcache_ratios",
        metavar="X,X,...",
        type=ratios,
        help="--cache magcache: ratio of the residual's magnitude to that of the step before, for each step of the "
        "conditional pass, then of the unconditional one (default: the model's)",
    )
    group.add_argument("--teacache", action="store_true", help="as --cache teacache, with the following flags")
    group.add_argument(
        "--teacache_thresh",
        metavar="X",
        type=number(0),
        default=TEACACHE_THRESHOLD,
        help="--teacache: accumulated predicted relative change at which the blocks run again: 0 skips nothing, 0.2 "
        "and 0.3 are usual (default: %(default)s)",
    )
    group.add_argument(
        "--use_ret_steps",
        action="store_true",
        help="--teacache: always compute the first 5 steps, and predict from the projected timestep embedding, with "
        "coefficients for it",
    )
    group.add_argument(
        "--teacache_coefficients",
        metavar="X,X,X,X,X",
        type=numbers(5),
        help="--teacache, --cache teacache: polynomial that predicts the change of the blocks' output from that of the "
        "timestep embedding, highest degree first (default: the model's)",
    )


def add_ranks(parser: Parser) -> None:
    group = parser.add_argument_group(
        "several GPUs",
        "torchrun --nproc_per_node=N %(prog)s ... --use_usp: N processes share the work on one video, each on its own "
        "GPU (with --device cpu all on the CPU).",
    )
    group.add_argument("--use_usp", action="store_true", help="share the work among the processes of torchrun")
    group.add_argument(
        "--cfg_parallel",
        action=argparse.BooleanOptionalAction,
        help="--use_usp: half of the processes run the conditional pass, half the unconditional one; needs an even "
        "number of processes (default: where possible)",
    )
    for name, meaning in (
        ("ulysses", "exchange attention heads; must divide their number"),
        ("ring", "pass keys and values around a ring"),
    ):
        group.add_argument(
            f"--{name}_degree",
            metavar="N",
            type=whole(1),
            help=f"--use_usp: number of processes that {meaning} (default: chosen automatically)",
        )


def add_jobs(parser: Parser) -> None:
    group = parser.add_argument_group(
        "many videos",
        "A job file has a row for each video; the model is loaded once. The same command again makes only what is "
        "missing or failed (docs/batch.md).",
    )
    group.add_argument(
        "--jobs",
        metavar="FILE",
        type=some_text,
        help="a video for each row: JSON objects, one a line (.jsonl), a .csv file, or a list of prompts, one a line; "
        'the keys of a row are flags without dashes, as in {"prompt": "a swan", "seed": 3}; this command line gives '
        "the rest; - reads stdin",
    )
    group.add_argument(
        "--sweep",
        metavar="FLAG=VALUES",
        type=swept,
        nargs="+",
        action="extend",
        help="a video for every combination of values, of each row of --jobs or of this command alone: "
        "guidance_scale=4,6,8 seed=1..4",
    )
    group.add_argument(
        "--keep_going",
        action="store_true",
        help="--jobs, --sweep: make the videos of the valid rows where others are invalid, then exit with 1 (default: "
        "make none, exit with 2)",
    )
    group.add_argument(
        "--gpus_per_job",
        metavar="N",
        type=whole(1),
        help="--jobs, --sweep: under torchrun or with --ray, groups of N processes share a video, and take the next "
        "one when they have finished it (default: 1; with --use_usp all processes)",
    )
    group.add_argument(
        "--ray",
        metavar="ADDRESS",
        nargs="?",
        const=LOCAL,
        type=cluster_address,
        help="--jobs, --sweep: the workers of a Ray cluster make the videos, one on each GPU or group of GPUs. ADDRESS "
        "is HOST:PORT, or auto for the cluster that this machine belongs to (default: a cluster of this machine alone)",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        type=shard,
        help="--jobs, --sweep: make only every N-th video, beginning with the I-th, I from 1 to N (default: in a Slurm "
        "array its task and their number, else all)",
    )
