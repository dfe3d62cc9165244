#!/usr/bin/env python
# PYTHON_ARGCOMPLETE_OK
"""Diffusion forcing: long videos, extension, start and end images. `--help` lists the flags."""

import sys

from skyreels_v2_infer.cli.help import answer_at_once, printed
from skyreels_v2_infer.run.signals import before_anything


def main() -> int:
    with before_anything("generate_video_df.py"):
        text = answer_at_once("generate_video_df.py", sys.argv[1:])
        if text is not None:
            return printed("generate_video_df.py", text)
        from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
        from skyreels_v2_infer.run.main import main as run

    return run("generate_video_df.py", parse_diffusion_forcing)


if __name__ == "__main__":
    sys.exit(main())
