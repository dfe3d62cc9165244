"""How fast GPUs denoise: the rate that turns arithmetic into seconds."""

from __future__ import annotations

from dataclasses import dataclass

# TFLOP/s of the 14B at 540P on an H200, bfloat16, uncompiled: measured, see docs/speed.md.
MEASURED = 570.0
# Dense bfloat16 TFLOP/s of the data sheets. The other GPUs are taken to reach as much of theirs as the H200 does.
PEAKS = {
    "H200": 989.5,
    "H100": 989.5,
    "B200": 2250.0,
    "A100": 312.0,
    "L40S": 362.0,
    "RTX 5090": 209.5,
    "RTX 4090": 165.2,
    "RTX 3090": 71.0,
}


@dataclass(frozen=True)
class GpuRate:
    """TFLOP/s, and in words where it is from."""

    value: float
    source: str


H200 = GpuRate(MEASURED, "measured with the 14B on an H200")


def rate_of_gpu(name: str) -> GpuRate | None:
    """The rate of a GPU by its name, in any spelling; None: not in the table."""
    given = name.upper().replace("_", "").replace("-", "").replace(" ", "")
    for gpu, peak in PEAKS.items():
        if gpu.replace(" ", "") in given:
            if gpu == "H200":
                return H200
            return GpuRate(round(MEASURED * peak / PEAKS["H200"]), f"{gpu}, from the H200's by the data sheets")
    return None


def read_gpu_rate(text: str) -> GpuRate:
    """Converts TFLOP/s, or the name of a GPU in the table.

    Raises:
        ValueError: it is neither.
    """
    found = rate_of_gpu(text)
    if found is not None:
        return found
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise ValueError(f"must be TFLOP/s, above 0 and below 1000000, or one of {', '.join(PEAKS)}")
    return GpuRate(value, "--rate")


def in_words(seconds: float) -> str:
    """A duration in the unit that suits it."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{amount(seconds / length)} {unit}"
    return f"{amount(seconds)} seconds"


def amount(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
