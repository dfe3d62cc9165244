"""argv -> frozen settings, or one line on stderr and exit code 2.

Whatever can be rejected without a model is rejected here, before torch is imported and before anything is written.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
from collections.abc import Callable, Sequence

from skyreels_v2_infer.cli import checks
from skyreels_v2_infer.cli.batch import JobList, read_jobs
from skyreels_v2_infer.cli.config_file import configured
from skyreels_v2_infer.cli.help import ABOUT, DIFFUSION_FORCING, GENERATE
from skyreels_v2_infer.cli.model_ids import listing
from skyreels_v2_infer.cli.parser import CommandError, Parser
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

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help and the like.
    """
    elsewhere = {
        f"--{field.name}": DIFFUSION_FORCING
        for field in dataclasses.fields(DiffusionForcingSettings)
        if field.name != "prompts" and field.name not in SHARED  # prompts: several values of --prompt
    }
    parser = Parser(GENERATE, ABOUT[GENERATE], 'example: %(prog)s --prompt "A red kite over the dunes"', elsewhere)
    add_content(parser)
    add_model(parser, model_id="Skywork/SkyReels-V2-T2V-14B-540P")
    add_output(parser)
    add_shape(parser)
    add_sampling(parser)
    _add_run(parser)
    return _settings(parser, argv, checks.generate_settings)


def parse_diffusion_forcing(argv: Sequence[str]) -> DiffusionForcingSettings | JobList:
    """The settings in `argv` (without the program's name); with --jobs or --sweep those of every video.

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help and the like.
    """
    parser = Parser(
        DIFFUSION_FORCING,
        ABOUT[DIFFUSION_FORCING],
        'example, 10 seconds: %(prog)s --num_frames 257 --overlap_history 17 --prompt "A red kite over the dunes"; '
        "5 more seconds of a video: %(prog)s --video_path kite.mp4 --num_frames 120 --overlap_history 17",
        elsewhere={},
    )
    add_diffusion_forcing_content(add_content(parser, forcing=True))
    add_model(parser, model_id="Skywork/SkyReels-V2-DF-1.3B-540P")
    add_output(parser)
    add_shape(parser)
    add_sampling(parser)
    add_diffusion_forcing(parser)
    _add_run(parser)
    return _settings(parser, argv, checks.forcing_settings)


def _add_run(parser: Parser) -> None:
    add_machine(parser)
    add_speed(parser)
    add_ranks(parser)
    add_jobs(parser)
    parser.add_help_flags(listing)


def _settings(parser: Parser, argv: Sequence[str], settle: Callable) -> GenerateSettings | JobList:
    """The settings in `argv`, or those of every row of a job file."""
    parser.complete()
    try:
        launch = Launch.from_environment()
        config, typed, argv = configured(parser, argv, _read(parser, argv))
        args = _read(parser, argv)
        if args.jobs is None and args.sweep is None:
            checks.check_no_jobs(args)
            return _of_one(parser, argv, settle, launch)
        args = parser.read(argv)

        def settle_one(words: Sequence[str], group: Launch) -> GenerateSettings:
            return _of_one(parser, words, settle, group)

        return read_jobs(parser, typed, args, launch, settle_one, config)
    except (CommandError, InputError) as error:
        parser.refuse(error)


def _read(parser: Parser, argv: Sequence[str]) -> argparse.Namespace:
    """What `argv` says, as far as it can be parsed; what is wrong with it is reported later, all at once."""
    try:
        return parser.read(argv)
    except CommandError as error:
        if error.parsed is None:
            raise
        return error.parsed


def _of_one(parser: Parser, argv: Sequence[str], settle: Callable, launch: Launch) -> GenerateSettings:
    """The settings of one video, after those of the video that --replay names."""
    try:
        args = parser.read(argv)
    except CommandError as error:
        raise CommandError("; ".join([str(error), *_also_wrong(error, settle, launch)])) from None
    if args.replay is not None:
        written = replayed_flags(args.replay, parser.script, argv, args.trust_replay)
        args = parser.read([*written, *argv], overridden=True)
    elif args.trust_replay:
        raise InputError("trust_replay", None, "has no effect without --replay, or a manifest as --config")
    return settle(args, launch)


def _also_wrong(error: CommandError, settle: Callable, launch: Launch) -> list[str]:
    """What else is wrong with a command that could not be parsed, apart from what may follow from that."""
    args = error.parsed
    if args is None or args.replay is not None:
        return []
    addresses = [name for name in ("image", "end_image") if isinstance(vars(args).get(name), str)]
    for name in addresses:
        setattr(args, name, None)  # nothing is downloaded for a command that is refused
    try:
        settle(args, launch)
        checks.check_published_type(args)
    except InputError as wrong:
        follows = re.compile(f"({'|'.join(map(re.escape, error.flags))})(?!\\w)")
        return [str(each) for each in wrong.each if each.name not in addresses and not follows.search(str(each))]
    except OSError:
        pass
    return []
