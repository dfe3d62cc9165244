"""A script as a user starts it with --ray, whose workers wait: held_cluster.py SCRIPT [FLAGS ...].

As long as a file HOLD is in the working directory, a worker begins no second window; it can be stopped meanwhile.
"""

import sys
import time
from pathlib import Path

from skyreels_v2_infer.cli.arguments import DIFFUSION_FORCING, parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.run import cluster
from skyreels_v2_infer.run.main import main

HOLD = "hold"


class HeldWorker(cluster.RayWorker):
    """Ray sends a class of the main module to its workers as it is."""

    def _follow(self, check, lines):
        followed = super()._follow(check, lines)
        real = followed.rows

        def rows(window: int):
            while window and Path(HOLD).exists():
                check()
                time.sleep(0.02)
            return real(window)

        followed.rows = rows
        return followed


if __name__ == "__main__":
    script, *argv = sys.argv[1:]
    cluster.RayWorker = HeldWorker
    sys.exit(main(script, parse_diffusion_forcing if script == DIFFUSION_FORCING else parse_generate, argv))
