"""caption_video.py: from rows of videos to a table of captions and prompts."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.captioner.caption import Captioner
from skyreels_v2_infer.captioner.inputs import PATH, STRUCTURAL, caption_in, read_reference, rows_of
from skyreels_v2_infer.captioner.instruction import read_instruction
from skyreels_v2_infer.captioner.rows import (
    ANSWER,
    ERROR,
    NOTE,
    SHOT,
    SHOT_COLUMNS,
    add_captions,
    add_prompt,
    names_shot,
    needs_caption,
    prompt_column,
    shots_of_videos,
    whole_videos,
    without_frames,
    without_prompt,
    without_shot,
)
from skyreels_v2_infer.captioner.schema import Caption
from skyreels_v2_infer.captioner.score import accuracies, shown
from skyreels_v2_infer.chat import engine
from skyreels_v2_infer.chat.endpoint import Endpoint, key_in_environment
from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.chat.reply import Talker
from skyreels_v2_infer.cli.captions import CaptionSettings, parse_captions
from skyreels_v2_infer.console import quiet_transformers, say
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import check_ffmpeg
from skyreels_v2_infer.progress import doing
from skyreels_v2_infer.run.caption_plan import dry_run
from skyreels_v2_infer.run.caption_table import BY, CaptionTable, key_of

if TYPE_CHECKING:
    from skyreels_v2_infer.run.signals import Interrupts


class CaptionWork:
    """Captions videos, see `run.main.Work`.

    Args:
        argv: None: those of the process.
        open_captioner, open_chat: settings -> model.
    """

    makes = "table"

    def __init__(
        self,
        argv: Sequence[str] | None = None,
        open_captioner: Callable[[CaptionSettings], Captioner] | None = None,
        open_chat: Callable[[CaptionSettings], Talker] | None = None,
    ):
        self.argv = argv
        self.open_captioner, self.open_chat = open_captioner or captioner_of, open_chat or chat_of
        self.written: Path | None = None

    def left(self) -> str:
        if self.written is None or not self.written.exists():
            return "no caption was written"
        return f"finished rows are in {self.written}, and the same command adds the missing ones"

    def run(self, interrupts: Interrupts) -> Path | str:
        settings = parse_captions(sys.argv[1:] if self.argv is None else self.argv)
        reference = None if settings.score is None else read_reference(settings.score)
        if settings.input:
            rows = rows_of(settings.input, needs_path=settings.task == "struct")
            check_columns(settings, rows)
        else:
            rows = [{name: row[name] for name in (PATH, *SHOT_COLUMNS) if name in row} for row, _ in reference]
        question = read_instruction(settings.instruction)
        maker = maker_of(settings, question)
        rows = [row if row.get(BY) == maker else without_prompt(row, settings.task) for row in rows]
        if settings.scenes:
            rows = [row if names_shot(row) or not needs_caption(row) else without_shot(row) for row in rows]
        if settings.dry_run:
            return dry_run(settings, rows)
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        check_meanwhile(settings)
        with table_of(settings.output, rows, settings, question) as table:
            self.written = settings.output
            missing = table.missing(rows)
            if len(missing) < len(rows):
                say(f"{settings.output}: {len(rows) - len(missing)} of {len(rows)} rows are there")
            self._fill(settings, table, rows, missing, question, interrupts.check)
            remark(table.rows)
            if reference is not None:
                pairs, alone = compared(reference, table.rows)
                if alone:
                    say(f"{alone} of {len(pairs)} rows of {settings.score} have no partner in {settings.output}")
                return shown(accuracies(pairs))
        return settings.output

    def _fill(
        self, settings: CaptionSettings, table: CaptionTable, given: list[dict], rows: list[dict], question: str, check
    ) -> None:
        """Adds `rows` to a table, those of `given` that are missing.

        The captioner and a chat model need not fit into memory together: all captions come first then, in a table
        beside this one, which is removed at the end.
        """
        if any(map(needs_caption, rows)):
            check_ffmpeg(reading=True)
        together = settings.fusion_model is None or settings.endpoint is not None
        if together or not any(map(needs_caption, rows)):
            self._pass(settings, table, rows, question, check)
            return
        first = replace(settings, task="struct", fusion_model=None, drop_fields=None)
        path = meanwhile(settings.output)
        with table_of(path, given, first, question) as between:
            self.written = path
            self._pass(first, between, between.missing(rows), question, check)
            rows = between.found(rows)
        self._pass(settings, table, rows, question, check, captions=False)
        with suppress(OSError):
            path.unlink()

    def _pass(self, settings, table: CaptionTable, rows: list[dict], question: str, check, captions=True) -> None:
        """Captions rows, fuses them, or both.

        Args:
            captions: False: a row without a caption stays without.
        """
        if not rows:
            return
        captions = captions and any(map(needs_caption, rows))
        with (
            self._models(settings, captions) as (captioner, chat),
            doing("captioning" if captions else "making prompts", total=len(rows), unit="rows") as progress,
        ):
            split = shots_of_videos if settings.scenes else whole_videos
            ready: list[dict] = []
            for batch in split(rows, settings.sampling, settings.bs) if captions else without_frames(rows):
                check()
                add_captions(batch, captioner, question, check)
                if settings.task != "struct":
                    for row in batch.rows:
                        add_prompt(row, settings.task, chat, settings.drop_fields)
                ready += batch.rows
                if batch.complete:
                    table.add(ready)
                    progress.update(1 if settings.scenes else len(ready))
                    ready = []

    @contextmanager
    def _models(self, settings: CaptionSettings, captions: bool) -> Iterator[tuple[Captioner | None, Talker | None]]:
        """Context manager: the models that a pass needs."""
        captioner = chat = None
        try:
            with doing("loading models"):
                if captions:
                    captioner = self.open_captioner(settings)
                if settings.fusion_model is not None:
                    chat = self.open_chat(settings)
            yield captioner, chat
        finally:
            for model in (captioner, chat):
                if model is not None:
                    model.free()


def compared(
    reference: list[tuple[dict, Caption]], rows: list[dict]
) -> tuple[list[tuple[Caption, Caption | None]], int]:
    """Each caption of the reference with the one in `rows` for the same path and shot, None if there is none, and how
    many of the reference have no such row."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        found.setdefault(key_of(row), []).append(row)
    pairs, alone = [], 0
    for row, caption in reference:
        own = found.get(key_of(row))
        alone += not own
        pairs.append((caption, caption_in(own.pop(0)).caption if own else None))
    return pairs, alone


def remark(rows: list[dict]) -> None:
    """Says how many rows have no result.

    Raises:
        OSError: none has one.
    """
    failed = [row for row in rows if row[ERROR]]
    if failed and len(failed) == len(rows):
        raise OSError(f"no row has a result, the first because: {failed[0][ERROR]}")
    if failed:
        say(f"{len(failed)} of {len(rows)} rows have no result; their column {ERROR} says why")


def meanwhile(output: Path) -> Path:
    """Where captions are kept until all are there: hidden, since nobody's table has such a name."""
    return output.with_name(f".{output.stem}.struct.part{output.suffix}")


def check_meanwhile(settings: CaptionSettings) -> None:
    """Raises an `InputError` if the table for captions `meanwhile` is an input."""
    path = meanwhile(settings.output)
    for given in (*map(os.path.expanduser, settings.input), *([settings.score] if settings.score else [])):
        if path.exists() and os.path.exists(given) and os.path.samefile(given, path):
            raise InputError("output", settings.output, f"captions are kept in {path} meanwhile, which is an input")


def check_columns(settings: CaptionSettings, rows: list[dict]) -> None:
    """Raises an `InputError` if a table that this program did not write has columns that it would write over."""
    for row in rows:
        if BY in row:
            continue
        splits = settings.scenes and needs_caption(row) and not names_shot(row)
        for name in (NOTE, ERROR, ANSWER, *(SHOT_COLUMNS if splits else ())):
            if row.get(name) not in (None, ""):
                legal = f"has a column {name} of its own, which would be written over; rename it"
                raise InputError("input", " ".join(settings.input), legal)


def table_of(path: Path, rows: list[dict], settings: CaptionSettings, question: str) -> CaptionTable:
    """The open table for the results of `rows`."""
    named = frozenset(key_of(row) for row in rows if row.get(SHOT))
    return CaptionTable(path, columns_of(rows, settings), maker_of(settings, question), settings.scenes, named)


def maker_of(settings: CaptionSettings, question: str) -> str:
    """Models and settings of a table's rows; of an instruction of one's own the file's name and a checksum."""
    asked = ""
    if settings.instruction is not None:
        asked = f", {settings.instruction.name} {zlib.crc32(question.encode()):08x}"
    fusion = "" if settings.task == "struct" else f", {settings.fusion_model or 'rule'}"
    dropped = "" if settings.drop_fields is None else f", fields dropped ({settings.drop_fields})"
    return f"{settings.model_id} ({settings.sampling}{asked}){fusion}{dropped}"


def columns_of(rows: list[dict], settings: CaptionSettings) -> list[str]:
    """Of a table: the path, the inputs' own columns, those that are added."""
    prompts = [] if settings.task == "struct" else [prompt_column(settings.task)]
    shots = SHOT_COLUMNS if settings.scenes else ()
    adds = [*shots, STRUCTURAL, *prompts, NOTE, ERROR, ANSWER, BY]
    names = dict.fromkeys([PATH, *(name for row in rows for name in row)])
    return [*(name for name in names if name not in adds), *adds]


def device_map(settings: CaptionSettings) -> str:
    """Where a model goes: "cpu", one device, or "auto" (all GPUs, then host memory)."""
    import torch

    if settings.device is not None:
        return settings.device
    return "auto" if torch.cuda.is_available() else "cpu"


def captioner_of(settings: CaptionSettings) -> Captioner:
    """The captioner that the settings name."""
    if settings.endpoint is not None:
        return endpoint_of(settings, settings.model_id, engine.CAPTIONS.temperature)
    quiet_transformers()
    if settings.backend == "vllm":
        return engine.Engine(settings.model_id, "model_id", engine.CAPTIONS, settings.tp)
    from skyreels_v2_infer.captioner.qwen import QwenCaptioner

    return QwenCaptioner(settings.model_id, "model_id", device_map(settings))


def chat_of(settings: CaptionSettings) -> Talker:
    """The chat model that the settings name."""
    if settings.endpoint is not None:
        return endpoint_of(settings, settings.fusion_model, engine.FUSION.temperature)
    quiet_transformers()
    if settings.backend == "vllm":
        return engine.Engine(settings.fusion_model, "fusion_model", engine.FUSION, settings.tp)
    return Chat(settings.fusion_model, "fusion_model", device_map(settings))


def endpoint_of(settings: CaptionSettings, model: str, temperature: float) -> Endpoint:
    return Endpoint(settings.endpoint, model, key_in_environment(), temperature)
