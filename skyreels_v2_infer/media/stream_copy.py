"""Taking over the video stream of a file as it is, where the frames written here can follow it in the same stream."""

from __future__ import annotations

from pathlib import Path

from skyreels_v2_infer.media.ffmpeg import OWN_FORMATS, Ffmpeg
from skyreels_v2_infer.media.probe import Probe, probe_file
from skyreels_v2_infer.media.timing import Packets, read_packets
from skyreels_v2_infer.media.write import VideoWriter


def can_follow(
    probe: Probe, packets: Packets, height: int, width: int, fps: float, quality: float, spool: Path
) -> bool:
    """Whether frames written by a `VideoWriter` can follow the stream without a new one being begun.

    So it is if both have the same size, rate, pixel format and tags, and the same headers of H.264, of which a file has
    one set: they hold all that decoding depends on. Videos that this program wrote with the same flags are such.

    Args:
        spool: a folder for a video of one frame, whose headers are compared.
    """
    tags = probe.range, probe.matrix, probe.primaries, probe.transfer
    plain = probe.rotation == 0 and probe.aspect == 1 and not probe.interlaced and tags == ("tv", *["bt709"] * 3)
    same = probe.codec == "h264" and probe.pixel_format == "yuv420p" and probe.stored == (height, width)
    if not (plain and same and probe.container == OWN_FORMATS):
        return False
    if not (packets.headers and packets.begins_with_key and packets.is_even(fps)):
        return False
    import numpy as np

    with VideoWriter(spool, "headers", height, width, fps, quality) as writer:
        writer.write(np.zeros((height, width, 3), np.uint8))
    own = read_packets(writer.path, probe_file(writer.path))
    writer.path.unlink()
    return own is not None and own.headers == packets.headers


def copy_stream(path: Path | str, probe: Probe, out: Path) -> bool:
    """Copies the video stream of the file at `path` to `out`, without encoding it again -> whether that worked."""
    arguments = ["-nostdin", "-y", "-protocol_whitelist", "file", "-format_whitelist", OWN_FORMATS]
    arguments += ["-i", f"file:{path}", "-map", f"0:{probe.index}", "-c", "copy", "-map_metadata", "-1"]
    with Ffmpeg([*arguments, "-f", "mp4", f"file:{out}"], out=out) as ffmpeg:
        if ffmpeg.succeeded() and out.exists():
            return True
    out.unlink(missing_ok=True)
    return False
