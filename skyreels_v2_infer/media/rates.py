"""Frame rates: broadcast rates are fractions, 30000/1001 and its like, which decimals only approximate.

A rate is a whole number, or the float that is nearest to a fraction with a denominator of at most 1001, from which
`exact` gives the fraction back.
"""

from __future__ import annotations

import re
from fractions import Fraction

LOWEST, HIGHEST = 1, 240
LEGAL = "must be a rate from 1 to 240: a whole number, a decimal such as 23.976, or a fraction such as 30000/1001"
LARGEST = 1001  # denominator
# 1000/1001 of these is what 23.976, 29.97, 47.95, 59.94, 119.88 and their like stand for.
_BROADCAST = (24, 30, 48, 60, 72, 96, 120, 144, 240)


def read_rate(text: str) -> int | float:
    """A rate from ``24``, ``29.97`` or ``30000/1001``; decimals near a broadcast rate are that rate.

    Raises:
        ValueError: it is no number, or out of range; the message is `LEGAL`.
    """
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{0,20}|/[0-9]{1,9})?", text, re.ASCII) or re.search(r"/0+$", text):
        raise ValueError(LEGAL)
    rate = Fraction(text)
    if "." in text:
        rate = next((near for near in map(_broadcast, _BROADCAST) if abs(rate - near) < Fraction(1, 200)), rate)
    rate = rate.limit_denominator(LARGEST)
    if not LOWEST <= rate <= HIGHEST:
        raise ValueError(LEGAL)
    return rate.numerator if rate.denominator == 1 else float(rate)


def _broadcast(whole: int) -> Fraction:
    return Fraction(1000 * whole, 1001)


def exact(rate: float) -> Fraction:
    """The fraction that a rate stands for."""
    return Fraction(rate).limit_denominator(LARGEST)


def rate_text(rate: float) -> str:
    """A rate as ffmpeg reads it: ``24``, ``30000/1001``."""
    return str(exact(rate))
