"""caption_video.py: from rows of videos to a table of captions and prompts."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from skyreels_v2_infer.captioner.answer import parse
from skyreels_v2_infer.captioner.caption import Captioner, structural_captions
from skyreels_v2_infer.captioner.frames import clip_frames
from skyreels_v2_infer.captioner.fuse import fused
from skyreels_v2_infer.captioner.inputs import PATH, STRUCTURAL, rows_of
from skyreels_v2_infer.captioner.instruction import read_instruction
from skyreels_v2_infer.chat import engine
from skyreels_v2_infer.chat.endpoint import Endpoint, key_in_environment
from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.chat.reply import Talker
from skyreels_v2_infer.cli.captions import CaptionSettings, parse_captions
from skyreels_v2_infer.console import quiet_transformers, say, silent
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.ffmpeg import check_ffmpeg
from skyreels_v2_infer.run.caption_plan import dry_run
from skyreels_v2_infer.run.caption_table import BY, CaptionTable

if TYPE_CHECKING:
    import numpy as np

    from skyreels_v2_infer.run.signals import Interrupts

NOTE, ERROR, ANSWER = "note", "error", "answer"  # what is doubtful; why there is no caption; what the model said then
READERS = 4  # videos that are decoded at the same time


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
        rows = rows_of(settings.input, needs_path=settings.task == "struct")
        question = read_instruction(settings.instruction)
        if settings.dry_run:
            return dry_run(settings, rows)
        settings.output.parent.mkdir(parents=True, exist_ok=True)
        with CaptionTable(settings.output, columns_of(rows, settings), maker_of(settings)) as table:
            self.written = settings.output
            missing = table.missing(rows)
            if len(missing) < len(rows):
                say(f"{settings.output}: {len(rows) - len(missing)} of {len(rows)} rows are there")
            self._fill(settings, table, missing, question, interrupts.check)
            remark(table.rows)
        return settings.output

    def _fill(self, settings: CaptionSettings, table: CaptionTable, rows: list[dict], question: str, check) -> None:
        """Adds the missing `rows` to a table.

        The captioner and a chat model need not fit into memory together: all captions come first then, in a table
        beside this one, which is removed at the end.
        """
        if any(map(needs_caption, rows)):
            check_ffmpeg(reading=True)
        together = settings.fusion_model is None or settings.endpoint is not None
        if together or not any(map(needs_caption, rows)):
            self._pass(settings, table, rows, question, check)
            return
        first = replace(settings, task="struct", fusion_model=None)
        path = settings.output.with_suffix(f".struct{settings.output.suffix}")
        with CaptionTable(path, columns_of(rows, first), maker_of(first)) as between:
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
            tqdm(total=len(rows), unit="row", disable=silent()) as progress,
        ):
            batches = clips_of(rows, settings.sampling, settings.bs) if captions else plain(rows)
            for batch, clips in batches:
                check()
                add_captions(batch, clips, captioner, question, check)
                if settings.task != "struct":
                    for row in batch:
                        add_prompt(row, settings.task, chat)
                table.add(batch)
                progress.update(len(batch))

    @contextmanager
    def _models(self, settings: CaptionSettings, captions: bool) -> Iterator[tuple[Captioner | None, Talker | None]]:
        """Context manager: the models that a pass needs."""
        captioner = chat = None
        try:
            if captions:
                captioner = self.open_captioner(settings)
            if settings.fusion_model is not None:
                chat = self.open_chat(settings)
            yield captioner, chat
        finally:
            for model in (captioner, chat):
                if model is not None:
                    model.free()


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


def maker_of(settings: CaptionSettings) -> str:
    """Models and settings of a table's rows."""
    asked = "" if settings.instruction is None else f", {settings.instruction.name}"
    fusion = "" if settings.task == "struct" else f", {settings.fusion_model or 'rule'}"
    return f"{settings.model_id} ({settings.sampling}{asked}){fusion}"


def prompt_column(task: str) -> str:
    """As published."""
    return f"{task}_fusion_caption"


def columns_of(rows: list[dict], settings: CaptionSettings) -> list[str]:
    """Of a table: the path, the inputs' own columns, those that are added."""
    prompts = [] if settings.task == "struct" else [prompt_column(settings.task)]
    adds = [STRUCTURAL, *prompts, NOTE, ERROR, ANSWER, BY]
    names = dict.fromkeys([PATH, *(name for row in rows for name in row)])
    return [*(name for name in names if name not in adds), *adds]


def needs_caption(row: dict) -> bool:
    return not row.get(STRUCTURAL)


def plain(rows: list[dict]) -> Iterator[tuple[list[dict], list]]:
    """Rows that need no frames, one at a time."""
    for row in rows:
        yield [dict(row)], [None]


def clips_of(rows: list[dict], sampling: str, size: int) -> Iterator[tuple[list[dict], list[np.ndarray | str | None]]]:
    """Batches of rows with the frames of their videos, or the reason why there are none; the next one is decoded
    meanwhile."""
    pool = ThreadPoolExecutor(READERS)
    try:
        read = partial(frames_of, sampling=sampling)
        batches = [rows[start : start + size] for start in range(0, len(rows), size)]
        ahead = [pool.submit(read, row) for row in batches[0]]
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            clips = [future.result() for future in ahead]
            ahead = [pool.submit(read, row) for row in following]
            yield [dict(row) for row in batch], clips
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def frames_of(row: dict, sampling: str) -> np.ndarray | str | None:
    """Frames of a row's video; a reason if it cannot be read; None if the row has a caption."""
    if not needs_caption(row):
        return None
    try:
        return clip_frames(Path(row[PATH]), sampling)
    except InputError as error:
        return error.legal
    except OSError as error:  # ffmpeg itself works: it has been tried
        return first_line(error)


def add_captions(batch: list[dict], clips: list, captioner: Captioner | None, question: str, check: Callable) -> None:
    """Adds structural captions to the rows of a batch that have none, or the reason why there is none."""
    asked = [i for i, clip in enumerate(clips) if clip is not None and not isinstance(clip, str)]
    answers = (
        dict(zip(asked, structural_captions(captioner, [clips[i] for i in asked], question, check=check), strict=True))
        if asked
        else {}
    )
    for i, row in enumerate(batch):
        if i in answers:
            answer = answers[i]
            row[STRUCTURAL] = "" if answer.caption is None else answer.caption.as_json()
            row[ERROR], row[NOTE] = answer.reason, "; ".join(answer.doubtful)
            row[ANSWER] = answer.text if answer.caption is None else ""
        elif isinstance(clips[i], str):
            row[ERROR] = clips[i]
        elif not needs_caption(row):
            row.pop(ERROR, None)


def add_prompt(row: dict, task: str, chat: Talker | None) -> None:
    """Adds a prompt to a row that has a structural caption, or the reason why there is none."""
    if needs_caption(row) or row.get(prompt_column(task)):
        return
    given = row[STRUCTURAL]
    answer = parse(given if isinstance(given, str) else json.dumps(given))
    if answer.caption is None:
        row[ERROR] = f"{STRUCTURAL}: {answer.reason}"
        return
    row[prompt_column(task)] = fused(answer.caption, task, chat)
    if not row[prompt_column(task)]:
        row[ERROR] = "the caption has nothing for a prompt, or the fusion model no usable answer"


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
