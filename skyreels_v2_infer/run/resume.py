"""Finding runs in the output folder: the interrupted one to resume, and a kept one to reuse pieces of.

Runs are identified by reading; only one that is about to be used is locked. Imports no torch.
"""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run.files import is_locked, link_or_copy, take_lock
from skyreels_v2_infer.run.folder import (
    PATIENCE,
    damaged_files,
    frames_in,
    has_progress,
    published,
    refuse_links,
    remove_beginning,
)
from skyreels_v2_infer.run.journal import BusyError, Journal
from skyreels_v2_infer.run.record import (
    LOCK,
    NAME,
    SUFFIX,
    DamagedError,
    Record,
    digest_of,
    ends_name,
    history_name,
    read_record,
    segment_name,
)

ENDING = rf"-[0-9a-f]{{12}}(-[0-9]+)?{re.escape(SUFFIX)}"
FOLDER = re.compile(f".+{ENDING}", re.DOTALL)
OTHER_VIDEO = {"script", "prompt", "seed"}  # runs that differ in one of these are unrelated
SHOWN = 60  # characters of a setting in a message


@dataclass(frozen=True)
class Match:
    """A run that can be resumed."""

    folder: Path
    record: Record


@dataclass(frozen=True)
class Different:
    """An interrupted run of the same prompt and seed with other settings."""

    folder: Path
    found: dict
    changed: list[str]


class OtherSettingsError(InputError):
    """The interrupted runs of a prompt and seed have other settings."""


def resume_run(outdir: Path, stem: str, identity: dict, keep: bool = False) -> Journal | None:
    """Opens the interrupted run of this identity; None if there is none of this prompt and seed.

    Args:
        outdir: folder of the finished video.
        stem: file name of the video without extension; without a seed, the beginning of it.
        identity: see `RunInfo`; a seed of None matches any.
        keep: the folder stays when the video is finished.

    Raises:
        BusyError: another process is working on the run.
        DamagedError: one of its files is missing or not as it was written.
        OtherSettingsError: the interrupted runs of this prompt and seed have other settings; names the differences.
    """
    sightings = [classify(folder, stem, identity) for folder in run_folders(outdir, stem, identity["seed"])]
    matches = [found for found in sightings if isinstance(found, Match)]
    matches.sort(key=lambda match: match.record.output is not None)  # interrupted runs first, then finished ones
    damaged = [found for found in sightings if isinstance(found, DamagedError)]
    opened = open_first([match.folder for match in matches], identity, keep, damaged)
    if opened is not None:
        return opened
    if damaged:
        raise damaged[0]
    # A run that another process works on is ignored, whatever its settings.
    different = [found for found in sightings if isinstance(found, Different) and not is_locked(found.folder / LOCK)]
    if different:
        raise other_settings(min(different, key=lambda found: len(found.changed)), identity)
    return None


def run_folders(outdir: Path, stem: str, seed: int | None = 0) -> list[Path]:
    """Folders of runs of this stem, by name; without a seed, of all stems that begin with it. No symbolic links."""
    found = outdir.glob(f"{glob.escape(stem if seed is None else f'{stem}-')}*")
    named = FOLDER if seed is None else re.compile(re.escape(stem) + ENDING, re.DOTALL)
    return sorted(path for path in found if named.fullmatch(path.name) and path.is_dir() and not path.is_symlink())


def classify(folder: Path, stem: str, identity: dict) -> Match | Different | DamagedError | None:
    """How a run relates to one of this stem and identity, read without locking it; None: unrelated."""
    try:
        record = read_record(folder)
        changed = differences(record.info.identity, identity)
        if not changed:
            refuse_links(folder)
            return Match(folder, record)
    except FileNotFoundError:
        tidy_up(folder)
        return None
    except OSError:  # belongs to another user
        return None
    except DamagedError as error:  # with a seed the folder's name identifies the run
        same = identity["seed"] is None or folder.name.startswith(f"{stem}-{digest_of(identity)}")
        return error if same else None
    if OTHER_VIDEO & set(changed) or not has_progress(folder, record):
        return None
    # The folder of a run that is not kept may remain, if the run was killed after publishing its video.
    if record.output is not None and (record.info.keep or published(folder, record) is not None):
        return None
    return Different(folder, record.info.identity, changed)


def tidy_up(folder: Path) -> None:
    """Removes the folder of a run that was interrupted before it had a run.json."""
    with suppress(OSError):
        if any(path.name not in (LOCK, f".{NAME}.part") for path in folder.iterdir()):
            return
        lock = take_lock(folder / LOCK)
        if lock is not None:
            remove_beginning(folder)  # checks again, under the lock
            os.close(lock)


def open_first(folders: list[Path], identity: dict, keep: bool, damaged: list[DamagedError]) -> Journal | None:
    """Opens the first of these runs that no other process works on; None if none of them can be used.

    Args:
        damaged: errors of damaged runs are appended here.

    Raises:
        BusyError: other processes work on all usable ones.
    """
    deadline = time.monotonic() + PATIENCE
    busy = list(folders)
    while busy:
        for folder in tuple(busy):
            try:
                lock = take_lock(folder / LOCK)
                if lock is None:
                    continue
                journal = open_locked(folder, lock, identity, keep)
                if journal is not None:
                    return journal
            except DamagedError as error:
                damaged.append(error)
            except OSError:  # removed meanwhile, or belongs to another user
                pass
            busy.remove(folder)
        # A process with other settings holds a lock only briefly, to inspect the run.
        if busy and time.monotonic() > deadline:
            raise BusyError(busy[0])
        if busy:
            time.sleep(PATIENCE / 20)
    return None


def open_locked(folder: Path, lock: int, identity: dict, keep: bool) -> Journal | None:
    """Opens a run whose lock is taken; if it is another run by now, releases the lock and returns None."""
    journal = None
    try:
        record = read_record(folder)  # again: it may have changed before the lock was taken
        if not differences(record.info.identity, identity):
            record.info = replace(record.info, keep=record.info.keep or keep)
            journal = Journal.reopen(folder, lock, record)
    finally:
        if journal is None:
            os.close(lock)
    return journal


# Pieces of a kept run


def adopt_pieces(journal: Journal, history: Sequence[int]) -> int:
    """Reuses the first pieces of a kept run, as many as both runs have in common -> their number.

    Args:
        journal: of a run without pieces.
        history: for every piece, the number of frames (or latents) that its window starts from.
    """
    best, count = None, 0
    for run in other_runs(journal):
        usable = usable_pieces(journal, *run, history)
        if usable > count:
            best, count = run, usable
    if best is None:
        return 0
    folder, record = best
    names = [name(number) for number in range(count) for name in (segment_name, ends_name)]
    names += [history_name(number) for number in range(1, count + 1) if (folder / history_name(number)).exists()]
    try:
        for name in names:
            link_or_copy(folder / name, journal.folder / name)
    except FileNotFoundError:  # removed meanwhile; files linked so far are replaced, or removed with the folder
        return 0
    journal.extend(record.pieces[:count])
    return count


def other_runs(journal: Journal) -> Iterator[tuple[Path, Record]]:
    """The other runs of this stem."""
    for folder in run_folders(journal.folder.parent, journal.info.stem):
        if folder != journal.folder:
            with suppress(OSError, DamagedError):
                refuse_links(folder)
                yield folder, read_record(folder)


def usable_pieces(journal: Journal, folder: Path, record: Record, history: Sequence[int]) -> int:
    """How many of another run's first pieces this run shares, are intact, and can be continued."""
    count = 0
    for mine, theirs in zip(journal.info.keys, record.info.keys[: len(record.pieces)], strict=False):
        if mine != theirs or damaged_files(folder, count, record):
            break
        count += 1
    while count and count < len(history) and frames_in(folder / history_name(count)) < history[count]:
        count -= 1
    return count


# Differences between settings


def differences(found: dict, wanted: dict) -> list[str]:
    """Names of the settings in which two identities differ; a wanted seed of None matches any."""
    compared = [name for name in wanted | found if name != "seed" or wanted["seed"] is not None]
    return [name for name in compared if found.get(name) != wanted.get(name)]


def other_settings(run: Different, identity: dict) -> OtherSettingsError:
    """The error that names the differences from an interrupted run."""
    new = [f"--{name}" for name in run.changed if name not in run.found]
    shown = [(name, *apart(run.found[name], identity.get(name))) for name in run.changed if name in run.found]
    texts = [f"--{name} was {was}, now is {now}" for name, was, now in shown]
    if new:
        texts.append(f"it was begun by a version that did not record {', '.join(new)}; finish it with that one")
    names = "; ".join(texts)
    return OtherSettingsError("resume", None, f"the interrupted run in {run.folder} has other settings: {names}")


def apart(one: object, other: object) -> tuple[str, str]:
    """Two values of a setting, shortened to where they differ; of several files only those that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in one | other if one.get(name) != other.get(name)]
        one, other = ({name: value[name] for name in names if name in value} for value in (one, other))
    texts = str(one), str(other)
    first = 0
    if max(map(len, texts)) > SHOWN:
        pairs = enumerate(zip(*texts, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(map(len, texts)))
        first = max(0, same - SHOWN // 3)
    return tuple("..." * (first > 0) + text[first : first + SHOWN] for text in texts)
