"""What torchrun starts in `test_distributed.py`: one of the two scripts, watched.

``tests/script_ranks.py SCRIPT ...``: rank 0 also writes its frames to ``frames.npy``, since in a video the coder hides
or enlarges small differences. With FAILING_RANK in the environment that rank fails when it has loaded its model.
"""

import os
import sys

import numpy as np

from skyreels_v2_infer import cli, run

PARSE = {"generate_video.py": cli.parse_generate, "generate_video_df.py": cli.parse_diffusion_forcing}
START = {"generate_video.py": run.generate, "generate_video_df.py": run.generate_df}
script, *argv = sys.argv[1:]


def watched(pieces):
    seen = []
    for piece in pieces:
        seen.append(piece)
        yield piece
    np.save("frames.npy", np.concatenate(seen))


def start(job):
    pieces = START[script](job)
    if str(job.team.rank) == os.environ.get("FAILING_RANK"):
        raise RuntimeError(f"a fault of rank {job.team.rank}")
    return pieces if job.team.rank else watched(pieces)


sys.exit(run.main(script, PARSE[script], start, argv))
