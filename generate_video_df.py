#!/usr/bin/env python
"""Diffusion forcing: long videos, extension, start and end images. `--help` lists the flags."""

import sys

from skyreels_v2_infer.run.signals import before_anything


def main() -> int:
    with before_anything("generate_video_df.py"):
        from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
        from skyreels_v2_infer.run.main import main as run

    return run("generate_video_df.py", parse_diffusion_forcing)


if __name__ == "__main__":
    sys.exit(main())
