"""argv -> frozen settings, or one line on stderr and exit code 2. The flags of both scripts and their help texts.

Whatever can be rejected without a model is rejected here, before torch is imported and before anything is written.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli import checks
from skyreels_v2_infer.cli.batch import JobList, read_jobs
from skyreels_v2_infer.cli.defaults import PRESETS, PUBLISHED, SOLVER, TEACACHE_THRESHOLD, TINY
from skyreels_v2_infer.cli.reading import (
    CommandError,
    Parser,
    any_text,
    cache,
    device_name,
    levels,
    lora_file,
    name_pattern,
    number,
    numbers,
    one_of,
    ratios,
    some_path,
    some_picture,
    some_text,
    whole,
)
from skyreels_v2_infer.cli.replay import replayed_flags
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.cli.sweep import shard, swept
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.plan.kernels import KERNELS
from skyreels_v2_infer.plan.models import CAPTIONER
from skyreels_v2_infer.plan.models import ENHANCER as ENHANCER_MODEL
from skyreels_v2_infer.plan.sizes import RESOLUTIONS, SIZE_MULTIPLE
from skyreels_v2_infer.scheduler.solvers import SOLVERS

MOST, MOST_STEPS = 1_000_000, 10_000  # upper limits that catch typing errors; a million frames are eleven hours
GENERATE = "generate_video.py"
DIFFUSION_FORCING = "generate_video_df.py"


def parse_generate(argv: Sequence[str]) -> GenerateSettings | JobList:
    """The settings in `argv` (without the program's name); with --jobs or --sweep those of every video.

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        GENERATE,
        "Make a video from a text, or from a text and a first image, in one piece.",
        'example: %(prog)s --prompt "A red kite over the dunes" --seed 7',
        elsewhere={
            f"--{field.name}": DIFFUSION_FORCING
            for field in dataclasses.fields(DiffusionForcingSettings)
            if field.name != "prompts"  # several values of --prompt
        },
    )
    _add_content(parser)
    _add_shape(parser)
    _add_sampling(parser)
    _add_model(parser, model_id="Skywork/SkyReels-V2-T2V-14B-540P")
    _add_output(parser)
    _add_machine(parser)
    _add_speed(parser)
    _add_ranks(parser)
    _add_jobs(parser)
    return _settings(parser, argv, checks.generate_settings)


def parse_diffusion_forcing(argv: Sequence[str]) -> DiffusionForcingSettings | JobList:
    """The settings in `argv` (without the program's name); with --jobs or --sweep those of every video.

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        DIFFUSION_FORCING,
        "Make a video of any length from a text, and optionally from a first image, a last image, or a video to "
        "continue. Long videos are made window by window.",
        'example, 10 seconds: %(prog)s --num_frames 257 --overlap_history 17 --prompt "A red kite over the dunes"; '
        "5 more seconds of a video: %(prog)s --video_path kite.mp4 --num_frames 120 --overlap_history 17",
        elsewhere={},
    )
    _add_diffusion_forcing_content(_add_content(parser, forcing=True))
    _add_shape(parser)
    _add_sampling(parser)
    _add_diffusion_forcing(parser)
    _add_model(parser, model_id="Skywork/SkyReels-V2-DF-1.3B-540P")
    _add_output(parser)
    _add_machine(parser)
    _add_speed(parser)
    _add_ranks(parser)
    _add_jobs(parser)
    return _settings(parser, argv, checks.forcing_settings)


def _settings(parser: Parser, argv: Sequence[str], settle: Callable) -> GenerateSettings | JobList:
    """The settings in `argv`, or those of every row of a job file."""
    try:
        args, launch = parser.read(argv), Launch.from_environment()
        if args.jobs is None and args.sweep is None:
            checks.check_no_jobs(args)
            return _of_one(parser, argv, settle, launch)
        return read_jobs(parser, argv, args, launch, lambda words, group: _of_one(parser, words, settle, group))
    except (CommandError, InputError) as error:
        parser.refuse(error)


def _of_one(parser: Parser, argv: Sequence[str], settle: Callable, launch: Launch) -> GenerateSettings:
    """The settings of one video, after those of the video that --replay names."""
    args = parser.read(argv)
    if args.replay is not None:
        written = replayed_flags(args.replay, parser.prog, argv, args.trust_replay)
        args = parser.read([*written, *argv])
    elif args.trust_replay:
        raise InputError("trust_replay", None, "has no effect without --replay")
    return settle(args, launch)


def _defaults(name: str) -> str:
    """The defaults of a flag, for --help."""
    return f"default: {getattr(PUBLISHED, name):g}; {embedded.NAME}: {getattr(TINY, name):g}"


# ---- argument groups ------------------------------------------------------------------------------------------------


def _add_content(parser: Parser, forcing: bool = False) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("content")
    group.add_argument(
        "--prompt",
        type=some_text,
        nargs="+" if forcing else None,
        help=f"description of the scene (default: a swan on a lake; {embedded.NAME}: a red circle)"
        + "; several prompts: one for each window, the last one holds to the end" * forcing
        + f"; auto: made by a captioner from {'--image or the end of --video_path' if forcing else '--image'}; "
        'auto:"TEXT": with TEXT in it',
    )
    group.add_argument(
        "--negative_prompt",
        metavar="PROMPT",
        type=any_text,
        help='what guidance steers away from; "" for an empty one (default: a list of common defects; '
        f"{embedded.NAME}: empty)",
    )
    group.add_argument(
        "--prompt_enhancer",
        action="store_true",
        help="expand the prompt with a language model into a caption like those of the training data: shot, subject, "
        "action, place, light, camera",
    )
    group.add_argument(
        "--prompt_enhancer_model",
        metavar="ID",
        type=some_text,
        help=f"chat model for --prompt_enhancer, a hub id or a folder (default: {ENHANCER_MODEL}, needs 65 GB)",
    )
    group.add_argument(
        "--captioner_model",
        metavar="ID",
        type=some_text,
        help=f"captioner for --prompt auto, a hub id or a folder (default: {CAPTIONER}, needs 17 GB)",
    )
    group.add_argument(
        "--fusion_model",
        metavar="ID",
        type=some_text,
        help="chat model that turns the caption of --prompt auto into a prompt, a hub id or a folder; none: sentences "
        f"by rule, without a model (default: {ENHANCER_MODEL}, needs 65 GB)",
    )
    group.add_argument(
        "--image",
        metavar="FILE",
        type=some_picture,
        help="first frame of the video, a file or a URL; scaled to cover the video's size, then cropped at the centre"
        + "; needs an image-to-video model" * (not forcing),
    )
    return group


def _add_diffusion_forcing_content(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--end_image",
        metavar="FILE",
        type=some_picture,
        help="image that the video leads up to, not itself a frame of it; fitted like --image",
    )
    group.add_argument(
        "--story",
        metavar="FILE",
        type=some_text,
        help="prompts that change: a JSON or YAML list of scenes with start (a frame, or seconds as 4.5s), prompt, and "
        "optionally negative_prompt, guidance_scale, seed, lora; a scene takes effect where a window begins",
    )
    group.add_argument(
        "--video_path",
        metavar="FILE",
        type=some_path,
        help="video to continue from its last --overlap_history frames; not with --image",
    )


def _add_shape(parser: Parser) -> None:
    group = parser.add_argument_group("size and length")
    group.add_argument(
        "--resolution",
        metavar="{540P,720P}",
        type=one_of(*RESOLUTIONS),
        help="540P is 544x960 (height x width), 720P is 720x1280; portrait if the given image or video is taller than "
        "wide (default: 720P for the published 720P models, else 540P; "
        f"{embedded.NAME}: {TINY.height}x{TINY.width})",
    )
    for side in ("height", "width"):
        group.add_argument(
            f"--{side}",
            metavar="PIXELS",
            type=whole(SIZE_MULTIPLE),
            help="instead of --resolution; give both, multiples of 16",
        )
    group.add_argument(
        "--num_frames",
        metavar="N",
        type=whole(high=MOST),
        help=f"frames of the video, 4n+1: 1, 5, ..., 97, ...; seconds are frames / fps ({_defaults('num_frames')}). "
        f"{DIFFUSION_FORCING} with --video_path: frames to add, a multiple of 4 (default: what one window adds)",
    )
    group.add_argument(
        "--fps",
        metavar="N",
        type=whole(1, 240),
        help=f"frames per second of the file, and an input of models with an fps embedding ({_defaults('fps')})",
    )


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--inference_steps",
        metavar="N",
        type=whole(1, MOST_STEPS),
        help=f"denoising steps: more take longer and give finer detail ({_defaults('inference_steps')})",
    )
    group.add_argument(
        "--guidance_scale",
        metavar="X",
        type=number(0, below=1000000),
        help="how strongly the prompt is followed: up to 1 disables guidance, high values look harsh; 5 suits an "
        f"--image ({_defaults('guidance_scale')})",
    )
    group.add_argument(
        "--shift",
        metavar="X",
        type=number(above=0, below=1000),
        help="distribution of the steps over noise levels: higher spends more at high noise, which decides layout and "
        f"motion, lower more on detail; 5 suits an --image ({_defaults('shift')})",
    )
    group.add_argument(
        "--solver",
        metavar="{unipc,euler,lcm}",
        type=one_of(*SOLVERS),
        help=f"unipc for the published models, euler or lcm for distilled ones (default: {SOLVER})",
    )
    group.add_argument(
        "--sigmas",
        metavar="X,X,...",
        type=levels,
        help="noise levels, falling from at most 1, as distilled models publish them; instead of --inference_steps and "
        "--shift",
    )
    group.add_argument(
        "--preset",
        metavar="{4steps}",
        type=one_of(*PRESETS),
        help="4steps: 4 steps, --solver euler, --shift 5, --guidance_scale 1, for weights and LoRAs distilled to it; "
        "flags given as well override its values",
    )
    group.add_argument(
        "--lora",
        metavar="FILE[:STRENGTH]",
        type=lora_file,
        action="append",
        help="LoRA to apply to the transformer, with a strength (default: 1); may be given several times",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=whole(0, 2**63 - 1),
        help="the same seed with the same settings gives the same video (default: drawn at random and printed)",
    )


def _add_diffusion_forcing(parser: Parser) -> None:
    group = parser.add_argument_group(
        "windows and diffusion forcing",
        "A video longer than one window is made window by window; each continues the last frames of the one before. "
        "Inside a window every latent frame may have its own noise level. A latent frame holds 4 frames, the first one "
        "1: 97 frames are 25 latent frames.",
    )
    group.add_argument(
        "--base_num_frames",
        metavar="N",
        type=whole(high=MOST),
        help="frames of a window, 4n+1; determines memory and time per step. The 540P models were trained on 97, the "
        f"720P models on 121 ({_defaults('base_num_frames')})",
    )
    group.add_argument(
        "--overlap_history",
        metavar="N",
        type=whole(high=MOST),
        help="last frames of the window before, or of --video_path, that a window continues, 4n+1, fewer than "
        "--base_num_frames. Needed for long videos; 17 is usual; more keep the motion steadier, but each window then "
        f"adds fewer new frames (default: none; {embedded.NAME}: {TINY.overlap_history})",
    )
    group.add_argument(
        "--history",
        metavar="{pixel,latent}",
        type=one_of("pixel", "latent"),
        default="pixel",
        help="what a window continues. pixel: decoded frames, encoded again, as published; latent: latents, and the "
        "video is decoded in one stream, without a seam in the decoder (default: %(default)s)",
    )
    group.add_argument(
        "--addnoise_condition",
        metavar="X",
        type=number(0, below=1000),
        help="noise added to the frames that a window continues, in thousandths of full noise, from 0 to below 1000. A "
        "little (20) keeps artifacts from accumulating over windows; more loosens the connection to those frames "
        f"({_defaults('addnoise_condition')})",
    )
    group.add_argument(
        "--ar_step",
        metavar="N",
        type=whole(0, MOST),
        default=0,
        help="0: all frames of a window are denoised together. N > 0: each block of frames starts N steps after the "
        "block before it, whose frames are then cleaner; with B blocks this takes N x (B-1) more steps, for 97 frames "
        "50 instead of 30 with --ar_step 5 --causal_block_size 5 (default: %(default)s)",
    )
    group.add_argument(
        "--causal_block_size",
        metavar="N",
        type=whole(1, MOST),
        default=1,
        help="latent frames per block: they share a noise level, and with --causal_attention they attend to each other "
        "and to the blocks before. The last block may be shorter. 5 suits --ar_step 5 (default: %(default)s)",
    )
    group.add_argument(
        "--causal_attention",
        action="store_true",
        help="frames attend only to their own block and earlier ones; for --ar_step above 0; not with --end_image",
    )


def _add_model(parser: Parser, model_id: str) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model_id",
        metavar="ID",
        type=some_text,
        default=model_id,
        help="hub id of a published model, downloaded on first use, or a folder that holds a model; "
        f"{embedded.NAME}: the model in this package, for any CPU (default: %(default)s)",
    )
    for part, name in (("dit", "transformer"), ("vae", "VAE"), ("text_encoder", "text encoder")):
        group.add_argument(
            f"--{part}_path",
            metavar="PATH",
            type=some_text,
            help=f"{name} from elsewhere: a folder, a file (.safetensors, .gguf, .pth) or a hub id "
            "(owner/name or owner/name/path/to/file)",
        )
    group.add_argument(
        "--image_encoder_path", metavar="PATH", type=some_text, help="image encoder from elsewhere, likewise"
    )
    group.add_argument(
        "--weights",
        metavar="{stored,dequantize}",
        type=one_of("stored", "dequantize"),
        default="stored",
        help="weights of a quantised file: stored keeps them as they are and expands each layer when it computes, "
        "dequantize expands all once (default: %(default)s)",
    )
    group.add_argument(
        "--quantize",
        metavar="{fp8,int8}",
        type=one_of("fp8", "int8"),
        help="round the weights of the blocks' linear layers to one byte each; fp8 also computes in float8 where the "
        "GPU can (faster on Hopper); an approximation, see docs/knobs.md (default: as they are)",
    )


def _add_output(parser: Parser) -> None:
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
        "--keep_parts",
        action="store_true",
        help="keep the files of the windows beside the finished video, and reuse those of an earlier kept run that are "
        f"the same: after a change to the --story of {DIFFUSION_FORCING} only the windows from there on are made",
    )
    group.add_argument(
        "--no_preview",
        action="store_true",
        help="do not write the preview, an image of each window's first and last frame, beside the video",
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
        help="--replay: also use the input files, addresses and unpublished models that are named there",
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
        help="only print the plan: windows, steps, arithmetic, memory, legal numbers of GPUs; needs no weights "
        "(--dry_run json: as JSON)",
    )


def _add_machine(parser: Parser) -> None:
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
        "and the next one in transfer; the same video with less GPU memory, possibly slower (no effect on a cpu)",
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


def _add_speed(parser: Parser) -> None:
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


def _add_ranks(parser: Parser) -> None:
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


def _add_jobs(parser: Parser) -> None:
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
        help="--jobs, --sweep: under torchrun, groups of N processes share a video, and take the next one when they "
        "have finished it (default: 1; with --use_usp all processes)",
    )
    group.add_argument(
        "--shard",
        metavar="I/N",
        type=shard,
        help="--jobs, --sweep: make only every N-th video, beginning with the I-th, I from 1 to N (default: in a Slurm "
        "array its task and their number, else all)",
    )
