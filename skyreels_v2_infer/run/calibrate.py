"""Measure what a cache has to know of a model: ``python -m skyreels_v2_infer.run.calibrate --help``."""

import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.cli.planning import plan_without_model
from skyreels_v2_infer.cli.settings import GenerateSettings, replaced_parts
from skyreels_v2_infer.errors import first_line
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.modules.caches import magcache, teacache
from skyreels_v2_infer.plan.caching import DEGREE, FILE, RATIOS_FILE, UNUSABLE
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.progress import VideoProgress, speaking
from skyreels_v2_infer.run.files import write_whole
from skyreels_v2_infer.run.inputs import read_images
from skyreels_v2_infer.run.model_files import cache_folder
from skyreels_v2_infer.run.sizes import chosen_memory

FILES = {"teacache": FILE, "magcache": RATIOS_FILE}


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of()
    args, others = parser.parse_known_args(argv)
    parse = parse_diffusion_forcing if args.forcing else parse_generate
    settings = parse(["--model_id", args.model_id, *others])
    if not isinstance(settings, GenerateSettings):
        parser.error("--jobs, --sweep: cannot be used for a calibration; give several values of --prompt")
    if args.forcing and args.cache == "teacache":
        parser.error("--forcing: only with --cache magcache; TeaCache is fitted where all frames share a timestep")
    if args.cache == "teacache" and settings.inference_steps < DEGREE + 2:  # a point for each step but the first
        parser.error(f"--inference_steps {settings.inference_steps}: must be at least {DEGREE + 2}")
    for name in ("use_usp", "video_path", "sigmas"):
        if getattr(settings, name, None):
            parser.error(f"--{name}: cannot be used for a calibration")
    try:
        from skyreels_v2_infer.weights.locate import compose

        plan = plan_without_model(settings).with_seed(settings.seed or 0)
        checkpoint = compose(settings.model_id, replaced_parts(settings))
        out = args.out or cache_folder(checkpoint) / FILES[args.cache]
        if not os.access(out.parent, os.W_OK):  # checked before the work, not after it
            parser.error(f"--out {out}: {out.parent} must be a folder that can be written to")
        known = known_tables(out) if args.cache == "magcache" else []
        recording = teacache.Recording() if args.cache == "teacache" else magcache.Recording(plan.num_inference_steps)
        with speaking():
            record(recording, checkpoint, settings, [plan.with_prompt(prompt) for prompt in args.prompt])
    except ValueError as error:
        parser.error(first_line(error))
    except OSError as error:
        parser.exit(1, f"{parser.prog}: failed: {first_line(error)}; nothing was written\n")
    if args.cache == "teacache":
        found = teacache.fit([change for window in recording.windows for change in window])
    else:
        table = {"shift": settings.shift, "steps": settings.inference_steps, "ratios": recording.ratios()}
        others = [t for t in known if (t["shift"], t["steps"]) != (table["shift"], table["steps"])]
        found = {"tables": [*others, table]}
    write_whole(out, lambda file: file.write(f"{json.dumps(found, indent=1)}\n".encode()))
    print(out)
    return 0


def parser_of():
    import argparse

    parser = argparse.ArgumentParser(
        prog=f"python -m {__spec__.name}",
        description="Run prompts without a cache, and write what a cache has to know of a model into its folder: "
        f"TeaCache's coefficients ({FILE}), or MagCache's ratios ({RATIOS_FILE}), which are for one --shift and "
        "--inference_steps; those of others in the file are kept.",
        epilog="All other flags are those of generate_video.py, with --forcing those of generate_video_df.py.",
        allow_abbrev=False,
    )
    parser.add_argument("--cache", choices=FILES, default="teacache", help="default: %(default)s")
    parser.add_argument("--model_id", required=True, help="a folder, a published model or tiny")
    parser.add_argument("--prompt", nargs="+", default=["a swan on a lake", "a red kite over the dunes"])
    parser.add_argument("--out", type=Path, help="file to write (default: in the model's folder)")
    parser.add_argument("--forcing", action="store_true", help="make the videos as generate_video_df.py does")
    return parser


def known_tables(file: Path) -> list[dict]:
    """The tables in a `RATIOS_FILE`.

    Raises:
        ValueError: it is something else.
    """
    if not file.exists():
        return []
    try:
        tables = json.loads(read_small(file))["tables"]
        return [{name: table[name] for name in ("shift", "steps", "ratios")} for table in tables]
    except UNUSABLE as error:
        raise ValueError(f"--out {file}: exists and has no tables ({first_line(error)})") from error


def record(recording, checkpoint, settings: GenerateSettings, plans: Sequence[Plan]) -> None:
    """Makes the videos of the plans, without writing them, with a recording in place of a cache."""
    from skyreels_v2_infer.distributed.team import Team
    from skyreels_v2_infer.distributed.xdit_context_parallel import alone
    from skyreels_v2_infer.pipelines.history import Resume
    from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
    from skyreels_v2_infer.run.session import Session
    from skyreels_v2_infer.runtime import Placement

    inputs = read_images(settings)
    place = Placement.choose(settings.device, settings.dtype)
    dtype, on_cpu = str(place.dtype).removeprefix("torch."), place.device.type == "cpu"
    chosen = chosen_memory(settings, plans[0], checkpoint.transformer_config, dtype, place.free_gib(), on_cpu)
    session = Session(
        checkpoint,
        place,
        Team(),
        holding=chosen.holding,
        vae_dtype=settings.vae_dtype,
        attention=settings.attention,
        loras=plans[0].first_loras,
        loras_change=plans[0].lora_strengths_change,
        compiled=settings.compile == "on",
        quantize=settings.quantize,
        dequantize=settings.weights == "dequantize",
    )
    session.load()
    hooks = Hooks(partial(VideoProgress, lines=True), recording, Ranks.of(alone(session.attention)))
    for plan in plans:
        for _ in session.execute(plan, inputs, Resume(), hooks):
            pass


if __name__ == "__main__":
    raise SystemExit(main())
