"""The files of a run that is not finished yet, from which it goes on after it was stopped, however that came.

A run makes its video in pieces, one for a prefix and one for each window. Its folder, beside where the video will be,
holds

- ``run.json``: what the run is (settings, files, seed), by which it is found again, and the pieces that are done, each
  with the size and the checksum of its segment; a piece counts once it stands here, so this file is replaced last;
- ``segment-0000.mp4``, ...: the pieces, each a video that plays;
- ``history-0001.npy``: the newest frames before the piece of that number, for the window to go on from;
- ``latents-0001.npy``: a window that is denoised but not decoded yet;
- ``ends-0000.png``, ...: the first and the last frame of each piece, small, for the preview.

Every file is written under another name first, and a lock keeps other processes away. Nothing here knows torch.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.write import VideoWriter, join_videos, publish
from skyreels_v2_infer.run.files import checksum, link_or_copy, read_array, take_lock, write_array, write_whole
from skyreels_v2_infer.run.manifest import as_ffmetadata, read, text_of

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FORMAT = 2  # of these files
SUFFIX, LOCK = ".parts", "lock"
FOLDER = re.compile(r".+-[0-9a-f]{12}(-\d+)?\.parts")
SHOWN = 60  # characters of a setting in a message


class DamagedError(InputError):
    """A file of a run that is not as it was written."""

    def __init__(self, path: Path, reason: str):
        super().__init__("resume", None, f"{path} is damaged ({reason}); remove {path.parent} to begin anew")


def digest_of(identity: dict) -> str:
    """What tells a run from others, short enough for a folder's name."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:12]


def text_checksum(content: dict) -> int:
    return zlib.crc32(json.dumps(content, sort_keys=True).encode())


def write_json(path: Path, content: dict) -> None:
    checked = {"checksum": text_checksum(content), **content}
    write_whole(path, lambda file: file.write(json.dumps(checked, indent=1).encode()))


def read_json(path: Path) -> dict:
    """What `write_json` wrote.

    Raises:
        DamagedError: it is not what was written. FileNotFoundError.
    """
    try:
        content = json.loads(path.read_bytes())
        if content.pop("checksum") != text_checksum(content) or content["format"] != FORMAT:
            raise ValueError("not what was written, or by another version")
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedError(path, str(error)) from None
    return content


class Journal:
    """One run's folder; made by `begin` or `resume`, and locked until `close`.

    Attributes:
        folder: where the files are.
        stem: of the video's name.
        identity: what tells the run from others.
        settled: what the run itself has settled, of what was asked for or left open: prompt, device, dtype.
        keep: whether the folder stays when the video is finished.
        pieces: for each piece that is done its segment's name, size and checksum, and what `done` was told about it.
    """

    def __init__(self, folder: Path, lock: int, run: dict):
        self.folder, self._lock, self._run = folder, lock, run
        self.stem, self.identity, self.settled = run["stem"], run["identity"], run["settled"]
        self.pieces: list[dict] = run["pieces"]

    # Beginning, finding and leaving

    @classmethod
    def begin(
        cls,
        outdir: Path,
        stem: str,
        identity: dict,
        settled: dict,
        fps: float,
        keys: Sequence[str],
        keep: bool = False,
        alone: bool = False,
    ) -> Journal:
        """A new run, beside any others.

        Args:
            outdir: where the video will be.
            stem: of its name.
            identity: what tells the run from others, as JSON has it; ``prompt`` and ``seed`` are in it.
            settled: prompt, device and dtype, as they are used.
            fps: frames per second.
            keys: for every piece what tells it, with all before it, from others; see `adopt`.
            keep: the folder stays when the video is finished, for `adopt`.
            alone: not beside another process that makes the same.

        Raises:
            InputError: there is such a process.
        """
        name = f"{stem}-{digest_of(identity)}"
        run = {"format": FORMAT, "stem": stem, "settled": settled, "identity": identity}
        run |= {"fps": fps, "keys": keys, "keep": keep, "pieces": [], "output": None}
        for number in itertools.count(1):
            folder = outdir / f"{name}{f'-{number}' if number > 1 else ''}{SUFFIX}"
            try:
                folder.mkdir()
                lock = take_lock(folder / LOCK)
            except (FileExistsError, FileNotFoundError):  # taken, or tidied up at once by `resume`
                if alone and is_locked(folder):
                    raise busy_with(folder) from None
                continue
            if lock is None:
                continue
            journal = cls(folder, lock, run)
            try:
                journal._write()
            except BaseException:
                journal.discard()
                raise
            return journal
        raise AssertionError("unreachable")

    @classmethod
    def resume(cls, outdir: Path, stem: str, identity: dict, keep: bool = False) -> Journal | None:
        """The interrupted run of this identity; None: there is none of this prompt and seed.

        Args:
            stem: of the video's name; without a seed what such names begin with.
            identity: as for `begin`; a seed that is None fits any.
            keep: from now on, as for `begin`.

        Raises:
            InputError: those of this prompt and seed differ otherwise; names in what. Or the run is still going on, or
                damaged.
        """
        busy, damaged, different = [], [], []
        begins = stem if identity["seed"] is None else f"{stem}-"
        folders = [path for path in outdir.glob(f"{glob.escape(begins)}*") if FOLDER.fullmatch(path.name)]
        # Kept ones that are finished come last: what was interrupted goes first.
        for folder in sorted(folders, key=lambda path: (is_finished(path), path)):
            try:
                lock = take_lock(folder / LOCK)
                if lock is None:
                    if not differences(read_json(folder / "run.json")["identity"], identity):
                        busy.append(folder)
                    continue
            except (OSError, DamagedError):  # somebody is just making or removing it, or it is somebody else's
                continue
            try:
                run = read_json(folder / "run.json")  # under the lock: what it says now holds
                changed = differences(run["identity"], identity)
                if not changed:
                    journal = cls._opened(folder, lock, run)
                    run["keep"] = run["keep"] or keep
                    lock = None
                    return journal
                # Of one that is not kept the folder may be left, if it was stopped after its video had got its name.
                other = cls(folder, lock, run)
                finished = run["output"] is not None and (run["keep"] or other._named() is not None)
                of_use = other.worth_keeping and not finished
                if of_use and not {"script", "prompt", "seed"} & set(changed):
                    different.append((folder, changed, run["identity"]))
            except FileNotFoundError:
                remove_beginning(folder)
            except DamagedError as error:  # with a seed names tell runs apart
                if identity["seed"] is None or folder.name.startswith(f"{stem}-{digest_of(identity)}"):
                    damaged.append(error)
            finally:
                if lock is not None:
                    os.close(lock)
        if busy:
            raise busy_with(busy[0])
        if damaged:
            raise damaged[0]
        if different:
            folder, changed, found = min(different, key=lambda item: len(item[1]))
            shown = [(name, *apart(found.get(name), identity.get(name))) for name in changed]
            names = "; ".join(f"--{name} was {was}, now is {now}" for name, was, now in shown)
            raise InputError("resume", None, f"the interrupted run in {folder} has other settings: {names}")
        return None

    def adopt(self, history: Sequence[int]) -> int:
        """Takes over the first pieces of a run that was kept, as many as are those of this run too -> how many.

        Args:
            history: for every piece, how many frames (or latents) it goes on from.
        """
        best: tuple[int, Path, dict] | None = None
        for folder in sorted(self.folder.parent.glob(f"{glob.escape(self.stem)}-*{SUFFIX}")):
            if folder == self.folder or not FOLDER.fullmatch(folder.name):
                continue
            try:
                run = read_json(folder / "run.json")
            except (OSError, DamagedError):
                continue
            alike = [mine == theirs for mine, theirs in zip(self._run["keys"], run["keys"], strict=False)]
            alike = [*alike[: len(run["pieces"])], False]
            whole = (same and not damaged_files(folder, i, run) for i, same in enumerate(alike))
            count = next(i for i, fine in enumerate(whole) if not fine)
            # What the next piece goes on from has to be there too.
            while count and count < len(history) and frames_in(folder / history_name(count)) < history[count]:
                count -= 1
            if count and (best is None or count > best[0]):
                best = count, folder, run
        if best is None:
            return 0
        count, folder, run = best
        names = [piece["name"] for piece in run["pieces"][:count]] + [ends_name(i) for i in range(count)]
        names += [history_name(i) for i in range(1, count + 1) if (folder / history_name(i)).exists()]
        try:
            for name in names:
                link_or_copy(folder / name, self.folder / name)
        except FileNotFoundError:  # removed meanwhile; what is here already gets replaced, or goes with the folder
            return 0
        self.pieces.extend(run["pieces"][:count])
        self._write()
        return count

    @classmethod
    def _opened(cls, folder: Path, lock: int, run: dict) -> Journal:
        journal = cls(folder, lock, run)
        if journal._named() is not None:
            return journal
        for number in range(len(journal.pieces)):
            for path in damaged_files(folder, number, run):
                raise DamagedError(path, "not what was written")
        # Anything else was being written, or was about to be removed.
        known = {"run.json", LOCK, journal._latents.name, journal._history.name, journal._joined.name}
        known |= {piece["name"] for piece in journal.pieces}
        known |= {ends_name(number) for number in range(len(journal.pieces))}
        if run["keep"]:
            known |= {history_name(number) for number in range(len(journal.pieces))}
        for path in folder.iterdir():
            if path.name not in known and not path.is_dir():
                path.unlink()
        return journal

    @property
    def worth_keeping(self) -> bool:
        """Whether anything is here that a resumed run need not make again."""
        return self.folder.is_dir() and (bool(self.pieces) or self.is_denoised)

    @property
    def is_denoised(self) -> bool:
        """Whether the window at hand has to be decoded only."""
        return self._latents.exists()

    def close(self) -> None:
        """Lets go of the folder; without anything worth keeping it is removed."""
        if self._lock is None:
            return
        if not self.worth_keeping:
            self.discard()
            return
        os.close(self._lock)
        self._lock = None

    def discard(self) -> None:
        # What tells of the run goes last: until then a run that is taken up again knows that the video has its name.
        found = self.folder.iterdir() if self.folder.is_dir() else ()  # somebody may have removed it
        for path in sorted(found, key=lambda path: path.name == "run.json"):
            if path.is_dir():  # a file server's, say
                shutil.rmtree(path, ignore_errors=True)
            elif path.name != LOCK:
                path.unlink()
        os.close(self._lock)
        self._lock = None
        remove_beginning(self.folder)

    @property
    def keep(self) -> bool:
        return self._run["keep"]

    @property
    def plan(self) -> str:
        """The last key: what tells this run's windows, settings and files from all others'."""
        return self._run["keys"][-1]

    # The piece at hand

    @property
    def _latents(self) -> Path:
        return self.folder / f"latents-{len(self.pieces):04d}.npy"

    @property
    def _history(self) -> Path:
        return self.folder / history_name(len(self.pieces))

    def state(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(latents of the window at hand if it is denoised, newest frames before it); each None if there are none."""
        if 0 < len(self.pieces) < len(self._run["keys"]) and not self._history.exists():
            raise DamagedError(self._history, "it is not there")
        return read_state(self._latents), read_state(self._history)

    def keep_latents(self, latents: np.ndarray) -> None:
        write_array(self._latents, latents)

    @contextmanager
    def segment(self, height: int, width: int, fps: float) -> Iterator[VideoWriter]:
        """What takes the frames of the piece at hand."""
        stem = f"segment-{len(self.pieces):04d}"
        (self.folder / f"{stem}.mp4").unlink(missing_ok=True)
        with VideoWriter(self.folder, stem, height, width, fps) as writer:
            yield writer

    def _ends(self, number: int) -> Path:
        return self.folder / ends_name(number)

    def ends(self, number: int) -> Image.Image:
        """What `done` was given for a piece."""
        from PIL import Image

        with Image.open(self._ends(number)) as picture:
            return picture.convert("RGB")

    def done(self, writer: VideoWriter, history: np.ndarray | None, about: dict, ends: Image.Image) -> None:
        """The piece at hand is finished.

        Args:
            writer: of its segment.
            history: the newest frames for the next one; None: none will ask.
            about: what the manifest says of it.
            ends: its first and last frame, see `preview.pair`.
        """
        at_hand = (self._latents,) if self.keep else (self._latents, self._history)
        path = writer.path
        piece = {"name": path.name, "checksum": checksum(path), **about}
        write_whole(self._ends(len(self.pieces)), lambda file: ends.save(file, format="PNG"))
        piece["ends_checksum"] = checksum(self._ends(len(self.pieces)))
        self.pieces.append(piece)
        try:
            if history is not None:
                write_array(self._history, history)
            self._write()
        except BaseException:
            self.pieces.pop()
            raise
        for path in at_hand:
            path.unlink(missing_ok=True)

    def _write(self) -> None:
        write_json(self.folder / "run.json", self._run)

    # The end

    def finish(
        self, manifest: dict, lasting: dict, preview: Callable[[Callable[[int], Image.Image]], Image.Image] | None
    ) -> Path:
        """Joins the segments, without coding them anew, under the first free name ``stem.mp4``; removes the folder.

        Args:
            manifest: goes beside the video, as JSON.
            lasting: what of it goes into the video.
            preview: makes of `ends` the picture that goes beside the video; None: none is wanted.
        """
        path = self._named()
        if path is None:
            write_whole(self._metadata, lambda file: file.write(as_ffmetadata(text_of(lasting)).encode()))
            names = [self.folder / piece["name"] for piece in self.pieces]
            join_videos(names, self._joined, self._run["fps"], self._metadata)
            path = publish(self._joined, self.folder.parent, self.stem, self._announce, (".json", ".png"))
        if not path.with_suffix(".json").exists():
            write_whole(path.with_suffix(".json"), lambda file: file.write(text_of(manifest).encode()))
        if preview is not None and not path.with_suffix(".png").exists():
            page = preview(self.ends)
            write_whole(path.with_suffix(".png"), lambda file: page.save(file, format="PNG"))
        if self.keep:
            for extra in (self._joined, self._metadata):
                extra.unlink(missing_ok=True)
            self.close()
        else:
            with suppress(OSError):  # the video is there; what is left of the folder is tidied up by the next --resume
                self.discard()
        return path

    @property
    def _metadata(self) -> Path:
        return self.folder / "metadata.txt"

    @property
    def _joined(self) -> Path:
        return self.folder / "joined.mp4"

    def _announce(self, name: str) -> None:
        self._run["output"] = name
        self._write()

    def _named(self) -> Path | None:
        """The finished video, if the run was stopped after it got its name."""
        if self._run["output"] is None:
            return None
        path = self.folder.parent / self._run["output"]
        if not path.exists():
            return None
        if self._joined.exists():
            if path.stat().st_size == 0:  # claimed on a file system without links, but not filled any more
                path.unlink()
                return None
            return path if path.samefile(self._joined) else None
        with suppress(InputError):  # without a manifest nothing says that it is another run's
            return path if read(path.with_suffix(".json")).get("plan") == self.plan else None
        return path


def history_name(number: int) -> str:
    return f"history-{number:04d}.npy"


def ends_name(number: int) -> str:
    return f"ends-{number:04d}.png"


def damaged_files(folder: Path, number: int, run: dict) -> list[Path]:
    """Those of a piece's files that are not as `Journal.done` wrote them."""
    piece = run["pieces"][number]
    files = {folder / piece["name"]: piece["checksum"], folder / ends_name(number): piece["ends_checksum"]}
    return [path for path, expected in files.items() if not path.exists() or checksum(path) != expected]


def frames_in(path: Path) -> int:
    """Of a history; 0: there is none that can be used."""
    try:
        return read_array(path).shape[2]
    except (OSError, ValueError):
        return 0


def read_state(path: Path) -> np.ndarray | None:
    """An array of a run; None: there is none.

    Raises:
        DamagedError: it is not what was written.
    """
    try:
        return read_array(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise DamagedError(path, str(error)) from None


def is_locked(folder: Path) -> bool:
    """Whether a process works in the folder."""
    with suppress(OSError):
        lock = take_lock(folder / LOCK)
        if lock is None:
            return True
        os.close(lock)
    return False


def busy_with(folder: Path) -> InputError:
    return InputError("resume", None, f"{folder} is being worked on by another process")


def is_finished(folder: Path) -> bool:
    """Whether a run's video has its name."""
    with suppress(OSError, DamagedError):
        return read_json(folder / "run.json")["output"] is not None
    return False


def differences(found: dict, wanted: dict) -> list[str]:
    """The settings in which two identities differ; a wanted seed of None fits any."""
    compared = [name for name in wanted | found if name != "seed" or wanted["seed"] is not None]
    return [name for name in compared if found.get(name) != wanted.get(name)]


def apart(one: object, other: object) -> tuple[str, str]:
    """Two values of a setting for a message: of long ones what differs, of several files those that do."""
    if isinstance(one, dict) and isinstance(other, dict):
        names = [name for name in one | other if one.get(name) != other.get(name)]
        one, other = ({name: value[name] for name in names if name in value} for value in (one, other))
    texts = str(one), str(other)
    first = 0
    if max(map(len, texts)) > SHOWN:
        common = next(
            (i for i, pair in enumerate(zip(*texts, strict=False)) if pair[0] != pair[1]), len(min(texts, key=len))
        )
        first = max(0, common - SHOWN // 3)
    return tuple("..." * (first > 0) + text[first : first + SHOWN] for text in texts)


def remove_beginning(folder: Path) -> None:
    """Removes the folder of a run that had hardly begun, or is all but gone; any other folder stays."""
    with suppress(OSError):
        for path in folder.iterdir():
            if path.name not in (LOCK, ".run.json.part"):
                return
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
