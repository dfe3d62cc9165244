"""argv of caption_video.py -> frozen settings, or one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from skyreels_v2_infer.cli.checks import check_outdir
from skyreels_v2_infer.cli.parser import CommandError, Parser
from skyreels_v2_infer.cli.reading import device_name, one_of, some_path, some_text, whole
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.models import CAPTIONER, ENHANCER, HUB_ID, NO_MODEL

CAPTION = "caption_video.py"
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True, kw_only=True)
class CaptionSettings:
    """Validated settings of `caption_video.py`.

    input: files, folders, patterns, tables; empty: the videos of `score`. output: a .csv or .jsonl. task: struct, t2v
    or i2v. drop_fields: a seed; None: all are kept. instruction: None: our own. fusion_model: None: by rule. backend:
    transformers or vllm, without an endpoint. endpoint: address of an API; None: models run here. bs: clips that are
    captioned together. tp: GPUs that share a model. device: None: cuda if there is one.
    """

    input: tuple[str, ...]
    output: Path
    task: str
    sampling: str
    scenes: bool
    drop_fields: int | None
    score: Path | None
    instruction: Path | None
    model_id: str
    fusion_model: str | None
    backend: str
    endpoint: str | None
    bs: int
    tp: int
    device: str | None
    dry_run: str | None


def parse_captions(argv: Sequence[str]) -> CaptionSettings:
    """The settings in `argv` (without the program's name).

    Raises SystemExit: 2 after one line on stderr about what is wrong, 0 after --help.
    """
    parser = Parser(
        CAPTION,
        "Describe videos as structured captions (JSON), and turn these into prompts.",
        "example: %(prog)s --input clips/ --output captions.csv --task t2v",
        elsewhere={},
    )
    _add_files(parser)
    _add_models(parser)
    parser.add_help_flags()
    try:
        parser.complete()
        return _checked(parser.read(argv))
    except (CommandError, InputError) as error:
        parser.refuse(error)


def _add_files(parser: Parser) -> None:
    group = parser.add_argument_group("videos and captions")
    group.add_argument(
        *("--input", "--input_csv"),
        metavar="PATH",
        nargs="+",
        type=some_text,
        help="videos, folders, patterns (quoted: 'clips/*.mp4'), and .csv or .jsonl tables with a column path, whose "
        "other columns are kept; a row with a structural_caption is not captioned again",
    )
    group.add_argument(
        *("--output", "--out_csv"),
        metavar="FILE",
        type=some_path,
        default=Path("captions.jsonl"),
        help="table to write, .jsonl or .csv; it grows row by row, and the same command adds what is missing "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--task",
        metavar="{struct,t2v,i2v}",
        type=one_of("struct", "t2v", "i2v"),
        default="struct",
        help="struct: structured captions; t2v, i2v: also prompts made from them, for text-to-video or for "
        "image-to-video models (default: %(default)s)",
    )
    group.add_argument(
        "--sampling",
        metavar="{faithful,better}",
        type=one_of("faithful", "better"),
        default="faithful",
        help="faithful: 16 frames squashed to 360x420, as in training; better: the aspect is kept and the last frame "
        "is among them (default: %(default)s)",
    )
    group.add_argument(
        "--instruction",
        metavar="FILE",
        type=some_path,
        help="text to ask the captioner with, in place of this program's; the model was trained on one fixed wording "
        "(docs/captioning.md)",
    )
    group.add_argument(
        "--scenes",
        action="store_true",
        help="a caption for each shot of a video, where PySceneDetect finds cuts, in place of one for all of it",
    )
    group.add_argument(
        "--drop_fields",
        metavar="SEED",
        type=whole(0, 2**63 - 1),
        help="--task t2v, i2v: for training data, leave out each appearance, position and (t2v) lighting with a chance "
        "of 10%%; the same seed leaves out the same ones (default: all are kept)",
    )
    group.add_argument(
        "--score",
        metavar="FILE",
        type=some_path,
        help="table of reference captions; prints how well --output agrees with it, field by field, after its videos "
        "(or those of --input) have been captioned",
    )
    group.add_argument(
        "--dry_run",
        metavar="json",
        nargs="?",
        const="table",
        type=one_of("table", "json"),
        help="only print what captions and prompts of all rows take; needs no weights (--dry_run json: as JSON)",
    )


def _add_models(parser: Parser) -> None:
    group = parser.add_argument_group("models and machine")
    group.add_argument(
        *("--model_id", "--model_path"),
        metavar="ID",
        type=some_text,
        default=CAPTIONER,
        help="captioner, a Qwen2.5-VL: a hub id, downloaded on first use, or a folder (default: %(default)s)",
    )
    group.add_argument(
        "--fusion_model",
        metavar="ID",
        type=some_text,
        help="chat model that writes the prompts of --task t2v and i2v, a hub id or a folder; none: sentences by rule, "
        f"without a model (default: {ENHANCER}, needs 65 GB)",
    )
    group.add_argument(
        "--backend",
        metavar="{transformers,vllm}",
        type=one_of("transformers", "vllm"),
        help="what runs the models; vllm has to be installed (default: transformers)",
    )
    group.add_argument(
        "--endpoint",
        metavar="URL",
        type=some_text,
        help="OpenAI-compatible API that has the models, as http://localhost:8000/v1 of `vllm serve`; clips are sent "
        "there. A key is read from the environment variable OPENAI_API_KEY",
    )
    group.add_argument(
        "--bs",
        metavar="N",
        type=whole(1, 1024),
        default=4,
        help="clips captioned together; --endpoint: requests at a time (default: %(default)s)",
    )
    group.add_argument(
        "--tp", metavar="N", type=whole(1, 1024), default=1, help="--backend vllm: GPUs that share a model (default: 1)"
    )
    group.add_argument(
        "--device", type=device_name, help="cpu, cuda, cuda:1, mps, ... (default: cuda if there is one, else cpu)"
    )


def _checked(args: argparse.Namespace) -> CaptionSettings:
    inputs = args.input or []
    if not inputs and args.score is None:
        raise InputError("input", None, "is needed: videos, folders, patterns, .csv or .jsonl tables")
    check_output(args.output, [*inputs, *([] if args.score is None else [str(args.score)])])
    if args.scenes:
        check_scenes()
    if args.drop_fields is not None and args.task == "struct":
        raise InputError("drop_fields", args.drop_fields, "has no effect without --task t2v or --task i2v")
    if args.fusion_model is not None and args.task == "struct":
        raise InputError("fusion_model", args.fusion_model, "has no effect without --task t2v or --task i2v")
    fusion_model = args.fusion_model or ENHANCER
    if args.endpoint is not None:
        check_endpoint(args)
    else:
        check_model("model_id", args.model_id)
        if fusion_model != NO_MODEL:
            check_model("fusion_model", fusion_model)
        check_backend(args)
    return CaptionSettings(
        input=tuple(inputs),
        output=args.output,
        task=args.task,
        sampling=args.sampling,
        scenes=args.scenes,
        drop_fields=args.drop_fields,
        score=args.score,
        instruction=args.instruction,
        model_id=args.model_id,
        fusion_model=None if args.task == "struct" or fusion_model == NO_MODEL else fusion_model,
        backend=args.backend or "transformers",
        endpoint=args.endpoint,
        bs=args.bs,
        tp=args.tp,
        device=args.device,
        dry_run=args.dry_run,
    )


def check_scenes() -> None:
    """Raises an `InputError` unless PySceneDetect 0.7 or newer is installed."""
    version = ""
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version("scenedetect")
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < (0, 7):
        raise InputError("scenes", None, "needs PySceneDetect: pip install 'scenedetect>=0.7'")


def check_output(output: Path, inputs: Sequence[str]) -> None:
    """Raises an `InputError` unless a table can be written there that is none of the inputs."""
    if output.suffix.lower() not in SUFFIXES:
        raise InputError("output", output, f"must end in {' or '.join(SUFFIXES)}")
    if output.is_dir():
        raise InputError("output", output, "is a folder")
    if output.is_symlink() or (output.exists() and not output.is_file()):  # a link could lead out of a shared folder
        raise InputError("output", output, "must be a file, not a link or a device")
    for given in inputs:
        if os.path.exists(given) and os.path.exists(output) and os.path.samefile(given, output):
            raise InputError("output", output, "is an input as well")
    try:
        check_outdir(output.parent)
    except InputError as error:
        raise InputError("output", output, f"its folder {error.legal}") from None


def check_model(name: str, model: str) -> None:
    if not os.path.isdir(model) and (not HUB_ID.fullmatch(model) or re.search("^[.~/]", model)):
        raise InputError(name, model, "is neither a folder nor the name of a model (owner/name)")


def check_endpoint(args: argparse.Namespace) -> None:
    """--endpoint, and the flags that have no effect with it."""
    known = re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", args.endpoint)
    known = known and args.endpoint.isascii() and args.endpoint.isprintable()
    try:
        parts = urlsplit(args.endpoint)
        known = known and parts.hostname and parts.port != 0
    except ValueError:  # brackets that hold no address, a port that is no number
        known = None
    if not known:
        raise InputError("endpoint", args.endpoint, "must be an address like http://localhost:8000/v1")
    for name in ("backend", "device"):
        if getattr(args, name) is not None:
            raise InputError(name, getattr(args, name), "has no effect with --endpoint")
    if args.tp > 1:
        raise InputError("tp", args.tp, "has no effect with --endpoint")


def check_backend(args: argparse.Namespace) -> None:
    """What runs models here, and whether it is installed."""
    if args.backend == "vllm":
        if args.device is not None:
            raise InputError("device", args.device, "has no effect with --backend vllm, which takes the first GPUs")
        if find_spec("vllm") is None:
            raise InputError("backend", "vllm", "needs vllm: pip install vllm")
        return
    if args.tp > 1:
        raise InputError("tp", args.tp, "needs --backend vllm; transformers spreads a model over all GPUs by itself")
    if find_spec("accelerate") is None and args.device != "cpu":
        raise InputError("backend", "transformers", "needs accelerate: pip install accelerate")
