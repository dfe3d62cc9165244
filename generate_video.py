#!/usr/bin/env python
"""Text or image to video, the full sequence at once. `--help` tells what it takes."""

import sys

from skyreels_v2_infer.cli.arguments import parse_generate
from skyreels_v2_infer.run.main import generate
from skyreels_v2_infer.run.main import main as run


def main() -> int:
    return run("generate_video.py", parse_generate, generate)


if __name__ == "__main__":
    sys.exit(main())
