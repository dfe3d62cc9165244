"""Device, precision, memory and compilation of a run, settled before weights are loaded."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cost import Holding, cost_of
from skyreels_v2_infer.plan.memory import Chosen
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.run.sizes import chosen_memory

if TYPE_CHECKING:
    from skyreels_v2_infer.runtime import Placement

# PFLOP from which compiling saves more time than it takes: about 10 s of compiling (H200, torch 2.11) against a tenth
# of the time of a run at 570 TFLOP/s (benchmarks/transformer.py).
WORTH_COMPILING = 60.0


def place_for(
    settings: GenerateSettings, plan: Plan, place: Placement | None = None, dtype: str | None = None
) -> Placement:
    """Device and precision, checked against the needs of the run.

    Args:
        place: from an earlier call.
        dtype: of an interrupted run; None: the settings'.
    """
    from skyreels_v2_infer.runtime import Placement, check_offload

    place = place or Placement.choose(settings.device, dtype or settings.dtype)
    if dtype is not None:
        place = place.with_dtype(dtype)
    if settings.offload:
        check_offload(place.device)
    if plan.sharing is not None and plan.sharing.ring > 1:
        place.check_ring()
    place.make_current()
    return place


def memory_for(
    settings: GenerateSettings, plan: Plan, config: dict, place: Placement, tiling: str | None, gib: float | None
) -> Chosen:
    """What the device holds when, so that the run fits into its memory.

    Args:
        tiling: "on" or "off" of an interrupted run; None: the settings'.
        gib: free memory, of the first rank.

    Raises:
        InputError: it does not fit, or a package that this needs is missing.
    """
    from skyreels_v2_infer.runtime import check_offload

    dtype = str(place.dtype).removeprefix("torch.")
    on_cpu = place.device.type == "cpu"
    chosen = chosen_memory(settings, plan, config, dtype, gib, on_cpu, tiling)
    if chosen.holding.offload == "blocks":
        check_offload(place.device)
    return chosen


def compiles(settings: GenerateSettings, plan: Plan, config: dict, place: Placement, holding: Holding) -> bool:
    """Whether to compile the transformer's blocks; by default if that saves more time than it takes."""
    asked = settings.compile
    if asked != "auto":
        return asked == "on"
    if place.device.type != "cuda" or holding.offload == "blocks":
        return False
    return worth_compiling(settings, plan, config)


def worth_compiling(settings: GenerateSettings, plan: Plan, config: dict) -> bool:
    """Whether compiling saves more time than it takes, on a GPU."""
    return not settings.offload and cost_of(plan, config, weight_bytes=2).pflop >= WORTH_COMPILING


def check_packages(plan: Plan) -> None:
    """Raises an `InputError` if the plan splits tokens over ranks and yunchang is not installed."""
    if plan.sharing is not None and plan.sharing.parts > 1 and find_spec("yunchang") is None:
        raise InputError("use_usp", None, "needs yunchang: pip install yunchang")
