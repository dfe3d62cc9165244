"""--jobs and --sweep: rows of flags -> the settings of every video.

A row together with the command line is itself a command line, that of the video alone, and is read as such: the flags
of the command line, those of the row in their place where it has some, and the values of the sweep.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from skyreels_v2_infer.cli.config_file import Config
from skyreels_v2_infer.cli.groups import processes_of_a_job
from skyreels_v2_infer.cli.job_files import MOST_ROWS, STDIN, RawRow, read_job_file
from skyreels_v2_infer.cli.names import labels_of, name_fields, stem_of, tells_apart
from skyreels_v2_infer.cli.parser import CommandError, Parser
from skyreels_v2_infer.cli.row_words import flags_of, shown, words_of
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.cli.sweep import Sweep, combinations, slurm_shard
from skyreels_v2_infer.errors import InputError, first_line, printable
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.media.download import download_video
from skyreels_v2_infer.media.images import download_image

# Flags about the command as a whole, which no row can have.
OF_THE_COMMAND = ("jobs", "sweep", "keep_going", "gpus_per_job", "shard", "ray", "resume", "dry_run", "use_usp")
# These too, but they are part of the command of one video.
ALSO_ALONE = ("outdir", "frames_dir", "device", "trust_replay", "no_report", "config", "rate")
ADDRESSES = ("image", "end_image", "video_path")
# What the prompts of a video depend on, and whether it needs a seed.
TEXTUAL = ("prompt", "story", "fps", "model_id", "replay", "trust_replay", "seed")
SHOWN = 50  # invalid rows that are listed
SEEDS = 2**32  # derived seeds are below this, as drawn ones

Settle = Callable[[Sequence[str], Launch], GenerateSettings]


@dataclass(frozen=True)
class JobRow:
    """One video of a batch.

    Attributes:
        number: among all videos of the batch, from 1.
        source: where it is from, for messages: the job file and the row, and the values of the sweep.
        swept: the values of the sweep, as text.
        command: arguments that make the same video by themselves.
        settings: with a seed and a name; None: the row is invalid.
        error: what is wrong with it.
    """

    number: int
    source: str
    swept: Mapping[str, str]
    command: tuple[str, ...] = ()
    settings: GenerateSettings | None = None
    error: str | None = None

    def refused(self, error: str) -> JobRow:
        return replace(self, settings=None, error=printable(error))


class InvalidRowsError(InputError):
    """Rows of a batch are invalid.

    Args:
        rows: all rows, valid ones as well.

    Attributes:
        lines: one for each, up to SHOWN; a single one for a fault of all, as of the command line.
    """

    def __init__(self, rows: Sequence[JobRow]):
        invalid = [row for row in rows if row.settings is None]
        super().__init__("jobs", None, f"{len(invalid)} invalid rows; nothing was made")
        if 1 < len(rows) == len(invalid) and len({row.error for row in rows}) == 1:
            self.lines = [f"all {len(rows)} rows: {rows[0].error}"]
            return
        self.lines = [f"{row.source}: {row.error}" for row in invalid[:SHOWN]]
        if len(invalid) > SHOWN:
            self.lines.append(f"... and {len(invalid) - SHOWN} more invalid rows")


@dataclass(frozen=True)
class JobList:
    """The videos of --jobs and --sweep.

    Attributes:
        script: name of the script.
        rows: all of them, valid or not, in the order of the job file.
        outdir, device, dry_run, keep_going: as on the command line.
        group: number of processes that share a video.
        shard: (I, N): only every N-th row from the I-th on is made; None: all.
        ray: address of the cluster whose workers make the videos; None: this process, or torchrun's.
    """

    script: str
    rows: tuple[JobRow, ...]
    outdir: Path
    device: str | None
    dry_run: str | None
    keep_going: bool
    group: int
    shard: tuple[int, int] | None
    ray: str | None = None

    def on_device(self, device: str | None) -> JobList:
        """The same list with another device, for all rows."""
        rows = [
            row if row.settings is None else replace(row, settings=row.settings.on_device(device)) for row in self.rows
        ]
        return replace(self, rows=tuple(rows), device=device)

    @property
    def mine(self) -> tuple[JobRow, ...]:
        """The rows of this shard."""
        return self.rows if self.shard is None else self.rows[self.shard[0] - 1 :: self.shard[1]]


def read_jobs(
    parser: Parser, argv: Sequence[str], args: argparse.Namespace, launch: Launch, settle: Settle, config: Config
) -> JobList:
    """The rows of --jobs, each times the combinations of --sweep.

    Args:
        argv: the command line without --config. args: what it says together with `config`.
        settle: (arguments of one video, the processes that share it) -> settings.

    Raises:
        InputError: the file or the flags as a whole cannot be used; invalid rows are in the result.
    """
    group = processes_of_a_job(args, launch)
    if args.jobs == STDIN and launch.size > 1:
        raise InputError("jobs", STDIN, "torchrun does not pass stdin on to its processes; give a file")
    sweeps = tuple(args.sweep or ())
    check_sweeps(parser, sweeps)
    raw = [RawRow(1, {})] if args.jobs is None else read_job_file(args.jobs, partial(check_key, parser))
    if len(raw) * count_of(sweeps) > MOST_ROWS:
        raise InputError("sweep", None, f"makes {len(raw) * count_of(sweeps)} videos; at most {MOST_ROWS}")
    reader = RowReader(parser, argv, sweeps, settle, Launch(0, 0, group, group > 1), args.name, config)
    rows = refuse_repeated_names(reader.rows("--sweep" if args.jobs is None else args.jobs, raw))
    shard = slurm_shard() if args.shard is None else args.shard
    asked = args.outdir, args.device, args.dry_run, args.keep_going
    return JobList(parser.script, tuple(rows), *asked, group, shard, args.ray)


def check_sweeps(parser: Parser, sweeps: Sequence[Sweep]) -> None:
    """Raises an `InputError` for a flag that cannot be swept."""
    for i, sweep in enumerate(sweeps):
        try:
            if sweep.name in (before.name for before in sweeps[:i]):
                raise ValueError("is given twice")
            check_key(parser, sweep.name)
        except ValueError as error:
            raise InputError("sweep", sweep.name, str(error)) from None


def count_of(sweeps: Sequence[Sweep]) -> int:
    count = 1
    for sweep in sweeps:
        count *= len(sweep.values)
    return count


def check_key(parser: Parser, name: str) -> None:
    """Raises ValueError for a key that no row can have."""
    if name.startswith("-"):
        raise ValueError(f"keys are flags without dashes: {name.lstrip('-')}")
    if name in OF_THE_COMMAND + ALSO_ALONE:
        raise ValueError("belongs on the command line, for all rows")
    if not parser.takes(f"--{name}") or name in ("help", "version", "list_models") or name.startswith("no-"):
        raise ValueError(parser.unknown(f"--{name}"))


@dataclass(frozen=True)
class Draft:
    """A row whose video has no name yet.

    Attributes:
        flags: the words of its command by flag.
        pattern: of its name; None: the default.
    """

    row: JobRow
    flags: Mapping[str, list[str]] = field(default_factory=dict)
    pattern: str | None = None


class RowReader:
    """Rows of a job file -> settings.

    Args:
        argv: the command line.
        settle: (arguments of one video, the processes that share it) -> settings.
        launch: the processes that share a video.
        name: the pattern of names on the command line.
        config: flags that those of the command line and of the row override.
    """

    def __init__(
        self,
        parser: Parser,
        argv: Sequence[str],
        sweeps: tuple[Sweep, ...],
        settle: Settle,
        launch: Launch,
        name: str | None,
        config: Config,
    ):
        self.parser, self.sweeps, self.settle, self.launch, self.name = parser, sweeps, settle, launch, name
        self.config = config
        self.base = {name: words for name, words in flags_of(argv).items() if name not in (*OF_THE_COMMAND, "name")}
        self._downloaded: dict[str, Path | InputError | OSError] = {}
        self._seen: Counter[str] = Counter()  # texts of earlier rows, for seeds

    def rows(self, file: str, raw: Sequence[RawRow]) -> Iterator[JobRow]:
        """Every row times every combination of the sweep."""
        number = 0
        for row in raw:
            place = f"{'stdin' if file == STDIN else file}:{row.line}" if file != "--sweep" else file
            texts: set[str] = set()
            drafts = []
            for values in combinations(self.sweeps):
                number += 1
                shown = {name: value if isinstance(value, str) else json.dumps(value) for name, value in values.items()}
                swept = " ".join(f"{name}={value}" for name, value in shown.items())
                made = JobRow(number, printable(f"{place} ({swept})" if swept else place), shown)
                drafts.append(Draft(made.refused(row.error)) if row.error else self._read(made, row, values, texts))
            self._seen.update(texts)
            fields, labels = self._swept(drafts)
            for draft in drafts:
                yield self._named(draft, row.line, fields, labels)

    def _read(self, made: JobRow, row: RawRow, values: Mapping[str, object], texts: set[str]) -> Draft:
        try:
            flags = self._flags(row.values, values)
            pattern = self.parser.read(flags.pop("name")).name if "name" in flags else self.name
            alone = self.base | flags
            alone |= self.config.beside(alone, without=(*OF_THE_COMMAND, "name"))
            settings = self.settle(self._words(alone), self.launch)
            if settings.seed is None:
                text = text_of(settings)
                texts.add(text)
                settings = replace(settings, seed=derived_seed(text, self._seen[text]))
        except (CommandError, InputError, OSError) as error:  # of the network, or ffmpeg makes no progress
            texts.update(self._texts_of_refused(row.values | values))
            return Draft(made.refused(error_line(error)))
        return Draft(replace(made, settings=settings), alone, pattern)

    def _texts_of_refused(self, row: Mapping[str, object]) -> list[str]:
        """The text that the seed of an invalid row follows from once it is valid; none where that cannot be known.

        It is counted as a valid row's, so that correcting a row leaves the seeds of the others as they are.
        """
        try:
            own = {name: words_of(self.parser, name, row[name]) for name in TEXTUAL if name in row}
            alone = self.base | own
            alone |= self.config.beside(alone)
            flags = {name: words for name, words in alone.items() if name in TEXTUAL}
            settings = self.settle([word for words in flags.values() for word in words], Launch(0, 0, 1, False))
        except (ValueError, OSError):
            return []
        return [text_of(settings)] if settings.seed is None else []

    def _flags(self, row: Mapping[str, object], swept: Mapping[str, object]) -> dict[str, list[str]]:
        """The words of the row's flags, by name."""
        flags: dict[str, list[str]] = {}
        for name, value in (row | swept).items():
            try:
                check_key(self.parser, name)
                if name in swept and name in row:
                    raise ValueError("--sweep sets this flag for all rows")
                flags[name] = words_of(self.parser, name, value)
            except ValueError as error:
                raise InputError(name, shown(value), str(error)) from None
        return flags

    def _words(self, flags: Mapping[str, list[str]]) -> list[str]:
        """The arguments of one video; what is at an address is downloaded once."""
        words = [word for name, some in flags.items() if name not in ADDRESSES for word in some]
        for name in ADDRESSES:
            for word in flags.get(name, ()):
                address = word.removeprefix(f"--{name}=")
                if address.lower().startswith(("http://", "https://")):
                    word = f"--{name}={self._download(name, address)}"
                words.append(word)
        return [*words, "--use_usp"] if self.launch.size > 1 else words

    def _download(self, name: str, address: str) -> Path:
        if address not in self._downloaded:
            try:
                download = download_video if name == "video_path" else download_image
                self._downloaded[address] = download(address, name)
            except (InputError, OSError) as error:
                self._downloaded[address] = error
        found = self._downloaded[address]
        if isinstance(found, InputError):
            raise InputError(name, address, found.legal)
        if isinstance(found, OSError):
            raise found
        return found

    def _swept(self, drafts: Sequence[Draft]) -> tuple[list[str], dict[str, dict[str, str]]]:
        """(the fields of swept flags in default names, the texts of those that are no field or the same for several
        values)."""
        rows = [draft.row for draft in drafts if draft.row.settings is not None]
        names, labels = [], {}
        for sweep in self.sweeps:
            if sweep.name in ("prompt", "seed", "name") or (sweep.name in ("image", "story") and not sweep.values[1:]):
                continue
            names.append(sweep.name)
            if not tells_apart(sweep.name, [row.settings for row in rows]):
                labels[sweep.name] = labels_of({draft.row.swept[sweep.name] for draft in drafts})
        return names, labels

    def _named(self, draft: Draft, line: int, fields: Sequence[str], labels: Mapping[str, Mapping[str, str]]) -> JobRow:
        """The row with the name of its video; by default with the swept settings in it."""
        row, pattern, settings = draft.row, draft.pattern, draft.row.settings
        if settings is None:
            return row
        if pattern is None and fields:
            parts = [labels[name][row.swept[name]] if name in labels else f"{{{name}}}" for name in fields]
            pattern = "_".join(["{prompt}", *parts, "{seed}"])
        try:
            stem = stem_of(replace(settings, name=pattern), settings.seed, {"row": line})
        except InputError as error:
            return row.refused(str(error))
        alone = draft.flags | {"seed": [f"--seed={settings.seed}"], "name": [f"--name={stem}"]}
        if settings.frames_dir is not None:
            settings = replace(settings, frames_dir=settings.frames_dir / stem)
            alone["frames_dir"] = [f"--frames_dir={settings.frames_dir}"]
        command = tuple(word for words in alone.values() for word in words)
        return replace(row, settings=replace(settings, name=stem, resume=True), command=command)


def error_line(error: Exception) -> str:
    """What is wrong with a row; errors of the network and of files in one line, with their type if they say nothing."""
    return first_line(error) if isinstance(error, OSError) else str(error)


def text_of(settings: GenerateSettings) -> str:
    """All prompts of a video in one text."""
    story = getattr(settings, "story", None)
    if story is not None:
        return json.dumps([asdict(scene) for scene in story])
    return json.dumps(getattr(settings, "prompts", None) or settings.prompt)


def derived_seed(text: str, repetition: int) -> int:
    """The seed of a row that has none: a function of its prompts and of how many rows before have the same ones.

    So the same command finds its videos again, and the values of a sweep are compared with the same noise.
    """
    digest = hashlib.sha256(json.dumps([text, repetition]).encode()).digest()
    return int.from_bytes(digest[:8], "big") % SEEDS


def refuse_repeated_names(rows: Iterator[JobRow]) -> list[JobRow]:
    """Refuses rows whose video would have the name of an earlier row's."""
    names: dict[str, JobRow] = {}
    found = []
    for row in rows:
        if row.settings is not None:
            before = names.setdefault(row.settings.name.casefold(), row)
            if before is not row:
                row = row.refused(str(same_name(row, before)))
        found.append(row)
    return found


def same_name(row: JobRow, before: JobRow) -> InputError:
    one, other = row.settings, before.settings
    apart = [name for name in name_fields(type(one)) if getattr(one, name) != getattr(other, name)][:3]
    hint = ""
    if apart:
        more = (f"{{{name}}}" for name in apart if name not in ("prompt", "seed"))
        hint = f'; a pattern that tells them apart: --name "{"_".join(["{prompt}", *more, "{seed}"])}"'
    return InputError("name", one.name, f"is that of {before.source}{hint}")
