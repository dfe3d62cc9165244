"""Flags about the video, in groups, with their help texts: content, size, sampling, windows, model."""

from __future__ import annotations

import argparse

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.defaults import IMAGE_TO_VIDEO, LENGTH_720P, PRESETS, PUBLISHED, SOLVER, TINY
from skyreels_v2_infer.cli.help import DIFFUSION_FORCING
from skyreels_v2_infer.cli.parser import Parser
from skyreels_v2_infer.cli.reading import (
    any_text,
    color,
    input_color,
    levels,
    lora_file,
    number,
    one_of,
    rate,
    resolution,
    some_picture,
    some_text,
    whole,
)
from skyreels_v2_infer.console import called
from skyreels_v2_infer.plan.models import CAPTIONER
from skyreels_v2_infer.plan.models import ENHANCER as ENHANCER_MODEL
from skyreels_v2_infer.plan.sizes import SIZE_MULTIPLE
from skyreels_v2_infer.scheduler.solvers import SOLVERS

MOST, MOST_STEPS = 1_000_000, 10_000  # upper limits that catch typing errors; a million frames are eleven hours


def _defaults(name: str) -> str:
    """The defaults of a flag, for --help."""
    others = {"720P models": LENGTH_720P, "image-to-video models": IMAGE_TO_VIDEO}
    by_model = [f"{kind}: {values[name]:g}" for kind, values in others.items() if name in values]
    return "; ".join([f"default: {getattr(PUBLISHED, name):g}", *by_model, f"{embedded.NAME}: {getattr(TINY, name):g}"])


# ---- argument groups ------------------------------------------------------------------------------------------------


def add_content(parser: Parser, forcing: bool = False) -> argparse._ArgumentGroup:
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
        "--image",
        metavar="FILE",
        type=some_picture,
        help="first frame of the video, a file or a URL, see --fit" + "; needs an image-to-video model" * (not forcing),
    )
    group.add_argument(
        "--fit",
        metavar="{crop,pad}",
        type=one_of("crop", "pad"),
        default="crop",
        help="inputs of another shape than the video: crop scales them to cover it and cuts off what is beyond it, pad "
        "scales them into it, on --background (default: %(default)s)",
    )
    group.add_argument(
        "--background",
        metavar="COLOR",
        type=color,
        default="#ffffff",
        help="what is behind transparent inputs, and around those of --fit pad: black, #ffcc00, ... (default: white)",
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
    return group


def add_diffusion_forcing_content(group: argparse._ArgumentGroup) -> None:
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
        type=some_picture,
        help="video to continue from its last --overlap_history frames, with its sound; it is read at --fps by its "
        "timestamps: a file, a URL, a folder of pictures, frames/%%04d.png, 'frames/*.png', an animated picture; not "
        "with --image",
    )
    group.add_argument(
        "--input_color",
        metavar="NAME[:RANGE]",
        type=input_color,
        help="--video_path: its colours, where tags are wrong or missing: bt709, bt601, bt2020, p3, hlg or pq, with "
        ":full or :limited or without, or full or limited alone (default: as tagged; untagged HD is bt709, SD bt601)",
    )
    group.add_argument(
        "--keep_rate",
        action="store_true",
        help="--video_path: take every frame once, whatever its rate, so that the video plays at another speed if that "
        "is not --fps",
    )
    group.add_argument("--no_audio", action="store_true", help="--video_path: leave out its sound")


def add_shape(parser: Parser) -> None:
    group = parser.add_argument_group("size and length")
    group.add_argument(
        "--resolution",
        metavar="{540P,720P}",
        type=resolution,
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
        f"{called(DIFFUSION_FORCING)} with --video_path: frames to add, 4n (default: what one window adds)",
    )
    group.add_argument(
        "--fps",
        metavar="N",
        type=rate,
        help="frames per second of the file, 1 to 240, also 23.976, 30000/1001, ...; and an input of models with "
        f"an fps embedding ({_defaults('fps')})",
    )


def add_sampling(parser: Parser) -> None:
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
        help="how strongly the prompt is followed: up to 1 disables guidance, high values look harsh "
        f"({_defaults('guidance_scale')})",
    )
    group.add_argument(
        "--shift",
        metavar="X",
        type=number(above=0, below=1000),
        help="distribution of the steps over noise levels: higher spends more at high noise, which decides layout and "
        f"motion, lower more on detail ({_defaults('shift')})",
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


def add_diffusion_forcing(parser: Parser) -> None:
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
        help="frames of a window, 4n+1; determines memory and time per step. The defaults are the lengths that the "
        f"models were trained on ({_defaults('base_num_frames')})",
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


def add_model(parser: Parser, model_id: str) -> None:
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
