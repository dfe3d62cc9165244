"""Images and videos of a run: each is decoded and fitted once, before the model is loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.ffmpeg import QUALITY
from skyreels_v2_infer.media.images import read_image
from skyreels_v2_infer.media.picture_video import as_video, is_pictures
from skyreels_v2_infer.media.probe import Probe, probe_file
from skyreels_v2_infer.media.rates import exact
from skyreels_v2_infer.media.read import Decoded, VideoInfo, decode_prefix, probe_video, read_video
from skyreels_v2_infer.media.sound import Sound, extract_sound, sound_of
from skyreels_v2_infer.media.statistics import Look
from skyreels_v2_infer.media.stream_copy import can_follow, copy_stream
from skyreels_v2_infer.media.timing import Packets, check_gaps, read_packets
from skyreels_v2_infer.media.video_filters import changes as changed_frames
from skyreels_v2_infer.media.write import VideoWriter
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.run.files import fingerprint

if TYPE_CHECKING:
    import numpy as np

SAME_RATE = 0.001  # rates that differ by less are the same


@dataclass(frozen=True)
class Source:
    """The video that is continued.

    Attributes:
        frames: number of its frames in the result.
        about: where they come from, for the manifest.
        changes: what is changed on the way in, in words.
        sound: what the result takes over of it; None: nothing.
        look: its statistics, first and last frame. segment: the video at the size and rate of the result. Both are None
            if its frames were only counted.
    """

    frames: int
    about: dict
    changes: tuple[str, ...]
    sound: Sound | None = None
    look: Look | None = None
    segment: Path | None = None


def read_images(settings: GenerateSettings, changed: dict[str, list[str]] | None = None) -> Inputs:
    """The pictures that the settings name, decoded and fitted to the video's size.

    Args:
        changed: receives for each of them by flag what was changed on the way in, in words.

    Raises:
        InputError: a file is missing or damaged.
    """
    images = {}
    for name in ("image", "end_image"):
        path = getattr(settings, name, None)
        if path is not None:
            said: list[str] = []
            form = settings.height, settings.width, name, settings.input_options
            images[name] = read_image(path, *form, said)
            if said and changed is not None:
                changed[name] = said
    return Inputs(**images)


def count_video(settings: GenerateSettings) -> Source | None:
    """The video that is continued, of which only the length and rate are found; None: there is none.

    Raises:
        InputError: the file is missing or damaged.
    """
    path = getattr(settings, "video_path", None)
    if path is None:
        return None
    with TemporaryDirectory() as folder:
        opened = _Opened(settings, Path(folder))
        return opened.source(probe_video(opened.path, rate=opened.rate))


def decode_video(
    settings: GenerateSettings, spool: Path, check: Callable[[], object]
) -> tuple[Source, np.ndarray] | None:
    """Decodes the video that is continued once, for everything -> it and its newest frames; None: there is none.

    Args:
        spool: folder for the `Source.segment`.
        check: called regularly; raises once the process has to stop.

    Returns:
        the frames: uint8 ``[t, H, W, 3]``, as many as a window can have as history.

    Raises:
        InputError: the file is missing, damaged, or changes while it is read.
    """
    path = getattr(settings, "video_path", None)
    if path is None:
        return None
    before, opened = fingerprint(path), _Opened(settings, spool, check)
    segment, found, look = opened.copy(spool), None, Look()
    if segment is not None:
        found = opened.decode(look, check)
        if found.read != len(opened.packets.starts):  # not every packet is a frame that is shown
            segment, look = None, Look()
            (spool / "copied.mp4").unlink()
    if segment is None:
        form = settings.height, settings.width, settings.fps, settings.quality
        with VideoWriter(spool, "prefix", *form, least=QUALITY) as writer:
            found = opened.decode(look, check, writer)
        segment = writer.path
    if fingerprint(path) != before:
        raise InputError("video_path", path, "has changed while it was read")
    return opened.source(found, look, segment), found.newest


def source_frames(settings: GenerateSettings) -> Iterator[np.ndarray]:
    """The frames of the video that is continued, as `decode_video` reads them, uint8 ``[H, W, 3]``."""
    with TemporaryDirectory() as folder:
        opened, form = _Opened(settings, Path(folder)), (settings.height, settings.width)
        yield from read_video(opened.path, *form, options=settings.input_options, rate=opened.rate)


def place_sound(settings: GenerateSettings, source: Source, spool: Path) -> tuple[Path | None, str]:
    """The sound of the video that is continued in a file of its own, None if there is none, and what became of it."""
    if source.sound is None:
        return None, ""
    out = spool / "sound.mp4"
    made = extract_sound(settings.video_path, source.sound, out)
    if made is None:
        return None, f"its sound ({source.sound.codec}) cannot be read and is left out"
    if source.sound.copied and not made.copied:
        return out, f"its sound ({made.codec}) cannot be copied and is encoded as AAC"
    return out, ""


def file_of(
    settings: GenerateSettings, folder: Path, check: Callable[[], object] = lambda: None
) -> tuple[Path, list[str]]:
    """The file of the video that is continued, and what was changed to make it: of pictures a video in `folder`."""
    path = settings.video_path
    if not is_pictures(path):
        return path, []
    made = folder / "pictures.mkv"
    form = settings.height, settings.width, settings.fps
    return made, as_video(path, *form, made, settings.input_options, check)


class _Opened:
    """A video that is to be continued, before it is decoded.

    Args:
        folder: for the video that is made of pictures.
        check: called meanwhile.

    Attributes:
        path: of its file. notes: what was changed to make it, in words.
        packets: None where the file has no timestamps.
        rate: at which it is read by timestamps; None: frame for frame.
    """

    def __init__(self, settings: GenerateSettings, folder: Path, check: Callable[[], object] = lambda: None):
        path, self.notes = file_of(settings, folder, check)
        self.settings, self.path = settings, path
        self.probe: Probe = probe_file(path)
        self.packets: Packets | None = read_packets(path, self.probe)
        self.rate = None if settings.keep_rate or self.packets is None else settings.fps
        if self.rate is not None:
            check_gaps(self.packets, path, "video_path", self.rate)

    def copy(self, spool: Path) -> Path | None:
        """Its stream in a file of its own, without encoding it again; None where that is not possible."""
        settings, out = self.settings, spool / "copied.mp4"
        form = settings.height, settings.width, settings.fps, settings.quality
        if settings.input_color is not None:
            return None
        if self.packets is None or not can_follow(self.probe, self.packets, *form, spool):
            return None
        return out if copy_stream(self.path, self.probe, out) else None

    def decode(self, look: Look, check: Callable[[], object], writer: VideoWriter | None = None) -> Decoded:
        settings = self.settings
        form = self.path, settings.height, settings.width, settings.base_num_frames
        return decode_prefix(*form, writer, look, check, options=settings.input_options, rate=self.rate)

    def source(self, found: VideoInfo | Decoded, look: Look | None = None, segment: Path | None = None) -> Source:
        sound, about_sound = self._sound(found)
        about = {"frames": found.frames, "fps": round(found.fps, 3), "read_frames": found.read}
        about["read_by"] = "number" if self.rate is None else "timestamps"
        about["sound"] = sound.codec if sound is not None else None
        size = self.settings.height, self.settings.width
        changes = [*self.notes, *changed_frames(self.probe, self.settings.input_options, size)]
        changes += [*([found.damage] if found.damage else []), *self._time(found)]
        changes += [about_sound] if about_sound else []
        return Source(found.read, about | {"changes": changes}, tuple(changes), sound, look, segment)

    def _time(self, found: VideoInfo | Decoded) -> list[str]:
        """What becomes of its rate, in words."""
        fps, rate = found.fps, self.settings.fps
        same = not fps or abs(fps / rate - 1) < SAME_RATE
        if self.rate is None:
            if self.packets is None and not self.settings.keep_rate:
                return [f"without timestamps, plays at {rate:g} fps"]
            return [] if same else [f"{fps:g} fps kept frame for frame, plays at {rate:g}"]
        if not self.packets.is_even():
            return [f"uneven frame rate ({fps:.4g} fps on average) read at {rate:g}"]
        return [] if same else [f"{fps:.5g} fps read at {rate:g}"]

    def _start(self, found: VideoInfo | Decoded) -> Fraction:
        """When the first frame that is read is shown, in seconds of the file's clock."""
        if self.packets is None:
            return Fraction(0)
        if not self.probe.may_be_cut:
            return self.packets.start
        return min((start * self.packets.tick for start in self.packets.starts), key=lambda at: abs(at - found.start))

    def _sound(self, found: VideoInfo | Decoded) -> tuple[Sound | None, str]:
        """The sound that is kept, and what becomes of it in words."""
        sound = sound_of(self.probe, self._start(found), found.read / exact(self.settings.fps))
        if sound is None:
            return None, ""
        if self.settings.no_audio:
            return None, "sound left out (--no_audio)"
        if self.rate is None and abs(found.fps / self.settings.fps - 1) >= SAME_RATE:
            return None, "sound left out, which does not fit frames that play at another rate"
        return sound, f"sound kept ({sound.codec if sound.copied else f'{sound.codec}, encoded as AAC'})"
