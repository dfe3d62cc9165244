"""Runs a script and counts, in this process, what must happen once: ``counted.py OUT SCRIPT ARGUMENTS...``."""

import functools
import json
import os
import runpy
import sys
from collections import Counter
from pathlib import Path

out, script, *argv = sys.argv[1:]
sys.path.insert(0, str(Path(script).parent))

from skyreels_v2_infer.media import ffmpeg, images, read  # noqa: E402
from skyreels_v2_infer.plan import plan  # noqa: E402

counts: Counter = Counter()


def counted(owner, name: str, label: str) -> None:
    real = getattr(owner, name)

    @functools.wraps(real)
    def call(*given, **more):
        counts[label] += 1
        return real(*given, **more)

    setattr(owner, name, call)


# Before the modules that import them by name are imported.
counted(plan, "make_plan", "plans")
counted(plan, "flow_sigmas", "noise levels")
counted(plan, "plan_windows", "windows")
counted(images, "read_image", "images")
counted(read, "decode_prefix", "videos")
counted(read, "probe_video", "counted videos")
counted(ffmpeg, "decode_arguments", "decoding processes")

from skyreels_v2_infer import runtime  # noqa: E402

choose = runtime.Placement.choose
runtime.Placement.choose = staticmethod(lambda *given: counts.update(["placements"]) or choose(*given))
sys.argv = [script, *argv]
try:
    runpy.run_path(script, run_name="__main__")
finally:
    Path(f"{out}{os.environ.get('RANK', '')}").write_text(json.dumps(counts))
