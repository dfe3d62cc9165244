"""One job from the command line to a finished file: the only conductor.

What needs no weights is checked first, so that a wrong command ends within a second; torch is imported after that.
"""

import errno
import json
import os
import re
import secrets
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import say, silent
from skyreels_v2_infer.distributed.team import SilencedError, Team, assembled, own_device
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.video_io import check_ffmpeg
from skyreels_v2_infer.plan.naming import output_stem
from skyreels_v2_infer.plan.show import plan_of, scenes_and_scales, show
from skyreels_v2_infer.run import manifest as manifests
from skyreels_v2_infer.run.files import fingerprint
from skyreels_v2_infer.run.journal import Journal, digest_of
from skyreels_v2_infer.run.manifest import Look
from skyreels_v2_infer.run.session import (
    Job,
    choose_cache,
    generate,
    generate_df,
    open_checkpoint,
    settle,
    with_coefficients,
)
from skyreels_v2_infer.weights.locate import Checkpoint

__all__ = ["generate", "generate_df", "main"]

DONE, FAILED, REFUSED, INTERRUPTED, TERMINATED = 0, 1, 2, 130, 143

FORESEEN = (OSError, MemoryError, FloatingPointError)
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory")
SEEDS = 2**32  # a seed that nobody chose is below this: short enough to be typed again
INPUTS = ("image", "end_image", "video_path")  # files, of which the manifest has fingerprints
OF_A_PIECE = ("frames", "seconds", "brightness", "saturation", "seam")  # in the manifest


class Interrupts:
    """SIGINT and SIGTERM raise KeyboardInterrupt where they arrive, so that files are tidied up on the way out.

    Python drops an exception that is raised in a finalizer. So whoever works for long calls `check` now and then, which
    raises again what was dropped. A second signal ends the process at once, also in the middle of an operation that is
    not Python's, where no handler runs.

    Attributes:
        code: the exit code for the signal that has arrived; None: none has.
    """

    CODES = MappingProxyType({signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED})

    def __init__(self):
        self.code: int | None = None

    def __enter__(self) -> "Interrupts":
        self.before = {number: signal.signal(number, self._arrived) for number in self.CODES}
        heard, self.told = socket.socketpair()
        self.told.setblocking(False)
        self.told_before = signal.set_wakeup_fd(self.told.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self.told_before)
        self.told.close()

    def _listen(self, heard: socket.socket) -> None:
        """Hears of signals where they arrive, each a byte."""
        codes = []
        with heard:
            while number := heard.recv(1):
                codes += [code for known, code in self.CODES.items() if known == number[0]]
                if len(codes) > 1:
                    os._exit(codes[0])

    def _arrived(self, number: int, frame) -> None:
        if self.code is None:  # else `_listen` ends it
            self.code = self.CODES[number]
            raise KeyboardInterrupt

    def check(self) -> None:
        if self.code is not None:
            raise KeyboardInterrupt


class Run:
    """A job on its way: its journal, and what of it would be kept if it ended now."""

    def __init__(self, prog: str, settings: GenerateSettings):
        self.prog, self.began, self.loading = prog, time.perf_counter(), 0.0  # seconds
        self.journal: Journal | None = None
        self.path: Path | None = None  # of the video, once it is there
        self.made: list[Path] = []  # folders that were not there before, the innermost first
        self.prefix = int(getattr(settings, "video_path", None) is not None)
        self.pieces = self.prefix + len(plan_of(settings).windows)

    def left(self) -> str:
        """What a message about an early end says of the files."""
        if self.path is not None:
            return f"the video is complete: {self.path}"
        if self.journal is None or not self.journal.worth_keeping:
            return "no video was written"
        done = len(self.journal.pieces)
        also = ", and the next one is denoised" if self.journal.is_denoised else ""
        return f"{done} of {self.pieces} pieces are kept{also}; the same command with --resume goes on"

    def close(self) -> None:
        """Lets go of the files; folders that nothing has come into are gone again."""
        if self.journal is not None:
            self.journal.close()
        for folder in self.made:
            with suppress(OSError):
                folder.rmdir()


def main(
    prog: str,
    parse: Callable[[Sequence[str]], GenerateSettings],
    start: Callable[[Job], Iterator],
    argv: Sequence[str] | None = None,
) -> int:
    """Runs a script and returns its exit code: 0 done, 1 failed while running, 2 refused, 130 or 143 interrupted.

    Args:
        prog: what the script is called in messages.
        parse: argv -> settings; exits with 2 by itself.
        start: `generate` or `generate_df`.
        argv: arguments; None: the process's own.
    """
    if sys.stderr is None:  # closed; tracebacks and libraries would write to stdout then
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115  for the rest of the process
    code = _run(prog, parse, start, argv)
    if code and Launch.for_messages().size > 1:
        # Ending properly would wait on a GPU for ranks that wait for this one.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run(prog: str, parse, start, argv: Sequence[str] | None) -> int:
    interrupts, run = Interrupts(), None
    try:
        with interrupts:
            settings = parse(sys.argv[1:] if argv is None else argv)
            launch = Launch.from_environment()
            if settings.dry_run:
                return DONE if launch.rank else tell(prog, show(settings))
            if launch.rank:  # nothing to tidy up here, and Python would not see the signal while it waits for others
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
            if launch.size > 1:
                settings = replace(settings, device=own_device(settings.device, launch.local_rank))
            run = Run(prog, settings)

            def lost(reason: str) -> None:
                left = "--resume goes on from the last piece that was kept" if launch.rank else run.left()
                say(f"{prog}: failed: {reason}; {left}", from_any_rank=True)

            with assembled(launch, settings.device, lost) as team:
                try:
                    path = execute(run, settings, team, start, interrupts.check)
                    team.meet()  # the first rank still decodes and writes when the others are done
                finally:
                    run.close()
    except InputError as error:
        say(f"{prog}: {error}", from_any_rank=True)
        return REFUSED
    except SilencedError:
        if run is not None:
            say(f"{prog}: {run.left()}")  # only the first rank is heard
        return interrupts.code or FAILED
    except KeyboardInterrupt:
        say(f"{prog}: interrupted; {'no video was written' if run is None else run.left()}")
        return interrupts.code or INTERRUPTED
    except Exception as error:
        if not isinstance(error, FORESEEN) and not OUT_OF_MEMORY.search(str(error)):
            traceback.print_exc()  # nobody's disk or memory: a defect of ours, which its report needs
        left = "no video was written" if run is None else run.left()
        left = "" if Launch.for_messages().rank else f"; {left}"  # which only the first rank knows
        say(f"{prog}: failed: {type(error).__name__}: {first_line(error)}{left}", from_any_rank=True)
        return FAILED
    return DONE if path is None else tell(prog, path)


def execute(
    run: Run, settings: GenerateSettings, team: Team, start: Callable[[Job], Iterator], check: Callable[[], None]
) -> Path | None:
    """Does the job -> the video's path; None on other ranks than the first."""
    if not team.rank:
        check_ffmpeg()  # not after the first window
    checkpoint = open_checkpoint(settings, team)
    identity = {"script": run.prog} | identity_of(settings, checkpoint)
    if settings.replay is not None:
        for line in manifests.changed_since(settings.replay, settings, identity):
            say(line)
    found = None
    if settings.resume:
        found = team.same(None if team.rank else look_for(run, settings, identity))
        if found is not None and "path" in found:
            return None if team.rank else found["path"]
    if found is None:
        seed = team.same(secrets.randbelow(SEEDS)) if settings.seed is None else settings.seed
        identity |= {"seed": seed}
        settings = enhance(settle(replace(settings, seed=seed), checkpoint), team)
        if settings.keep_parts and not team.rank:
            found = take_over(begin(run, settings, identity), run, settings)
        found = team.same(found)
    if found is not None:
        settings = replace(settings, seed=found["seed"], prompt=found["prompt"], dtype=found["dtype"])
        if found["complete"]:  # joining needs no device
            return None if team.rank else finish(run, with_coefficients(settings, checkpoint))
        settings = settle(settings, checkpoint)
    if not team.rank and run.journal is None:  # before weights are loaded: no other process begins the same meanwhile
        begin(run, settings, identity)
    job = Job(settings, team, check, checkpoint, found and found["resume"])
    began = time.perf_counter()
    parts = start(job)
    run.loading = time.perf_counter() - began
    return write_video(run, job, parts)


def identity_of(settings: GenerateSettings, checkpoint: Checkpoint) -> dict:
    """What makes a run the same run: settings with an effect on the frames, and the files that they name."""
    identity = {name: value for name, value in asdict(settings).items() if name not in manifests.WITHOUT_EFFECT}
    for name, value in identity.items():
        if isinstance(value, Path):
            identity[name] = fingerprint(value)
    files = [file for part in checkpoint.parts.values() for file in part.files if file.is_file()]
    identity["model_id"] = {str(file.relative_to(checkpoint.folder)): fingerprint(file) for file in sorted(files)}
    cache = choose_cache(checkpoint, settings)
    if cache is not None:  # what they are may be written in the model's folder
        identity["teacache_coefficients"] = cache.coefficients
    return json.loads(json.dumps(identity))  # as it comes back from a file


def look_for(run: Run, settings: GenerateSettings, identity: dict) -> dict | None:
    """For --resume: what all ranks have to know of the interrupted run, or the path of the finished video."""
    stem = output_stem(settings.prompt, "" if settings.seed is None else settings.seed)
    refused = None
    try:
        run.journal = Journal.resume(settings.outdir, stem, identity, settings.keep_parts)
    except InputError as error:
        refused = error
    if run.journal is not None:
        return where_to_go_on(run, settings)
    path = manifests.finished(settings.outdir, stem, asked_for(identity), settings.seed)
    if path is not None:  # one that is asked for again must not be made again
        say("--resume: this video is finished")
        return {"path": path}
    if refused is not None:
        raise refused
    say(f"--resume: nothing to go on with in {settings.outdir}; this run begins with the first frame")
    return None


def where_to_go_on(run: Run, settings: GenerateSettings) -> dict:
    """What all ranks have to know of the run in the journal."""
    journal = run.journal
    done = len(journal.pieces)
    latents, history = journal.state()
    # Without a piece a prefix has to be read first; there are no latents then.
    resume = (done - run.prefix, latents, history) if done or latents is not None else None
    say(f"--resume: {done} of {run.pieces} pieces are there{', and the next one is denoised' * (latents is not None)}")
    return known_of(run, resume)


def known_of(run: Run, resume: tuple | None) -> dict:
    """What all ranks have to know of the run in the journal, which goes on from `resume`."""
    journal = run.journal
    found = {"seed": journal.identity["seed"], "prompt": journal.settled["prompt"], "dtype": journal.settled["dtype"]}
    return found | {"resume": resume, "complete": len(journal.pieces) == run.pieces}


def asked_for(identity: dict) -> str:
    """A hash of what was asked for, whatever the seed."""
    return digest_of(identity | {"seed": None})


def take_over(journal: Journal, run: Run, settings: GenerateSettings) -> dict | None:
    """As `where_to_go_on`, from the pieces of a kept run that are those of this run too."""
    windows = [window.window for window in plan_of(settings).windows]
    by_latents = getattr(settings, "history", None) == "latent"  # but for the first window, behind a prefix
    history = [w.history_latents if by_latents and w.index else w.history_frames for w in windows]
    count = journal.adopt([0] * run.prefix + history)
    if not count:
        return None
    say(f"--keep_parts: {count} of {run.pieces} pieces are those of a run that was kept")
    return known_of(run, (count - run.prefix, *journal.state()))


def keys_of(settings: GenerateSettings, identity: dict) -> list[str]:
    """For every piece what tells it, with all before it, from others: settings, windows and scenes so far."""
    plan = plan_of(settings)
    scenes, scales = scenes_and_scales(settings, plan)
    varying = {
        "num_frames",
        "prompt",
        "story",
        "guidance_scale",
        "end_image",
        "prompt_enhancer",
        "prompt_enhancer_model",
    }
    place = {name: value for name, value in settled(settings).items() if name != "prompt"}
    so_far: list = [{name: value for name, value in identity.items() if name not in varying} | place]
    keys = [digest_of({"pieces": so_far})] if getattr(settings, "video_path", None) is not None else []
    for window, scene, scale in zip(plan.windows, scenes, scales, strict=True):
        end = identity.get("end_image") if window.end_latents else None
        so_far.append([asdict(window.window), scene.prompt, scene.negative_prompt, scene.seed, scale, end])
        keys.append(digest_of({"pieces": so_far}))
    return keys


def enhance(settings: GenerateSettings, team: Team) -> GenerateSettings:
    """The settings with the prompt written out, if that was asked for; the language model is gone again afterwards."""
    if not settings.prompt_enhancer:
        return settings
    prompt = settings.prompt
    if not team.rank:
        import transformers

        from skyreels_v2_infer.pipelines.prompt_enhancer import PromptEnhancer

        if silent():
            transformers.logging.disable_progress_bar()
        device_map = "cpu" if settings.device == "cpu" else "auto"
        enhancer = PromptEnhancer(settings.prompt_enhancer_model, device_map)
        prompt = enhancer(settings.prompt)
        enhancer.free()
        say(f"prompt: {settings.prompt}")
        unusable = "not enhanced: the language model had no usable answer"
        say(unusable if prompt == settings.prompt else f"enhanced: {prompt}")
    return replace(settings, prompt=team.same(prompt))


def tell(prog: str, result: Path | str) -> int:
    """Prints the result, names of files as they are; where it cannot be printed, a video is still there."""
    line = f"{result}\n"
    try:
        if sys.stdout is None:
            raise OSError(errno.EBADF, "it is closed")
        sys.stdout.flush()
        if hasattr(sys.stdout, "buffer"):
            sys.stdout.buffer.write(as_bytes(line))
        else:  # a notebook's
            sys.stdout.write(line)
        sys.stdout.flush()
    except OSError as error:
        if sys.stdout is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python would fail once more at its exit
        complete = f", but the video is complete: {result}" if isinstance(result, Path) else ""
        say(f"{prog}: stdout cannot be written ({error.strerror}){complete}")
        return FAILED
    return DONE


def as_bytes(line: str) -> bytes:
    """Names of files as they are; what a prompt has beyond the locale's letters is written out."""
    try:
        return os.fsencode(line)
    except UnicodeEncodeError:
        return line.encode(sys.getfilesystemencoding(), "backslashreplace")


def write_video(run: Run, job: Job, parts: Iterator) -> Path | None:
    """Makes what is left of a video -> its path.

    On other ranks than the first, only goes through what is made; None.

    Args:
        parts: what is finished, stretch by stretch, decoded while it is written.
    """
    if job.team.rank:
        for _ in parts:
            job.check()
        return None
    from tqdm import tqdm

    settings, began = job.settings, time.perf_counter()
    journal = run.journal
    known = job.resume is not None and job.resume[1] is not None  # latents that are on the disk already
    frames, waited = 0, began
    with tqdm(desc="finished", unit=" frames", leave=False, disable=silent()) as bar:
        for part in parts:
            look = Look()
            if part.whole is not None and not known:
                journal.keep_latents(part.whole.cpu().numpy())
            known = False
            sampled = time.perf_counter()
            with journal.segment(settings.height, settings.width, settings.fps) as writer:
                for piece in frames_of([part]):
                    writer.write(piece)
                    look.add(piece)
                    bar.update(len(piece))
                    job.check()
            if part.whole is None and fingerprint(settings.video_path) != journal.identity["video_path"]:
                raise InputError("video_path", settings.video_path, "has changed while it was used")
            last = len(journal.pieces) + 1 == run.pieces
            ends = preview.pair(look.first, look.last)
            seconds = {"sampling": sampled - waited, "decoding": time.perf_counter() - sampled}
            about = {"frames": look.frames, "seconds": manifests.rounded(seconds), **look.figures()}
            about["seam"] = round(seam(journal, ends), 4)
            unneeded = last and not journal.keep
            journal.done(writer, None if unneeded else newest_frames(part), about, ends)
            frames += look.frames
            job.check()
            waited = time.perf_counter()
    path = finish(run, settings)
    say(f"{frames} frame{'s' * (frames != 1)}, seed {settings.seed}, {time.perf_counter() - began:.1f} s")
    return path


def newest_frames(part):
    """float32 ``[1, 3, t, H, W]`` as numpy; None where no window could go on."""
    if part.history is None or not part.history.keep:
        return None
    return part.history.all().numpy()


def seam(journal: Journal, ends) -> float:
    """How much the picture changes from the piece before to the one at hand, 0 to 1."""
    if not journal.pieces:
        return 0.0
    return preview.difference(preview.parted(journal.ends(len(journal.pieces) - 1))[1], preview.parted(ends)[0])


def finish(run: Run, settings: GenerateSettings) -> Path:
    """Puts the pieces together, with the manifest and the preview -> the video's path."""
    journal = run.journal
    pieces = [{name: piece[name] for name in OF_A_PIECE} for piece in journal.pieces]
    manifest = {
        "format": manifests.FORMAT,
        "script": run.prog,
        "settings": manifests.settings_of(settings) | {"device": journal.settled["device"]},
        "weights": journal.identity["model_id"],
        "inputs": {name: journal.identity[name] for name in INPUTS if journal.identity.get(name)},
        "versions": manifests.versions(),
        "plan": journal.plan,
        "pieces": pieces,
    }
    lasting = manifest | {"pieces": [{k: v for k, v in piece.items() if k != "seconds"} for piece in pieces]}
    seconds = {"loading": run.loading, "total": time.perf_counter() - run.began}
    manifest |= {"asked": asked_for(journal.identity)}
    manifest |= {"seconds": manifests.rounded(seconds), "peak_memory_gib": manifests.peak_memory()}
    firsts = [sum(piece["frames"] for piece in pieces[:i]) for i in range(len(pieces))]
    total = sum(piece["frames"] for piece in pieces)
    moved = manifests.drift(pieces, run.prefix)
    if moved is not None:
        say(moved)

    def page(ends):
        return preview.sheet(ends, firsts, total)

    run.path = journal.finish(manifest, lasting, None if settings.no_preview else page)
    return run.path


def frames_of(parts) -> Iterator:
    from skyreels_v2_infer.pipelines import base

    return base.frames_of(parts)


def begin(run: Run, settings: GenerateSettings, identity: dict) -> Journal:
    run.made = [folder for folder in (settings.outdir, *settings.outdir.parents) if not folder.exists()]
    try:
        settings.outdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError("outdir", settings.outdir, f"cannot be created ({error.strerror})") from None
    stem = output_stem(identity["prompt"], settings.seed)
    keys, keep, alone = keys_of(settings, identity), settings.keep_parts, settings.resume
    run.journal = Journal.begin(settings.outdir, stem, identity, settled(settings), settings.fps, keys, keep, alone)
    return run.journal


def settled(settings: GenerateSettings) -> dict:
    """What `settle` and `enhance` have made of what was asked for or left open."""
    return {"prompt": settings.prompt, "device": settings.device.partition(":")[0], "dtype": settings.dtype}
