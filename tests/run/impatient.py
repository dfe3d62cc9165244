"""A script as a user starts it, but with less patience: impatient.py SECONDS SCRIPT [FLAGS ...]."""

import sys

from skyreels_v2_infer.cli.arguments import DIFFUSION_FORCING, parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.media import ffmpeg
from skyreels_v2_infer.run.main import main

if __name__ == "__main__":
    seconds, script, *argv = sys.argv[1:]
    ffmpeg.READING_PATIENCE = ffmpeg.WRITING_PATIENCE = float(seconds)
    sys.exit(main(script, parse_diffusion_forcing if script == DIFFUSION_FORCING else parse_generate, argv))
