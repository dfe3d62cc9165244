"""A script as a user starts it, with a slow model: slowed.py SECONDS BEAT SCRIPT [FLAGS ...].

SECONDS: that every forward pass and every read tensor takes longer. BEAT: seconds between lines in a log.
"""

import sys
import time
from pathlib import Path

seconds, beat, script, *argv = sys.argv[1:]
sys.path.insert(0, str(Path(__file__).parents[2]))

from skyreels_v2_infer import progress  # noqa: E402
from skyreels_v2_infer.cli.arguments import DIFFUSION_FORCING, parse_diffusion_forcing, parse_generate  # noqa: E402
from skyreels_v2_infer.run.main import main  # noqa: E402
from skyreels_v2_infer.run.session import Session  # noqa: E402


class Slowed(Session):
    def load(self) -> None:
        if self._pipeline is None:
            time.sleep(10 * float(seconds))
        super().load()
        transformer, texts = self._pipeline.transformer, self._pipeline.text_encoder.model
        transformer.register_forward_pre_hook(lambda *_: time.sleep(float(seconds)))
        texts.register_forward_pre_hook(lambda *_: time.sleep(10 * float(seconds)))


if __name__ == "__main__":
    progress.BOARD.beat = float(beat)
    parse = parse_diffusion_forcing if script == DIFFUSION_FORCING else parse_generate
    sys.exit(main(script, parse, argv, Slowed))
