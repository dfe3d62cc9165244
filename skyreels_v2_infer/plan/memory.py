"""What the device holds when, so that a run fits into its memory: the fastest combination whose planned peak fits."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cost import Cost, Holding, cost_of
from skyreels_v2_infer.plan.plan import Plan

USABLE = 0.95  # of the memory; the rest is for what libraries allocate, and for gaps between allocations
WAYS = {"parts": "each part on the GPU only while it computes", "blocks": "the transformer block by block"}
TILING = {"auto": (False, True), "on": (True,), "off": (False,)}


@dataclass(frozen=True)
class Chosen:
    """A combination and what it costs.

    Attributes:
        cost: of the plan in this way. usual: with all that the flags allow to stay on the device.
        gib: the memory that it was chosen for; None: unlimited.
        given: whether by --memory; otherwise it is what was free on the device.
    """

    holding: Holding
    cost: Cost
    usual: Cost
    gib: float | None = None
    given: bool = False

    def lines(self) -> Iterator[str]:
        """Why, unless there is enough memory for the usual way."""
        words = in_words(self.holding)
        if self.gib is None or self.cost == self.usual or not words:
            return
        memory = f"--memory {self.gib:g}" if self.given else f"{self.gib:.1f} GiB of GPU memory are free"
        usual, peak = self.usual.peak_gib, self.cost.peak_gib
        yield f"{memory}: {words}; planned peak {peak:.1f} GiB instead of {usual:.1f}"
        if self.holding.tiled:
            yield "VAE in tiles: frames can differ in the last bits, so this is recorded; --vae_tiling off forbids it"


def in_words(holding: Holding) -> str:
    words = [WAYS[holding.offload]] if holding.offload in WAYS else []
    words += ["encoders layer by layer"] * holding.layers + ["the VAE in tiles"] * holding.tiled
    return ", ".join(words)


def combinations(offload: bool, tiling: str, on_cpu: bool) -> Iterator[Holding]:
    """All that the flags allow, in the order of preference: the same frames first, then the faster ones.

    Args:
        offload: --offload is given. tiling: --vae_tiling.
    """
    for tiled in TILING[tiling]:
        if on_cpu:
            yield Holding(tiled=tiled)
            continue
        for way in ("blocks",) if offload else ("none", "parts", "blocks"):
            for layers in (False, True):
                yield Holding(way, layers, tiled)


def choose(
    plan: Plan,
    config: dict,
    *,
    weight_bytes: int,
    gib: float | None = None,
    given: bool = False,
    vae_bytes: int = 4,
    loaded: Mapping[str, float] = MappingProxyType({}),
    offload: bool = False,
    tiling: str = "auto",
    on_cpu: bool = False,
) -> Chosen:
    """The first combination whose planned peak fits.

    Args:
        gib, given: see `Chosen`.
        weight_bytes, vae_bytes, loaded, on_cpu: see `cost_of`.
        offload: --offload is given. tiling: --vae_tiling.

    Raises:
        InputError: none fits.
    """
    peaks: list[Cost] = []
    for holding in combinations(offload, tiling, on_cpu):
        how = {"weight_bytes": weight_bytes, "vae_bytes": vae_bytes, "loaded": loaded, "on_cpu": on_cpu}
        peaks.append(cost_of(plan, config, holding=holding, **how))
        if gib is None or peaks[-1].peak_gib <= USABLE * gib:
            return Chosen(holding, peaks[-1], peaks[0], gib, given)
    least = min(peaks, key=lambda cost: cost.peak_gib)
    stage = max(least.stages, key=least.stages.__getitem__)
    if on_cpu and weight_bytes > 2 and least.weights_gib > least.activations_gib:
        hint = "--dtype bfloat16 halves the weights"
    elif stage == "texts":
        hint = "a quantised text encoder (--text_encoder_path) takes less"
    elif stage == "decoding" and tiling == "off":
        hint = "--vae_tiling auto takes less"
    else:
        smaller = "fewer frames in a window, or a smaller --height and --width, take less"
        hint = f"--vae_dtype bfloat16, {smaller}" if stage == "decoding" and vae_bytes == 4 else smaller
    need = f"the smallest planned peak is {least.peak_gib:.1f} GiB ({stage})"
    if given:
        raise InputError("memory", f"{gib:g}", f"{need}, of which {100 * USABLE:.0f} % may be used; {hint}")
    legal = f"{gib:.1f} GiB are free on the GPU, and {need}; {hint}; --memory with a larger number tries anyway"
    raise InputError("memory", None, legal)
