"""Many videos: all rows are checked, then made one after another with the model loaded once.

`Maker` makes single videos of a batch; whoever distributes the rows (this process, the ranks of torchrun, the workers
of a cluster) calls it.
"""

from __future__ import annotations

import hashlib
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

from skyreels_v2_infer.cli.batch import InvalidRowsError, JobList, JobRow
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import called, say
from skyreels_v2_infer.distributed.team import SilencedError, Team
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.ffmpeg import check_ffmpeg
from skyreels_v2_infer.media.report import refresh_report
from skyreels_v2_infer.progress import doing, labelled
from skyreels_v2_infer.run import summary
from skyreels_v2_infer.run.dispatch import LOOKS_AHEAD, MOST_FAILURES, Dispatcher, Pool
from skyreels_v2_infer.run.enhanced_prompts import enhance_all
from skyreels_v2_infer.run.foreseen import is_foreseen
from skyreels_v2_infer.run.jobs import Job, Shared
from skyreels_v2_infer.run.journal import BusyError
from skyreels_v2_infer.run.manifest import forget_peak_memory, peak_memory
from skyreels_v2_infer.run.model_files import Models
from skyreels_v2_infer.run.row_checks import CheckedRow, check_rows
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.run.sessions import Sessions
from skyreels_v2_infer.run.summary import Result


class Maker:
    """Makes videos of a batch, one after another.

    Args:
        script: name of the script.
        team: the processes that share each video.
        check: called regularly; raises once the process has to stop.
        open_session: constructor of a session.
        models: looked up before.

    Attributes:
        failures: videos in a row that failed up to now, not counting invalid input.
        is_busy: whether the last video failed because another process works on it.
    """

    def __init__(
        self,
        script: str,
        team: Team,
        check: Callable[[], object],
        open_session: Callable[..., Session] = Session,
        models: Models | None = None,
    ):
        self.script, self.team, self.check = script, team, check
        self.sessions = Sessions(open_session)
        self.shared = Shared(models or Models(), self._enhance)
        self.job: Job | None = None
        self.failures = 0
        self.is_busy = False
        self._enhanced: dict[tuple[str, str], str] = {}
        self._coming: Sequence[CheckedRow] = ()

    def make(self, coming: Sequence[CheckedRow]) -> Result | None:
        """Makes the first of these videos, or finds it finished -> its record; None on all ranks but the first.

        Args:
            coming: the video to make, and those that may follow, of which texts are encoded together.

        Raises:
            Exception: an error while several ranks compute together, which ends all of them.
        """
        row, began = coming[0].row, time.perf_counter()
        self._coming, self.is_busy = coming, False
        self.sessions.coming = texts_ahead(coming)
        settings = replace(row.settings, no_report=True)  # `Batch` writes the page
        self.job = Job(self.script, settings, self.check, self.shared)
        forget_peak_memory()
        path = error = None
        try:
            with self.team.attempt():
                path = self.job.run(self.team, self.sessions.open)
        except Exception as problem:
            if not self.team.recovered:
                raise
            error = self._error_of(problem)
            is_input, self.is_busy = isinstance(problem, InputError), isinstance(problem, BusyError)
            self.failures += not is_input
            if not is_input or self.team.size > 1:  # where only one rank may know the kind of error
                self.sessions.close()  # the model may be in any state
        else:
            self.failures = 0
        finally:
            self.job.close()
        if self.team.rank:
            return None
        result = record_of(self.script, row, self.team.size)
        if error is not None:
            return replace(result, status=summary.FAILED, error=error + self.kept(), **self._spent(began))
        made = self.job.video is not None
        return replace(result, status=summary.DONE, path=str(path), **(self._spent(began) if made else {}))

    def kept(self) -> str:
        """For messages: what is kept of the current video if it is not finished."""
        video = None if self.job is None else self.job.video
        if video is None or video.path is not None or not video.journal.worth_keeping:
            return ""
        return f"; {video.left().partition(';')[0]}"

    def _spent(self, began: float) -> dict:
        return {"seconds": round(time.perf_counter() - began, 3), "peak_memory": peak_memory()}

    def _error_of(self, problem: Exception) -> str:
        """The one line about an error; of one that nobody foresaw the traceback is printed as well."""
        if isinstance(problem, SilencedError):
            return self.team.reason() or "another process failed"
        if isinstance(problem, InputError):
            return str(problem)
        problem_is_known = is_foreseen(problem)
        if not problem_is_known:
            traceback.print_exception(problem)
        problem.__traceback__ = None  # refers to everything that the job had in memory
        return first_line(problem) if problem_is_known else f"{type(problem).__name__}: {first_line(problem)}"

    def _enhance(self, settings: GenerateSettings, place) -> str:
        """The prompt, expanded together with those of all videos that follow, while no other model is in memory."""
        model = settings.prompt_enhancer_model
        if (model, settings.prompt) not in self._enhanced:
            self.sessions.close()
            wanted = [one.row.settings for one in self._coming if one.row.settings.prompt_enhancer]
            prompts = dict.fromkeys(one.prompt for one in wanted if one.prompt_enhancer_model == model)
            new = [prompt for prompt in prompts if (model, prompt) not in self._enhanced]
            for prompt, found in zip(new, enhance_all(settings, new, place), strict=True):
                self._enhanced[model, prompt] = found
        return self._enhanced[model, settings.prompt]


def texts_ahead(coming: Sequence[CheckedRow]) -> list[str]:
    """The texts of the videos that follow with the same model."""
    first = coming[0]
    near = (one for one in coming[1 : 1 + LOOKS_AHEAD] if one.model == first.model)
    return list(dict.fromkeys(text for one in near for text in one.texts))


def record_of(script: str, row: JobRow, ranks: int = 1) -> Result:
    """The record of a row before anything is known of its video."""
    alone = ["python", script] if called(script) == script else [called(script)]
    words = alone if ranks == 1 else ["torchrun", f"--nproc_per_node={ranks}", script, "--use_usp"]
    command = shlex.join([*words, *row.command]) if row.command else None
    name = None if row.settings is None else row.settings.name
    known = {"command": command, "error": row.error, "sweep": dict(row.swept)}
    return Result(row.number, row.source, name, summary.INVALID, **known)


class Batch:
    """The videos of a job file.

    Args:
        script: name of the script.
        jobs: as from the command line.
        check: called regularly; raises once the process has to stop.
        tell: prints the path of a finished video; its result is an exit code.
    """

    def __init__(
        self, script: str, jobs: JobList, check: Callable[[], object], tell: Callable[[Path], int] = lambda path: 0
    ):
        self.script, self.check, self.tell = script, check, tell
        self.models = Models()
        self.maker: Maker | None = None
        self.dispatcher: Dispatcher | None = None
        self.untold = self.unrecorded = False
        self._done: set[str] = set()  # names, by this process
        with doing("checking all rows"):
            valid, jobs = check_rows(jobs, self.models)
        self.invalid = [row for row in jobs.rows if row.settings is None]
        if self.invalid and not jobs.keep_going:
            raise InvalidRowsError(jobs.rows)
        numbers = {row.number for row in jobs.mine}
        self.invalid = [row for row in self.invalid if row.number in numbers]
        self.outdir, self.group = jobs.outdir, jobs.group
        self.with_report = not all(one.row.settings.no_report for one in valid)
        self._page_is_old, self._next_page = False, 0.0
        self.before = summary.read_summary(self.outdir)
        self.videos = in_order([one for one in valid if one.row.number in numbers], self.before)
        self.mine, self.all = len(numbers), len(jobs.rows)

    @property
    def code(self) -> int:
        """0: all videos are done, those of other teams as well; 1: some are not, or a path could not be printed, or a
        result not be recorded."""
        return int(self._count_done() < self.mine or self.untold or self.unrecorded)

    def run(self, team: Team, open_session: Callable[..., Session] = Session) -> None:
        """Makes all videos that are not there yet; several teams share them.

        Raises:
            OSError: processes found different rows valid, so that a number that a team claims is not one video.
        """
        commands = repr([(one.row.number, one.row.command) for one in self.videos])
        if not team.agrees(hashlib.sha256(commands.encode()).hexdigest()):
            raise OSError("processes disagree on which rows are valid (an address, a file or --replay); try again")
        if self.videos and not team.rank:
            check_ffmpeg(reading=any(getattr(one.row.settings, "video_path", None) for one in self.videos))
        self.maker = Maker(self.script, team, self.check, open_session, self.models)
        while (number := team.claim()) < len(self.videos) + 1:
            if not number:  # one team speaks of the invalid rows
                results = [] if team.rank else [record_of(self.script, row) for row in self.invalid]
            else:
                with labelled(f"{self.videos[number - 1].row.number}/{self.all} "):
                    results = self._made(self.videos[number - 1 :])
            for result in results:
                self._add(result)
            if team.same(self.maker.failures >= MOST_FAILURES):
                if not team.rank:
                    many = f"{MOST_FAILURES} videos in a row failed in this process"
                    say(f"{many}, which makes no more; the same command continues", from_any_rank=True)
                break
        self.maker.sessions.close()
        self._page_is_old |= not team.rank and self.outdir.is_dir()

    def distribute(self, connect: Callable[[], AbstractContextManager[Pool]]) -> None:
        """As `run`, by the workers of a cluster.

        Args:
            connect: to the cluster, if there is anything to make.
        """
        if self.videos:
            check_ffmpeg()
        with connect() if self.videos else nullcontext() as pool:
            for row in self.invalid:
                self._add(record_of(self.script, row))
            if pool is not None:
                self.dispatcher = Dispatcher(pool, self.videos, self._add, self._failed, self.check)
                self.dispatcher.run()
        self._page_is_old |= self.outdir.is_dir()

    def _failed(self, video: CheckedRow, error: str) -> Result:
        return replace(record_of(self.script, video.row, self.group), status=summary.FAILED, error=error)

    def _made(self, coming: Sequence[CheckedRow]) -> list[Result]:
        """The record of the first of these videos; none on all ranks but the first."""
        try:
            result = self.maker.make(coming)
        except Exception as error:  # ends all processes; the next command makes this video last
            team = self.maker.team
            reason = team.reason() if isinstance(error, SilencedError) else first_line(error)
            if not team.rank and reason is not None:  # None: another team failed, not this video
                failed = record_of(self.script, coming[0].row, team.size)
                self._add(replace(failed, status=summary.FAILED, error=reason))
            raise
        return [] if result is None else [result]

    def _add(self, result: Result) -> None:
        """Prints a result and appends it to the summary, unless that says the same already."""
        place = f"{result.row}/{self.all}"
        is_new = bool(result.seconds) or result.status != summary.DONE
        known = self.before.get(result.name, {})
        if is_new or (known.get("status"), known.get("path"), known.get("row")) != ("done", result.path, result.row):
            self._record(result)
            self._report()
        if result.status == summary.DONE:
            self._done.add(result.name)
            took = f"{result.seconds:.1f} s" if is_new else "there already"
            say(f"{place} done: {result.path}, {took}", from_any_rank=True)
            self.untold = bool(self.tell(Path(result.path))) or self.untold
        else:
            say(f"{place} {result.status}: {result.source}: {result.error}", from_any_rank=True)

    def _record(self, result: Result) -> None:
        """Appends a result to the summary; a failure is a line on stderr, the first time."""
        try:
            self.outdir.mkdir(parents=True, exist_ok=True)
            summary.append(self.outdir, result)
        except OSError as error:
            if not self.unrecorded:
                say(f"{summary.NAME} cannot be written: {first_line(error)}", from_any_rank=True)
            self.unrecorded = True

    def _report(self, at_last: bool = False) -> None:
        """Writes the report page, which reads the whole folder, so rarely that it takes 5 % of the time at most."""
        began = time.monotonic()
        self._page_is_old = True
        if self.with_report and (at_last or began >= self._next_page):
            refresh_report(self.outdir)
            self._page_is_old = False
            self._next_page = began + 20 * (time.monotonic() - began)

    def left(self) -> str:
        """For messages: what is there if the batch stops here."""
        kept = "" if self.maker is None else self.maker.kept().replace("; ", "; of the next one ")
        if self.dispatcher is not None and self.dispatcher.kept:
            kept = f"; of {self.dispatcher.kept} more some windows are kept"
        return f"{self.done()}{kept}; the same command continues"

    def done(self) -> str:
        """For messages: how many videos are done, those of all teams."""
        return f"{self._count_done()} of {self.mine} videos are done"

    def _count_done(self) -> int:
        found = summary.read_summary(self.outdir)
        names = [one.row.settings.name for one in self.videos]
        return sum(name in self._done or found.get(name, {}).get("status") == summary.DONE for name in names)

    def close(self) -> None:
        """Closes the journal of the current video, and brings the report page up to date."""
        if self.maker is not None and self.maker.job is not None:
            self.maker.job.close()
        if self._page_is_old:
            self._report(at_last=True)


def in_order(videos: Sequence[CheckedRow], before: Mapping[str, dict]) -> list[CheckedRow]:
    """Videos that failed before at last; those that need the same model one after another; else in the order of rows.

    Args:
        before: earlier records by name.
    """
    first: dict[tuple, int] = {}
    for one in videos:
        first.setdefault(one.model, len(first))

    def key(one: CheckedRow) -> tuple[bool, int]:
        return before.get(one.row.settings.name, {}).get("status") == summary.FAILED, first[one.model]

    return sorted(videos, key=key)
