"""What is missing or damaged in a broadcast stream, from the messages of its decoding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media.probe import Probe

WORST = 0.5  # share of the pictures that may be missing or damaged


def check_damage(messages: Sequence[str], probe: Probe, path: Path | str, name: str) -> str:
    """What was left out or is damaged, in words; "" if nothing is.

    Args:
        messages: of an ffmpeg with ``verbose="counts"``.

    Raises:
        InputError: for the flag `name`: more than `WORST` of the pictures are missing or damaged.
    """
    counts = next(
        (found for line in messages if (found := _COUNTS.search(line)) and int(found[1]) == probe.index), None
    )
    if counts is None:
        return ""
    packets, frames = int(counts[2]), int(counts[3])
    if probe.interlaced and packets >= 1.5 * frames:  # a field each
        packets = (packets + 1) // 2
    left_out = max(packets - frames, 0)
    # Of a picture that is lost as a whole only the packets around it say so.
    concealed = sum("corrupt decoded frame" in line for line in messages)
    torn = sum(f"corrupt input packet in stream {probe.index}" in line for line in messages)
    damaged = min(max(concealed, torn), frames)
    total = max(packets, frames, 1)
    if left_out + damaged > WORST * total:
        legal = f"must have at most {WORST:.0%} of its pictures missing or damaged, but {left_out} of {total} cannot be"
        raise InputError(name, path, f"{legal} decoded and {damaged} are damaged")
    said = []
    if left_out:
        said.append(f"{left_out} of {total} pictures left out, which cannot be decoded")
    if damaged:
        said.append(f"{damaged} of {total} pictures are damaged or follow a gap")
    return "; ".join(said)


_COUNTS = re.compile(r"Input stream #0:(\d+) \(video\): (\d+) packets read \(\d+ bytes\); (\d+) frames decoded;")
