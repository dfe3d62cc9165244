"""Fit TeaCache's coefficients to a checkpoint: ``python -m skyreels_v2_infer.run.calibrate --help``."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.modules.caches.teacache import Recording, fit
from skyreels_v2_infer.plan.caching import DEGREE, FILE
from skyreels_v2_infer.run.files import write_whole


def main(argv: Sequence[str] | None = None) -> int:
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description="Fit TeaCache's coefficients to a text-to-video or diffusion-forcing checkpoint: runs prompts "
        f"without a cache, and writes {FILE} into the checkpoint's folder (or to --out).",
    )
    parser.add_argument("--model_id", required=True, help="a folder, a published model or tiny")
    parser.add_argument("--prompt", nargs="+", default=["a swan on a lake", "a red kite over the dunes"])
    parser.add_argument("--out", type=Path, help=f"file to write (default: {FILE} in the checkpoint's folder)")
    names = ("height", "width", "num_frames", "inference_steps", "guidance_scale", "shift")
    for name in names:
        kind = float if name in ("guidance_scale", "shift") else int
        parser.add_argument(f"--{name}", type=kind, help="default: as in generate_video.py")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device")
    args = parser.parse_args(argv)

    from skyreels_v2_infer import Text2VideoPipeline
    from skyreels_v2_infer.cli.arguments import parse_generate
    from skyreels_v2_infer.pipelines.hooks import Hooks
    from skyreels_v2_infer.run.session import show_rows
    from skyreels_v2_infer.weights.locate import Checkpoint

    given = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    settings = parse_generate([f"--{name}={value}" for name, value in ({"model_id": args.model_id} | given).items()])
    if settings.inference_steps < DEGREE + 2:  # every step but the first gives a point for the fit
        parser.error(f"--inference_steps {settings.inference_steps}: must be at least {DEGREE + 2}")
    try:
        checkpoint = Checkpoint.open(settings.model_id)
        out = args.out or checkpoint.folder / FILE
        if not os.access(out.parent, os.W_OK):  # checked before the work, not after it
            parser.error(f"--out {out}: {out.parent} must be a folder that can be written to")
        recording = Recording()
        hooks = Hooks(partial(show_rows, lambda: None), recording)
        pipeline = Text2VideoPipeline(checkpoint, device=args.device, hooks=hooks)
        options = {name: getattr(settings, name) for name in names if name != "inference_steps"}
        options |= {"num_inference_steps": settings.inference_steps, "seed": args.seed, "output_type": "latent"}
        for prompt in args.prompt:
            pipeline(prompt, settings.negative_prompt, **options)
    except ValueError as error:
        parser.error(first_line(error))
    found = fit([change for window in recording.windows for change in window])
    write_whole(out, lambda file: file.write(f"{json.dumps(found, indent=1)}\n".encode()))
    print(out)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
