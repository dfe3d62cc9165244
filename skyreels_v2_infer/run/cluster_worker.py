"""What a worker of a cluster does: makes videos, alone or as one rank of a group. Knows nothing of Ray."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from skyreels_v2_infer.cli.batch import ADDRESSES
from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.distributed.team import assembled
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.launch import Launch
from skyreels_v2_infer.media.download import download_video
from skyreels_v2_infer.media.ffmpeg import check_ffmpeg
from skyreels_v2_infer.media.images import download_image
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.run.batch import Maker, record_of
from skyreels_v2_infer.run.dispatch import Outcome
from skyreels_v2_infer.run.row_checks import CheckedRow
from skyreels_v2_infer.run.session import Session
from skyreels_v2_infer.run.summary import FAILED

# Of the command's environment, what decides on frames or on network access; the rest is that of `ray start`.
PASSED_ON = ("HF_HUB_OFFLINE", "MKL_NUM_THREADS", "OMP_NUM_THREADS")


@dataclass(frozen=True)
class Place:
    """What a worker has to know to begin.

    Attributes:
        script: name of the script.
        folder: working directory of the command, to which paths are relative.
        environment: the values of PASSED_ON; a variable that is missing is removed.
        device: "cpu" or "cuda:0", the only GPU that a worker sees.
        rank, size: in its group.
    """

    script: str
    folder: str
    environment: Mapping[str, str]
    device: str
    rank: int = 0
    size: int = 1


class RankWorker:
    """One process of a group. `stop` and `progress` may be called by another thread while `make` runs."""

    def __init__(self):
        self._followed: VideoProgress | None = None
        self._stopping = threading.Event()
        self._open = ExitStack()

    def free_port(self, host: str) -> tuple[str, str]:
        """(this host, a free port), where the ranks of a group find each other."""
        with socket.socket() as found:
            found.bind(("", 0))
            return host, str(found.getsockname()[1])

    def begin(self, place: Place, meeting_point: tuple[str, str] | None = None) -> str:
        """Becomes what the command's own process would be -> the machine's name. To be called once, before anything
        imports torch.

        Raises:
            OSError: the working directory is missing on this machine, or ffmpeg cannot be used.
            ConnectionError: the other ranks cannot be reached.
        """
        try:
            os.chdir(place.folder)
        except OSError as error:
            raise OSError(f"{place.folder}: {error.strerror}; all machines need the same folders") from None
        for name in PASSED_ON:
            os.environ.pop(name, None)
        os.environ.update(place.environment)
        if meeting_point is not None:
            rank, size = str(place.rank), str(place.size)
            os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size)
            os.environ.update(zip(("MASTER_ADDR", "MASTER_PORT"), meeting_point, strict=True))
        check_ffmpeg()
        import torch

        torch.get_num_threads()  # MKL reads the environment now
        self.device = place.device
        team = self._open.enter_context(assembled(Launch.from_environment(), place.device))
        session = partial(Session, progress=self._follow)
        self.maker = Maker(place.script, team, self.check, session)
        return socket.gethostname()

    def make(self, coming: Sequence[CheckedRow]) -> Outcome:
        """Makes the first of these videos, see `Maker.make`; on all ranks but the first the outcome has no record."""
        self._followed = None
        try:
            result = self.maker.make([self._here(coming[0]), *coming[1:]])
        except KeyboardInterrupt:
            return Outcome(is_kept=bool(self.maker.kept()))
        except Exception as error:  # while several ranks computed together
            reason = self.maker.team.reason() or first_line(error)
            record = record_of(self.maker.script, coming[0].row, self.maker.team.size)
            return Outcome(replace(record, status=FAILED, error=reason), lost=reason)
        return Outcome(result, failures=self.maker.failures, is_busy=self.maker.is_busy)

    def progress(self) -> float:
        """The part of the current video's rows that is done, 0 to 1."""
        done, rows = (0, 0) if self._followed is None else self._followed.counts()
        return done / max(1, rows)

    def stop(self) -> None:
        self._stopping.set()

    def check(self) -> None:
        """Raises KeyboardInterrupt once the worker has to stop."""
        if self._stopping.is_set():
            raise KeyboardInterrupt

    def _here(self, video: CheckedRow) -> CheckedRow:
        """The video on this worker's device; the first rank, which reads inputs, downloads those it does not have."""
        settings = video.row.settings.on_device(self.device)
        if not self.maker.team.rank:
            settings = with_images(settings, video.row.command)
        return replace(video, row=replace(video.row, settings=settings))

    def _follow(self, check: Callable[[], object], lines: bool) -> VideoProgress:
        self._followed = VideoProgress(check, lines)
        return self._followed


def with_images(settings: GenerateSettings, command: Sequence[str]) -> GenerateSettings:
    """Settings whose images and video exist on this machine: what the command gives as an address is downloaded again.

    One that cannot be downloaded stays missing, which is the error of the video.
    """
    for name in ADDRESSES:
        path: Path | None = getattr(settings, name, None)
        for word in () if path is None or path.exists() else command:
            address = word.removeprefix(f"--{name}=")
            if address != word and address.lower().startswith(("http://", "https://")):
                download = download_video if name == "video_path" else download_image
                with suppress(InputError, OSError):
                    settings = replace(settings, **{name: download(address, name)})
    return settings
