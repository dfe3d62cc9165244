"""What --help and --version print. Imports nothing heavy, so that they answer at once.

`--help` has the flags that most people need, in the order in which they need them; `--help all` has every flag in its
group, and comes from the flags' own help texts.
"""

from __future__ import annotations

import errno
import shutil
import sys
import textwrap
from collections.abc import Sequence

from skyreels_v2_infer import __version__
from skyreels_v2_infer.console import called, give_up, say

GENERATE = "generate_video.py"
DIFFUSION_FORCING = "generate_video_df.py"
ABOUT = {
    GENERATE: "Make a video from a text, or from a text and a first image, in one piece.",
    DIFFUSION_FORCING: "Make a video of any length from a text, and optionally from a first image, a last image, or a "
    "video to continue. Long videos are made window by window.",
}
EXAMPLES = {
    GENERATE: ('--model_id tiny --prompt "A red circle moves slowly to the right on a black background"',),
    DIFFUSION_FORCING: (
        '--model_id tiny --num_frames 65 --prompt "a white ball moves slowly down"',
        '--num_frames 257 --overlap_history 17 --prompt "A red kite over the dunes"',
    ),
}
# Flag and value, help; the third says which script has it or means something else by it.
SHORT = (
    ("--prompt TEXT", "what the video shows", None),
    ("--image FILE", "first frame, a file or an address; needs an image-to-video model", GENERATE),
    ("--image FILE", "first frame, a file or an address", DIFFUSION_FORCING),
    ("--end_image FILE", "image that the video leads up to", DIFFUSION_FORCING),
    ("--video_path FILE", "video to continue", DIFFUSION_FORCING),
    ("--model_id ID", "a published model (--list_models), a folder, or tiny: in this package, for any CPU", None),
    ("--outdir DIR", "folder for the video (video_out)", None),
    ("--num_frames N", "length, 4n+1: 97 are 4 seconds at 24 fps", GENERATE),
    ("--num_frames N", "length, 4n+1: 97 are 4 seconds at 24 fps; with --video_path frames to add", DIFFUSION_FORCING),
    ("--overlap_history N", "frames that a window continues; 17 is usual; long videos need it", DIFFUSION_FORCING),
    ("--story FILE", "prompts that change in the course of the video", DIFFUSION_FORCING),
    ("--resolution R", "540P (544x960) or 720P (720x1280); or --height and --width", None),
    ("--fps N", "frames per second (24)", None),
    ("--seed N", "the same seed and settings, the same video (drawn and printed)", None),
    ("--inference_steps N", "denoising steps: more take longer and give finer detail (30)", None),
    ("--guidance_scale X", "how strongly the prompt is followed (6; image-to-video models 5)", None),
    ("--shift X", "higher: steps for layout and motion, lower: for detail (8; image-to-video models 5)", None),
    ("--negative_prompt TEXT", "what the video must not show", None),
    ("--prompt_enhancer", "a language model expands the prompt", None),
    ("--lora FILE", "LoRA to apply, FILE:STRENGTH; may be given several times", None),
    ("--memory GIB", "GPU memory that may be taken; what is too large is held in parts", None),
    ("--device D", "cpu, cuda, cuda:1, ... (cuda if there is one)", None),
    ("--config FILE", "flags from a YAML or JSON file; this command line overrides them", None),
    ("--jobs FILE", "many videos: a row for each", None),
    ("--resume", "resume the interrupted run of the same settings", None),
    ("--dry_run", "only print the plan: windows, download, memory, time, file name", None),
    ("--list_models", "the published models: sizes, download, memory", None),
    ("--version", "versions of this program and of what it needs", None),
    ("--help all", "every flag, in groups", None),
)
COLUMN = 26  # where help texts begin
NARROWEST, WIDEST = 50, 80  # of a page


def short_help(script: str) -> str:
    """The flags that most people need: two pages."""
    name = called(script)
    width = min(max(shutil.get_terminal_size().columns, NARROWEST), WIDEST)
    lines = [f"usage: {name} [flags]", "", *textwrap.wrap(ABOUT[script], width), ""]
    for flag, text, only in SHORT:
        if only in (None, script):
            first, *rest = textwrap.wrap(text, width - COLUMN)
            lines += [f"  {flag}".ljust(COLUMN) + first, *(" " * COLUMN + line for line in rest)]
    note = "Defaults are in brackets; size, length and guidance depend on the model (docs/usage.md)."
    lines += ["", *textwrap.wrap(note, width), ""]
    return "\n".join([*lines, *(f"example: {name} {example}" for example in EXAMPLES[script])]) + "\n"


def version_line() -> str:
    """This program's version and those of what it runs on."""
    import platform
    from importlib import metadata  # slow to import

    found = [f"skyreels_v2_infer {__version__}", f"Python {platform.python_version()}"]
    for name in ("torch", "diffusers", "transformers"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            found.append(f"{name} not installed")
    return ", ".join(found) + "\n"


def printed(script: str, text: str) -> int:
    """Prints a text on stdout -> exit code. A reader that has seen enough (`| head`) is no reason for a message."""
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError as error:
        give_up(sys.stdout)
        if error.errno != errno.EPIPE:
            say(f"{called(script)}: stdout cannot be written ({error.strerror})")
        return 1
    return 0


def answer_at_once(script: str, argv: Sequence[str]) -> str | None:
    """What a command prints that asks for nothing but --help or --version; None for others."""
    if list(argv) in (["--help"], ["-h"]):
        return short_help(script)
    return version_line() if list(argv) == ["--version"] else None
