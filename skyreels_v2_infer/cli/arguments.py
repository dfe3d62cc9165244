"""argv -> frozen settings, or one line on stderr and exit code 2.

Whatever can be rejected without a model is rejected here, before torch is imported and before anything is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from skyreels_v2_infer.cli import checks
from skyreels_v2_infer.cli.batch import JobList, read_jobs
from skyreels_v2_infer.cli.parser import DIFFUSION_FORCING, GENERATE, CommandError, Parser
from skyreels_v2_infer.cli.replay import replayed_flags
from skyreels_v2_infer.cli.run_flags import add_jobs, add_machine, add_output, add_ranks, add_speed
from skyreels_v2_infer.cli.settings import DiffusionForcingSettings, GenerateSettings
from skyreels_v2_infer.cli.video_flags import (
    add_content,
    add_diffusion_forcing,
    add_diffusion_forcing_content,
    add_model,
    add_sampling,
    add_shape,
)
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.launch import Launch

SHARED = frozenset(field.name for field in dataclasses.fields(GenerateSettings))


def parse_generate(argv: Sequence[str]) -> GenerateSettings | JobList:
    """The settings in `argv` (without the program's name); with --jobs or --sweep those of every video.

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        GENERATE,
        "Make a video from a text, or from a text and a first image, in one piece.",
        'example: %(prog)s --prompt "A red kite over the dunes" --seed 7',
        elsewhere={
            f"--{field.name}": DIFFUSION_FORCING
            for field in dataclasses.fields(DiffusionForcingSettings)
            if field.name != "prompts" and field.name not in SHARED  # prompts: several values of --prompt
        },
    )
    add_content(parser)
    add_shape(parser)
    add_sampling(parser)
    add_model(parser, model_id="Skywork/SkyReels-V2-T2V-14B-540P")
    add_output(parser)
    add_machine(parser)
    add_speed(parser)
    add_ranks(parser)
    add_jobs(parser)
    return _settings(parser, argv, checks.generate_settings)


def parse_diffusion_forcing(argv: Sequence[str]) -> DiffusionForcingSettings | JobList:
    """The settings in `argv` (without the program's name); with --jobs or --sweep those of every video.

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        DIFFUSION_FORCING,
        "Make a video of any length from a text, and optionally from a first image, a last image, or a video to "
        "continue. Long videos are made window by window.",
        'example, 10 seconds: %(prog)s --num_frames 257 --overlap_history 17 --prompt "A red kite over the dunes"; '
        "5 more seconds of a video: %(prog)s --video_path kite.mp4 --num_frames 120 --overlap_history 17",
        elsewhere={},
    )
    add_diffusion_forcing_content(add_content(parser, forcing=True))
    add_shape(parser)
    add_sampling(parser)
    add_diffusion_forcing(parser)
    add_model(parser, model_id="Skywork/SkyReels-V2-DF-1.3B-540P")
    add_output(parser)
    add_machine(parser)
    add_speed(parser)
    add_ranks(parser)
    add_jobs(parser)
    return _settings(parser, argv, checks.forcing_settings)


def _settings(parser: Parser, argv: Sequence[str], settle: Callable) -> GenerateSettings | JobList:
    """The settings in `argv`, or those of every row of a job file."""
    try:
        args, launch = parser.read(argv), Launch.from_environment()
        if args.jobs is None and args.sweep is None:
            checks.check_no_jobs(args)
            return _of_one(parser, argv, settle, launch)
        return read_jobs(parser, argv, args, launch, lambda words, group: _of_one(parser, words, settle, group))
    except (CommandError, InputError) as error:
        parser.refuse(error)


def _of_one(parser: Parser, argv: Sequence[str], settle: Callable, launch: Launch) -> GenerateSettings:
    """The settings of one video, after those of the video that --replay names."""
    args = parser.read(argv)
    if args.replay is not None:
        written = replayed_flags(args.replay, parser.prog, argv, args.trust_replay)
        args = parser.read([*written, *argv])
    elif args.trust_replay:
        raise InputError("trust_replay", None, "has no effect without --replay")
    return settle(args, launch)
