"""The caches by name, their settings, and how both are written: ``NAME[:key=value,...]``."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from typing import Any, ClassVar

from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule


def _key(default: Any, legal: str, fits: Callable[[Any], bool]) -> Any:
    """A field that is a key of --cache.

    Args:
        legal: for messages: which values are.
    """
    return field(default=default, metadata={"legal": legal, "fits": fits})


def _threshold(default: float) -> Any:
    return _key(default, "a finite number, at least 0", lambda x: x >= 0)


def _retention() -> Any:
    return _key(0.2, "a number from 0 to 1", lambda x: 0 <= x <= 1)


@dataclass(frozen=True)
class CachePlan:
    """Settings of a cache; those that are not keys of --cache come from elsewhere."""

    name: ClassVar[str]

    @classmethod
    def options(cls) -> list[Field]:
        return [field for field in fields(cls) if field.metadata]

    def __str__(self) -> str:
        """As for --cache, with all keys."""
        return f"{self.name}:{','.join(f'{key.name}={getattr(self, key.name)!r}' for key in self.options())}"

    @property
    def found(self) -> dict[str, tuple[float, ...] | None]:
        """Settings by flag that come from the model if they are not given; None: not known without the model."""
        return {}

    def fewest_rows(self, schedule: Schedule) -> int:
        """Rows of a window that are computed whatever is measured."""
        raise NotImplementedError


@dataclass(frozen=True)
class TeaCachePlan(CachePlan):
    """See `modules.caches.teacache.TeaCache`."""

    name: ClassVar[str] = "teacache"
    threshold: float = _threshold(0.2)
    ret_steps: int = _key(0, "0 or 1", lambda x: x in (0, 1))
    coefficients: tuple[float, ...] | None = None

    @property
    def found(self) -> dict[str, tuple[float, ...] | None]:
        return {"teacache_coefficients": self.coefficients}

    def fewest_rows(self, schedule: Schedule) -> int:
        return min(len(schedule), 5 if self.ret_steps else 2)


@dataclass(frozen=True)
class EasyCachePlan(CachePlan):
    """See `modules.caches.easycache.EasyCache`."""

    name: ClassVar[str] = "easycache"
    threshold: float = _threshold(0.05)
    retention: float = _retention()

    def fewest_rows(self, schedule: Schedule) -> int:
        return int(schedule.at_ends(self.retention, last=1).sum())


@dataclass(frozen=True)
class MagCachePlan(CachePlan):
    """See `modules.caches.magcache.MagCache`; `ratios`: one per step of the run, of the conditional pass, then of the
    unconditional one."""

    name: ClassVar[str] = "magcache"
    threshold: float = _threshold(0.12)
    skips: int = _key(4, "a whole number, at least 1", lambda x: x >= 1)
    retention: float = _retention()
    ratios: tuple[float, ...] | None = None

    @property
    def found(self) -> dict[str, tuple[float, ...] | None]:
        return {"magcache_ratios": self.ratios}

    def fewest_rows(self, schedule: Schedule) -> int:
        return int(schedule.at_ends(self.retention, last=0).sum())


CACHES: dict[str, type[CachePlan]] = {plan.name: plan for plan in (TeaCachePlan, EasyCachePlan, MagCachePlan)}


def read_cache(text: str) -> CachePlan:
    """The settings in ``NAME[:key=value,...]``.

    Raises:
        ValueError: what is legal.
    """
    name, colon, rest = text.partition(":")
    if name not in CACHES:
        raise ValueError(f"must be {', '.join(CACHES)}, optionally with :key=value,...")
    kind = CACHES[name]
    keys, given = {key.name: key for key in kind.options()}, {}
    for pair in rest.split(",") if colon else ():
        key, equals, value = pair.partition("=")
        if not equals or key not in keys:
            raise ValueError(f"{name} takes {', '.join(f'{key}=' for key in keys)}; not {pair!r}")
        if key in given:
            raise ValueError(f"{key} is given twice")
        given[key] = _number(value, keys[key])
    return kind(**given)


def _number(text: str, key: Field) -> float:
    try:
        value = int(text) if isinstance(key.default, int) else float(text)
        if math.isfinite(value) and key.metadata["fits"](value):
            return value
    except ValueError:
        pass
    raise ValueError(f"{key.name} must be {key.metadata['legal']}")
