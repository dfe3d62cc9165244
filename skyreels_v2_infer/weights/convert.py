"""Convert a transformer between its forms: ``python -m skyreels_v2_infer.weights.convert --help``."""

import argparse
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from skyreels_v2_infer import embedded
from skyreels_v2_infer.errors import InputError, first_line, printable
from skyreels_v2_infer.progress import doing, speaking
from skyreels_v2_infer.weights.conversion import DTYPES, FORMS, SCALED, SHARD_SIZE, convert


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, printable(f"{self.prog}: {message.removeprefix('argument ')}") + "\n")


def lora_of(text: str) -> tuple[Path, float]:
    """FILE or FILE:STRENGTH; what follows the last colon is part of the name if it is no number."""
    name, _, strength = text.rpartition(":")
    try:
        value = float(strength)
    except ValueError:
        return Path(text), 1.0
    if not name:
        return Path(text), 1.0
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text}: the strength must be a finite number")
    return Path(name), value


def gigabytes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: must be a number of gigabytes above 0")
    return value


def parser() -> Parser:
    made = Parser(
        prog="python -m skyreels_v2_infer.weights.convert",
        description="Convert a transformer between the original, the diffusers and the single-file form.",
        epilog="The result is one for --dit_path. It appears once it is complete, and its name is printed.",
        allow_abbrev=False,
    )
    made.add_argument(
        "source", metavar="SOURCE", help="folder, file or hub id, in any form that --dit_path reads; tiny"
    )
    made.add_argument("out", metavar="OUT", type=Path, help="folder or .safetensors file to write; must not exist")
    made.add_argument("--to", choices=FORMS, required=True, help="form to write")
    made.add_argument(
        "--dtype",
        choices=DTYPES,
        help=f"number format; {SCALED} (for --to file): the blocks' linear layers in float8 with scales, the rest as "
        "stored (default: as stored; quantised weights become bfloat16)",
    )
    made.add_argument(
        "--lora",
        metavar="FILE[:STRENGTH]",
        type=lora_of,
        action="append",
        default=[],
        help="LoRA to add to the weights; repeatable",
    )
    made.add_argument(
        "--shard_size",
        metavar="GB",
        type=gigabytes,
        default=SHARD_SIZE,
        help="of a folder's files (default: %(default)g)",
    )
    return made


def main(argv: Sequence[str] | None = None) -> int:
    command = parser()
    args = command.parse_args(argv)
    source = embedded.folder(image_to_video=False) if args.source == embedded.NAME else args.source
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what is half written is removed
    try:
        with bar() as progress:
            made = convert(source, args.out, args.to, args.dtype, args.lora, args.shard_size, progress)
        print(made)
    except InputError as error:
        argument = {"source": "SOURCE", "out": "OUT"}.get(error.name, f"--{error.name}")
        command.error(f"{argument} {error.value}: {error.legal}")
    except (OSError, RuntimeError) as error:
        command.exit(1, printable(f"{command.prog}: {first_line(error)}; nothing was written") + "\n")
    except KeyboardInterrupt:
        command.exit(130, f"{command.prog}: interrupted; nothing was written\n")
    return 0


@contextmanager
def bar() -> Iterator[Callable[[int, int], None]]:
    """Context manager with a function that shows progress in bytes."""
    with speaking(), doing("converting", unit="B") as shown:

        def progress(done: int, total: int) -> None:
            shown.done, shown.total = done, total

        yield progress


if __name__ == "__main__":
    raise SystemExit(main())
