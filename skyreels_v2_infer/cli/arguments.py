"""argv -> frozen settings, or one line on stderr and exit code 2. Everything that can be found wrong without a model is
found here, before anything heavy is imported and before anything is written.

Both scripts share the argument groups and the checks; diffusion forcing adds its own.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli import checks
from skyreels_v2_infer.cli.defaults import PRESETS, PUBLISHED, SOLVER, TINY
from skyreels_v2_infer.cli.reading import (
    Parser,
    any_text,
    device_name,
    levels,
    lora_file,
    number,
    numbers,
    one_of,
    some_path,
    some_picture,
    some_text,
    whole,
)
from skyreels_v2_infer.cli.replay import replayed_flags
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.plan.kernels import KERNELS
from skyreels_v2_infer.plan.models import ENHANCER as ENHANCER_MODEL
from skyreels_v2_infer.plan.sizes import RESOLUTIONS, SIZE_MULTIPLE
from skyreels_v2_infer.scheduler.solvers import SOLVERS

MOST, MOST_STEPS = 1_000_000, 10_000  # what a slip of the finger should not exceed; eleven hours of frames
GENERATE = "generate_video.py"
DIFFUSION_FORCING = "generate_video_df.py"


def parse_generate(argv: Sequence[str]) -> GenerateSettings:
    """The settings in `argv` (without the program's name).

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        GENERATE,
        "Make a video from a text, or from a text and a first picture, in one piece.",
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
    _add_machine(parser, model_id="Skywork/SkyReels-V2-T2V-14B-540P")
    _add_speed(parser)
    _add_ranks(parser)
    return _settings(parser, argv, checks.generate_settings)


def parse_diffusion_forcing(argv: Sequence[str]) -> DiffusionForcingSettings:
    """The settings in `argv` (without the program's name).

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        DIFFUSION_FORCING,
        "Make a video of any length from a text, and if wanted from a first picture, a last picture, or a video "
        "that is to go on. Long videos are made window by window.",
        'example, 10 seconds: %(prog)s --num_frames 257 --overlap_history 17 --prompt "A red kite over the dunes"; '
        "5 more seconds of a video: %(prog)s --video_path kite.mp4 --num_frames 120 --overlap_history 17",
        elsewhere={},
    )
    _add_diffusion_forcing_content(_add_content(parser, forcing=True))
    _add_shape(parser)
    _add_sampling(parser)
    _add_diffusion_forcing(parser)
    _add_machine(parser, model_id="Skywork/SkyReels-V2-DF-1.3B-540P")
    _add_speed(parser)
    _add_ranks(parser)
    return _settings(parser, argv, checks.forcing_settings)


def _settings(parser: Parser, argv: Sequence[str], settle: Callable) -> GenerateSettings:
    """The settings in `argv`, after those of the video that --replay names."""
    args = parser.read(argv)
    try:
        if args.replay is not None:
            args = parser.read([*replayed_flags(args.replay, parser.prog, argv), *argv])
        return settle(args, Launch.from_environment())
    except InputError as error:
        parser.error(str(error))


def _defaults(name: str) -> str:
    """For --help: what a flag is worth that is not given."""
    return f"default: {getattr(PUBLISHED, name):g}; {embedded.NAME}: {getattr(TINY, name):g}"


# ---- what the flags are called and mean -----------------------------------------------------------------------------


def _add_content(parser: Parser, forcing: bool = False) -> argparse._ArgumentGroup:
    group = parser.add_argument_group("what is to be seen")
    group.add_argument(
        "--prompt",
        type=some_text,
        nargs="+" if forcing else None,
        help=f"the scene, in words (default: a swan on a lake; {embedded.NAME}: a red circle)"
        + "; several: one for each window, the last one stays" * forcing,
    )
    group.add_argument(
        "--negative_prompt",
        metavar="PROMPT",
        type=any_text,
        help='what guidance pushes away from; "" names nothing (default: a list of common defects; '
        f"{embedded.NAME}: nothing)",
    )
    group.add_argument(
        "--prompt_enhancer",
        action="store_true",
        help="let a language model write the prompt out first, as the models know captions: shot, subject, action, "
        "place, light, camera",
    )
    group.add_argument(
        "--prompt_enhancer_model",
        metavar="ID",
        type=some_text,
        help=f"chat model for that, a hub id or a folder (default: {ENHANCER_MODEL}, which wants 65 GB)",
    )
    group.add_argument(
        "--image",
        metavar="FILE",
        type=some_picture,
        help="first frame of the video, a file or an address on the web; scaled to cover the video's size, then "
        "cropped around its centre" + "; needs an image-to-video model" * (not forcing),
    )
    return group


def _add_diffusion_forcing_content(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--end_image",
        metavar="FILE",
        type=some_picture,
        help="picture that the video runs towards; fitted like --image",
    )
    group.add_argument(
        "--story",
        metavar="FILE",
        type=some_text,
        help="prompts that change: a list, as JSON or YAML, of start (a frame, or seconds as 4.5s), prompt, and if "
        "wanted negative_prompt, guidance_scale, seed; each takes effect where a window begins",
    )
    group.add_argument(
        "--video_path",
        metavar="FILE",
        type=some_path,
        help="video to continue: its last --overlap_history frames are what the new frames follow on; not with --image",
    )


def _add_shape(parser: Parser) -> None:
    group = parser.add_argument_group("size and length")
    group.add_argument(
        "--resolution",
        metavar="{540P,720P}",
        type=one_of(*RESOLUTIONS),
        help="540P is 544x960 (height x width), 720P is 720x1280, turned upright if the picture or video given "
        "is taller than wide (default: 720P for the published 720P models, else 540P; "
        f"{embedded.NAME}: {TINY.height}x{TINY.width})",
    )
    for side in ("height", "width"):
        group.add_argument(
            f"--{side}",
            metavar="PIXELS",
            type=whole(SIZE_MULTIPLE),
            help="instead of --resolution, both together: multiples of 16, used as given",
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
        help=f"frames per second of the file; a model that knows several rates is told ({_defaults('fps')})",
    )


def _add_sampling(parser: Parser) -> None:
    group = parser.add_argument_group("sampling")
    group.add_argument(
        "--inference_steps",
        metavar="N",
        type=whole(1, MOST_STEPS),
        help=f"denoising steps: more are slower and finer ({_defaults('inference_steps')})",
    )
    group.add_argument(
        "--guidance_scale",
        metavar="X",
        type=number(0, below=1000000),
        help="how strongly the prompt is followed: up to 1 is no guidance, too much looks harsh; 5 suits an --image "
        f"({_defaults('guidance_scale')})",
    )
    group.add_argument(
        "--shift",
        metavar="X",
        type=number(above=0, below=1000),
        help="where the steps are spent: higher gives more of them to the noisy beginning, which settles layout and "
        f"motion, lower gives more to detail; 5 suits an --image ({_defaults('shift')})",
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
        "flags given as well replace its values",
    )
    group.add_argument(
        "--lora",
        metavar="FILE[:STRENGTH]",
        type=lora_file,
        action="append",
        help="LoRA to add to the transformer, at a strength (default: 1); may be given several times",
    )
    group.add_argument(
        "--seed",
        metavar="N",
        type=whole(0, 2**63 - 1),
        help="the same seed with the same settings gives the same video (default: drawn anew)",
    )


def _add_diffusion_forcing(parser: Parser) -> None:
    group = parser.add_argument_group(
        "windows and diffusion forcing",
        "A video longer than one window is made window after window, each following on the last frames of the one "
        "before. Inside a window every frame may stand at its own noise level. A latent frame holds 4 frames, the "
        "first one 1: 97 frames are 25 latent frames.",
    )
    group.add_argument(
        "--base_num_frames",
        metavar="N",
        type=whole(high=MOST),
        help="frames of a window, 4n+1; decides memory and time per step. The 540P models learnt 97, the 720P models "
        f"121 ({_defaults('base_num_frames')})",
    )
    group.add_argument(
        "--overlap_history",
        metavar="N",
        type=whole(high=MOST),
        help="frames of the window before, or of --video_path, that a window sees and follows on, 4n+1, fewer than "
        "--base_num_frames. Needed for long videos; 17 is usual; more carry the motion on better, but each window then "
        f"adds fewer new frames (default: none; {embedded.NAME}: {TINY.overlap_history})",
    )
    group.add_argument(
        "--history",
        metavar="{pixel,latent}",
        type=one_of("pixel", "latent"),
        default="pixel",
        help="pixel: a window goes on from decoded frames, encoded again, as published; latent: from latents, and the "
        "video is decoded in one stream, without a seam in the decoder (default: %(default)s)",
    )
    group.add_argument(
        "--addnoise_condition",
        metavar="X",
        type=number(0, below=1000),
        help="noise laid over the frames a window follows on, in thousandths of full noise, from 0 to below 1000. A "
        "little (20) keeps small faults from growing from window to window; the more, the less those frames bind "
        f"({_defaults('addnoise_condition')})",
    )
    group.add_argument(
        "--ar_step",
        metavar="N",
        type=whole(0, MOST),
        default=0,
        help="0: all frames of a window are denoised together. N > 0: each block of frames starts N steps after the "
        "block before it, so that it can follow cleaner frames; with B blocks this takes N x (B-1) more steps, for 97 "
        "frames 50 instead of 30 with --ar_step 5 --causal_block_size 5 (default: %(default)s)",
    )
    group.add_argument(
        "--causal_block_size",
        metavar="N",
        type=whole(1, MOST),
        default=1,
        help="latent frames of a block: they share a noise level, and with --causal_attention they see one another and "
        "the blocks before. The last block may be shorter. 5 goes well with --ar_step 5 (default: %(default)s)",
    )
    group.add_argument(
        "--causal_attention",
        action="store_true",
        help="frames see only their own block and earlier ones; for --ar_step above 0, not possible with --end_image",
    )


def _add_machine(parser: Parser, model_id: str) -> None:
    group = parser.add_argument_group("model, machine and output")
    group.add_argument(
        "--model_id",
        metavar="ID",
        type=some_text,
        default=model_id,
        help="a published model, downloaded on first use, or a folder that holds one; "
        f"{embedded.NAME}: the one that comes with this package, for any CPU (default: %(default)s)",
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
    group.add_argument(
        "--outdir",
        metavar="DIR",
        type=some_path,
        default=Path("video_out"),
        help="folder for the video, made if it is missing; existing files are never overwritten (default: %(default)s)",
    )
    group.add_argument(
        "--keep_parts",
        action="store_true",
        help="keep the windows' own videos beside the finished one, and take over what an earlier kept run has of this "
        f"one: after a change to the --story of {DIFFUSION_FORCING} only windows from there on are made",
    )
    group.add_argument("--no_preview", action="store_true", help="no picture beside the video of its windows' ends")
    group.add_argument(
        "--replay",
        metavar="FILE",
        type=some_path,
        help="make a video of this program once more, from what is written in it or in the .json beside it; flags "
        "given as well replace what is written there",
    )
    group.add_argument(
        "--resume",
        action="store_true",
        help="go on with the interrupted run of the same settings in --outdir; without one, begin",
    )
    group.add_argument(
        "--dry_run",
        metavar="json",
        nargs="?",
        const="table",
        type=one_of("table", "json"),
        help="only show what would be done: windows, steps, arithmetic, memory, numbers of GPUs; no weights are needed "
        "(--dry_run json: for programs)",
    )
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
        help="number format of the VAE; bfloat16 takes about half the time, at 48 dB (default: %(default)s)",
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
        help="keep weights in the host's memory, and on the GPU only what is at work: a block of the transformer, and "
        "the next on its way; the same video with less GPU memory, slower (no effect on a cpu)",
    )


def _add_speed(parser: Parser) -> None:
    group = parser.add_argument_group(
        "faster, not quite the same",
        "TeaCache: a step that is foretold to change little reuses what the transformer's blocks added before.",
    )
    group.add_argument("--teacache", action="store_true", help="skip such steps (docs/knobs.md says what it costs)")
    group.add_argument(
        "--teacache_thresh",
        metavar="X",
        type=number(0),
        default=0.2,
        help="sum of foretold relative changes at which the blocks run again: 0 skips nothing, 0.2 and 0.3 are usual; "
        "no effect without --teacache (default: %(default)s)",
    )
    group.add_argument(
        "--use_ret_steps",
        action="store_true",
        help="--teacache: always compute the first 5 steps, and measure changes elsewhere, by other coefficients",
    )
    group.add_argument(
        "--teacache_coefficients",
        metavar="X,X,X,X,X",
        type=numbers(5),
        help="--teacache: polynomial from the change of the timestep embedding to that of the blocks' output, highest "
        "degree first (default: those of the model)",
    )


def _add_ranks(parser: Parser) -> None:
    group = parser.add_argument_group(
        "several GPUs",
        "torchrun --nproc_per_node=N %(prog)s ... --use_usp: N processes make one video together, each on its GPU "
        "(or all on the CPU, with --device cpu).",
    )
    group.add_argument("--use_usp", action="store_true", help="share the work among the processes of torchrun")
    group.add_argument(
        "--cfg_parallel",
        action=argparse.BooleanOptionalAction,
        help="--use_usp: half of the processes compute what the prompt says, half what --negative_prompt says; needs "
        "an even number (default: where that is possible)",
    )
    for name, meaning in (
        ("ulysses", "exchange heads around attention, must divide them"),
        ("ring", "pass keys and values around"),
    ):
        group.add_argument(
            f"--{name}_degree",
            metavar="N",
            type=whole(1),
            help=f"--use_usp: processes that {meaning} (default: chosen)",
        )
