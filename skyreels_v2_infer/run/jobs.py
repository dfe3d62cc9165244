"""One job: from settings to a finished video. Everything that can fail without weights is checked before they load."""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.cli.model_ids import remarks_on
from skyreels_v2_infer.cli.names import stem_of, stems_begin
from skyreels_v2_infer.cli.planning import for_model, plan_without_model, with_cache
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import say
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import check_ffmpeg
from skyreels_v2_infer.plan.cost import Holding
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.memory import Chosen
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.prompts import cut_lines
from skyreels_v2_infer.plan.trained_on import outside
from skyreels_v2_infer.progress import doing
from skyreels_v2_infer.run import manifest
from skyreels_v2_infer.run.auto_prompt import automatic_prompt
from skyreels_v2_infer.run.enhanced_prompts import enhanced
from skyreels_v2_infer.run.identity import asked_for, identity_of, piece_keys
from skyreels_v2_infer.run.inputs import Source, count_video, decode_video, place_sound, read_images, source_frames
from skyreels_v2_infer.run.journal import Journal
from skyreels_v2_infer.run.model_files import Models, cache_folder, check_prompts, known_folder
from skyreels_v2_infer.run.placing import check_packages, compiles, memory_for, place_for
from skyreels_v2_infer.run.record import RunInfo
from skyreels_v2_infer.run.resume import OtherSettingsError, adopt_pieces, resume_run
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.run.video import Video
from skyreels_v2_infer.weights.verify import check_files

if TYPE_CHECKING:
    from skyreels_v2_infer.runtime import Placement

SEEDS = 2**32  # drawn seeds are below this: short enough to type
MUCH_NOISE = 60  # --addnoise_condition above this gets a warning


@dataclass
class Shared:
    """What the jobs of a batch share. They differ from a single job in this alone: other settings than those of an
    interrupted run are no error, since a row of a job file may have been changed.

    Attributes:
        models: looked up by earlier jobs.
        enhance: expands a prompt (--prompt_enhancer).
        said: lines about models and defaults, which are printed once.
    """

    models: Models
    enhance: Callable[[GenerateSettings, Placement], str]
    said: set[str] = field(default_factory=set)
    _free: dict = field(default_factory=dict)

    def free_gib(self, place: Placement) -> float | None:
        """Memory of the device that was free when the first job asked, before any model was loaded; in GiB."""
        if place.device not in self._free:
            self._free[place.device] = place.free_gib()
        return self._free[place.device]


class Job:
    """One video: from its settings to its files.

    Args:
        script: name of the script, for messages and the manifest.
        check: called regularly; raises once the process has to stop.
        shared: with the other jobs of a batch, which has checked ffmpeg; None: the only job of a command.
    """

    def __init__(
        self, script: str, settings: GenerateSettings, check: Callable[[], object], shared: Shared | None = None
    ):
        self.began = time.perf_counter()
        self.script, self.settings, self.check = script, settings, check
        self.in_batch = shared is not None
        self.shared = shared or Shared(Models(), enhanced)
        self.video: Video | None = None
        self.changes: dict[str, list[str]] = {}  # of images, on the way in
        self._remarks: list[str] = []  # lines to be said once nothing can be refused any more
        self._made: list[Path] = []  # folders that this run created, the innermost first

    def left(self) -> str:
        """For messages: what survives if the run stops here."""
        return "no video was written" if self.video is None else self.video.left()

    def close(self) -> None:
        """Closes the journal, and removes folders that this run created and that are empty."""
        if self.video is not None:
            self.video.close()
        for folder in self._made:
            with suppress(OSError):
                folder.rmdir()

    def run(self, team: Team, open_session: Callable[..., Session] = Session) -> Path | None:
        """Makes the video -> its path; None on all ranks but the first."""
        settings, first = self.settings, not team.rank
        if first and not self.in_batch:
            check_ffmpeg(reading=getattr(settings, "video_path", None) is not None)  # not after the first window
        with tempfile.TemporaryDirectory() as spool:
            with doing("reading images and videos"):
                inputs, source = self._read(Path(spool)) if first else (None, None)
            frames = team.same(source.frames if source else 0)
            # The first alone reports what all would find wrong, and downloads.
            with doing("checking the model's files"), team.first_rank_first():
                plan = plan_without_model(settings, frames)
                config = self.shared.models.config(settings)
                plan = for_model(plan, settings, config, team.size)
                check_packages(plan)
                place = None
                if known_folder(settings) is None:  # before gigabytes are fetched
                    place = place_for(settings, plan)
                    memory_for(settings, plan, config, place, None, self.shared.free_gib(place))
                checkpoint = self.shared.models.checkpoint(settings)
                plan = with_cache(plan, settings, config, cache_folder(checkpoint))
            if first:
                with doing("checking the model's files"):
                    check_files(checkpoint)
                check_prompts(settings, plan, tokenizer := checkpoint.parts["tokenizer"].files[0])
            with doing("checking the model's files"):
                identity = identity_of(self.script, settings, plan, checkpoint) if first else {}
            found = team.same(self._find(plan, identity) if first and settings.resume else None)
            if found is not None and "path" in found:
                return found["path"] if first else None
            plan = plan.with_seed(found["seed"] if found else team.same(self._seed()))
            if found is not None and found["complete"]:  # joining needs no device
                if first:
                    self._add_sound(source, Path(spool))
                return self.video.finish() if first else None
            place = place_for(settings, plan, place, found and found["dtype"])
            free = team.same(self.shared.free_gib(place))
            with team.first_rank_first():
                chosen = memory_for(settings, plan, config, place, found and found["vae_tiling"], free)
            plan = self._with_prompt(plan, place, team, found)
            if first:
                if settings.prepares_prompt:
                    check_prompts(settings, plan, tokenizer)
                self._remarks += [*outside(plan, tokenizer.parent), *cut_lines(plan, tokenizer, config)]
                settled = settled_of(plan, place, chosen.holding, source)
                if self.changes:
                    settled["changes"] = self.changes
                inputs = self._open(plan, identity, settled, source, inputs, Path(spool))
                self.video.state()  # damaged files are found before weights are loaded
        if team.same(first and self.video.is_complete):  # all pieces were adopted from a kept run
            self._remark(plan, source)
            return self.video.finish() if first else None
        inputs = team.same(inputs)
        session = open_session(checkpoint, place, team, **self._session_settings(plan, config, place, chosen))
        for line in chosen.lines():
            say(line)
        if first and self.settings.preview_every is not None:
            self.video.draw_latents(self.settings.preview_every, checkpoint.parts["vae"].files[0].parent)
        session.load()
        self._remark(plan, source)
        team.commit()
        return session.make(plan, inputs, self.video)

    def _read(self, spool: Path) -> tuple[Inputs, Source | None]:
        """Inputs and the video that is continued; with --resume its frames are only counted, they may be there."""
        inputs = read_images(self.settings, self.changes)
        for name, changed in self.changes.items():
            self._remarks.append(f"--{name} {getattr(self.settings, name)}: {'; '.join(changed)}")
        if self.settings.resume:
            return inputs, count_video(self.settings)
        decoded = decode_video(self.settings, spool, self.check)
        if decoded is None:
            return inputs, None
        source, newest = decoded
        return replace(inputs, prefix=newest), source

    def _session_settings(self, plan: Plan, config: dict, place: Placement, chosen: Chosen) -> dict:
        settings = self.settings
        return {
            "holding": chosen.holding,
            "vae_dtype": settings.vae_dtype,
            "attention": settings.attention,
            "loras": plan.first_loras,
            "loras_change": plan.lora_strengths_change,
            "compiled": compiles(settings, plan, config, place, chosen.holding),
            "quantize": settings.quantize,
            "dequantize": settings.weights == "dequantize",
            "check": self.check,
        }

    def _seed(self) -> int:
        return secrets.randbelow(SEEDS) if self.settings.seed is None else self.settings.seed

    def _with_prompt(self, plan: Plan, place: Placement, team: Team, found: dict | None) -> Plan:
        """The plan with the prompt that a language model makes, or with the prompt of the interrupted run."""
        if plan.scenes is not None:
            return plan
        if found is not None:
            return plan.with_prompt(found["prompt"])
        if not self.settings.prepares_prompt:
            return plan
        prompt = None
        if not team.rank:
            if self.settings.prompt_enhancer:
                prompt = self.shared.enhance(self.settings, place)
            else:
                prompt = automatic_prompt(self.settings, place, self.check)
        return plan.with_prompt(team.same(prompt))

    def _find(self, plan: Plan, identity: dict) -> dict | None:
        """For --resume: opens the interrupted run, or finds the finished video; None if there is neither."""
        settings = self.settings
        stem = stems_begin(settings) if settings.seed is None else stem_of(settings, settings.seed)
        refused = journal = None
        try:
            journal = resume_run(settings.outdir, stem, identity, settings.keep_parts)
        except OtherSettingsError as error:
            refused = None if self.in_batch else error
        except InputError as error:
            refused = error
        if journal is not None:
            settled = journal.settled
            plan = plan.with_seed(journal.identity["seed"])
            self._watch(journal, plan, journal.identity, settled)
            denoised = ", and the next one is denoised" * journal.is_denoised
            say(f"--resume: {self.video.counted(len(journal.pieces))} are there{denoised}")
            found = {"seed": plan.seed, **{name: settled.get(name) for name in ("prompt", "dtype", "vae_tiling")}}
            return found | {"complete": self.video.is_complete}
        path = manifest.finished(settings.outdir, stem, asked_for(identity), settings.seed)
        if path is not None:  # a finished command with --resume does not make the video again
            if not self.in_batch:
                say("--resume: this video is finished")
            return {"path": path}
        if refused is not None:
            raise refused
        if not self.in_batch:
            say(f"--resume: nothing to resume in {settings.outdir}; starting a new run")
        return None

    def _open(
        self, plan: Plan, identity: dict, settled: dict, source: Source | None, inputs: Inputs, spool: Path
    ) -> Inputs:
        """Opens the video's files, before weights are loaded, so that no other process starts the same run.

        Returns:
            the inputs, with as many frames of a video that is continued as windows take.
        """
        if self.settings.replay is not None:
            for line in manifest.changed_since(self.settings.replay, self.settings, plan, identity):
                say(line)
            line = manifest.other_machine(self.settings.replay, settled)
            if line is not None:
                say(line)
        if self.video is None:
            self._begin(plan, identity | {"seed": plan.seed}, settled)
            if self.settings.keep_parts:
                self._adopt(plan)
        elif self.video.journal.settled.get("threads", settled["threads"]) != settled["threads"]:
            was = self.video.journal.settled["threads"]
            say(f"--resume: begun with {was} CPU threads, now {settled['threads']}: frames can differ in the last bit")
        if source is not None and not self.video.journal.pieces:
            if source.segment is None:  # a resumed run that has not even this piece
                source, newest = decode_video(self.settings, spool, self.check)
                inputs = replace(inputs, prefix=newest)
            self.video.add_source(source, as_history(plan, inputs), lambda: source_frames(self.settings))
        self._add_sound(source, spool)
        if inputs.prefix is not None:
            inputs = replace(inputs, prefix=inputs.prefix[-plan.longest_history :].copy())
        return inputs

    def _add_sound(self, source: Source | None, spool: Path) -> None:
        """Puts the sound of a video that is continued beside the pieces."""
        if source is None:
            return
        path, line = place_sound(self.settings, source, spool)
        if path is not None:
            self.video.journal.place_sound(path)
        if line:
            say(f"--video_path {self.settings.video_path}: {line}")

    def _begin(self, plan: Plan, identity: dict, settled: dict) -> None:
        settings = self.settings
        outdir = settings.outdir
        try:
            self._made = [folder for folder in (outdir, *outdir.parents) if not folder.exists()]
            for folder in reversed(self._made):  # mkdir(parents=True) would recurse once for each
                folder.mkdir(exist_ok=True)
        except OSError as error:
            raise InputError("outdir", outdir, f"cannot be created ({error.strerror})") from None
        keys = piece_keys(settings, plan, identity, settled)
        stem = stem_of(settings, plan.seed)
        info = RunInfo(stem, settled, identity, settings.fps, keys, settings.keep_parts)
        self._watch(Journal.begin(outdir, info, alone=settings.resume), plan, identity, settled)

    def _watch(self, journal: Journal, plan: Plan, identity: dict, settled: dict) -> None:
        about = manifest.describe(self.script, self.settings, plan, identity, settled, journal.plan)
        wanted = not self.settings.no_preview, self.began, not self.settings.no_report, self.settings.quality
        self.video = Video(journal, about, plan, *wanted)
        if self.settings.frames_dir is not None:
            self.video.write_frames_to(self.settings.frames_dir)

    def _adopt(self, plan: Plan) -> None:
        """For --keep_parts: reuses the pieces that this run shares with a kept one."""
        by_latents = plan.history == "latent"  # except the first window, which continues the frames of a video
        windows = [window.window for window in plan.windows]
        history = [w.history_latents if by_latents and w.index else w.history_frames for w in windows]
        count = adopt_pieces(self.video.journal, [0] * self.video.prefix + history)
        if count:
            say(f"--keep_parts: {self.video.counted(count)} are reused from a kept run")

    def _remark(self, plan: Plan, source: Source | None) -> None:
        """Says what was changed or left to defaults; after loading, so that a refusal is one line."""
        settings = self.settings
        for line in self._remarks:
            say(line)
        for line in remarks_on(settings):
            if line not in self.shared.said:
                self.shared.said.add(line)
                say(line)
        if settings.seed is None:
            say(f"seed {plan.seed} (drawn; --seed {plan.seed} makes the same video)")
        if settings.dit_path is not None:
            size = f"{settings.height}x{settings.width}"
            say(f"--dit_path: weights do not say the size that they were trained for; this run makes {size}")
        noise = getattr(settings, "addnoise_condition", 0)
        if noise > MUCH_NOISE:
            say(f"--addnoise_condition {noise:g}: high; windows may not fit together (20 is usual)")
        if source is not None and source.changes:
            say(f"--video_path {settings.video_path}: {'; '.join(source.changes)}")


def settled_of(plan: Plan, place: Placement, holding: Holding, source: Source | None) -> dict:
    """What the run has chosen where settings were None, and what affects the last bits of the frames."""
    import torch

    dtype = str(place.dtype).removeprefix("torch.")
    prompt = plan.windows[0].prompt
    found = {
        "prompt": prompt,
        "device": place.device.type,
        "dtype": dtype,
        "vae_tiling": "on" if holding.tiled else "off",
        "threads": torch.get_num_threads(),
    }
    return found if source is None else found | {"source": source.about}


def as_history(plan: Plan, inputs: Inputs):
    """The newest frames of the video to continue, as a history: float32 ``[1, 3, t, H, W]`` in -1..1."""
    import torch

    from skyreels_v2_infer.pipelines.conditioning import to_video

    return to_video(inputs.prefix[-plan.longest_history :], torch.device("cpu")).numpy()
