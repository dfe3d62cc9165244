"""How ranks share a video: numbers alone, decided before torch is imported.

A rank belongs to one of `guidance` groups, each of which computes one branch of guidance. Within a group the tokens of
every latent frame are split over ``ulysses x ring`` ranks. Ulysses (DeepSpeed-Ulysses, Jacobs et al. 2023) exchanges
tokens for heads around attention, so it has to divide the heads; ring (Liu et al. 2023) passes keys and values around.
"""

from dataclasses import dataclass

from skyreels_v2_infer.errors import InputError

MOST_RANKS = 64  # up to which a message lists what is legal


@dataclass(frozen=True)
class Layout:
    """guidance: 1, or 2 where the branches are computed side by side. ulysses, ring: at least 1."""

    guidance: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def parts(self) -> int:
        """Into how many parts the tokens of a frame are split."""
        return self.ulysses * self.ring

    @property
    def ranks(self) -> int:
        return self.guidance * self.parts


def layouts(ranks: int, heads: int, frame_tokens: int, guided: bool) -> list[Layout]:
    """All legal ones, the best first: branches side by side, which need the least exchange, then the most Ulysses."""
    legal = []
    for guidance in (2, 1) if guided else (1,):
        parts, rest = divmod(ranks, guidance)
        if rest or not parts or frame_tokens % parts:
            continue
        for ulysses in range(parts, 0, -1):
            if parts % ulysses == 0 and heads % ulysses == 0:
                legal.append(Layout(guidance, ulysses, parts // ulysses))
    return legal


def choose_layout(
    ranks: int,
    heads: int,
    frame_tokens: int,
    *,
    guided: bool,
    cfg_parallel: bool | None = None,
    ulysses: int | None = None,
    ring: int | None = None,
) -> Layout:
    """The best legal layout that is as asked for.

    Args:
        ranks: processes.
        heads: of the transformer's attention.
        frame_tokens: tokens of a latent frame: height / 16 x width / 16 of the video.
        guided: whether there are two branches of guidance.
        cfg_parallel: whether each branch has ranks of its own; None: where the number of ranks allows it.
        ulysses, ring: degrees; None: chosen.

    Raises:
        InputError: none is; names what would be legal.
    """
    if cfg_parallel and not guided:
        raise InputError("cfg_parallel", None, "needs two branches of guidance; --guidance_scale 1 has one")

    def wanted(layout: Layout) -> bool:
        return (
            cfg_parallel in (None, layout.guidance == 2)
            and ulysses in (None, layout.ulysses)
            and ring in (None, layout.ring)
        )

    def legal(count: int) -> list[Layout]:
        return [layout for layout in layouts(count, heads, frame_tokens, guided) if wanted(layout)]

    found = legal(ranks)
    if found:
        return found[0]
    given = {"cfg_parallel": cfg_parallel, "ulysses_degree": ulysses, "ring_degree": ring}
    asked = [f"--{name}" if value is True else f"--{name} {value}" for name, value in given.items() if value]
    asked = f" with {' '.join(asked)}" if asked else ""
    counts = [str(count) for count in range(1, MOST_RANKS + 1) if legal(count)]
    choices = f"legal are {', '.join(counts)}" if counts else "no number of processes is legal"
    raise InputError(
        "use_usp",
        None,
        f"{ranks} processes cannot share {heads} heads and {frame_tokens} tokens a frame{asked}; {choices}",
    )
