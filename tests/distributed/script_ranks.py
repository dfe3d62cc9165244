"""What torchrun starts in `test_distributed.py`: one of the two scripts, watched.

``script_ranks.py SCRIPT ...``: rank 0 also writes its frames to ``frames.npy``, since in a video the coder hides
or enlarges small differences. With FAILING_RANK in the environment that rank fails when it has loaded its model; with
SILENCE, a rank counts as gone after so many seconds. With STOPPED in the environment rank 1 stops before the third
window.
"""

import os
import signal
import sys
from dataclasses import replace

import numpy as np

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.distributed import heartbeat
from skyreels_v2_infer.pipelines.conditioning import to_frames
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.run import main as run
from skyreels_v2_infer.run.session import Session

PARSE = {"generate_video.py": cli.parse_generate, "generate_video_df.py": cli.parse_diffusion_forcing}
script, *argv = sys.argv[1:]
heartbeat.SILENCE = float(os.environ.get("SILENCE", heartbeat.SILENCE))


def watched(parts):
    seen = []

    def noted(pieces):
        for piece in pieces:
            seen.append(to_frames(piece[:1])[0])
            yield piece

    for part in parts:
        yield replace(part, pieces=noted(part.pieces))
    np.save("frames.npy", np.concatenate(seen))


class Stopped(VideoProgress):
    def rows(self, window):
        if window == 2:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().rows(window)


class Watched(Session):
    def __init__(self, *given, **more):
        super().__init__(*given, **more)
        if self.team.rank == 1 and "STOPPED" in os.environ:
            self.progress = Stopped

    def execute(self, *given):
        if str(self.team.rank) == os.environ.get("FAILING_RANK"):
            raise RuntimeError(f"a fault of rank {self.team.rank}")
        parts = super().execute(*given)
        return parts if self.team.rank else watched(parts)


sys.exit(run.main(script, PARSE[script], argv, Watched))
