#!/usr/bin/env python
# PYTHON_ARGCOMPLETE_OK
"""Videos to structured captions, and to prompts. `--help` lists the flags."""

import sys

from skyreels_v2_infer.run.signals import before_anything


def main() -> int:
    with before_anything("caption_video.py", "no caption was written"):
        from skyreels_v2_infer.run.captions import CaptionWork
        from skyreels_v2_infer.run.main import run_process

    return run_process("caption_video.py", CaptionWork())


if __name__ == "__main__":
    sys.exit(main())
