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


@dataclass(frozen=True)
class Wanted:
    """What is asked of a layout; None: anything.

    cfg_parallel: whether each branch of guidance has ranks of its own. ulysses, ring: degrees.
    """

    cfg_parallel: bool | None = None
    ulysses: int | None = None
    ring: int | None = None

    def allows(self, layout: Layout) -> bool:
        asked = (self.cfg_parallel, self.ulysses, self.ring)
        has = (layout.guidance == 2, layout.ulysses, layout.ring)
        return all(wish in (None, is_so) for wish, is_so in zip(asked, has, strict=True))

    def __str__(self) -> str:
        flags = [] if self.cfg_parallel is None else ["--cfg_parallel" if self.cfg_parallel else "--no-cfg_parallel"]
        flags += [] if self.ulysses is None else [f"--ulysses_degree {self.ulysses}"]
        flags += [] if self.ring is None else [f"--ring_degree {self.ring}"]
        return " ".join(flags)


def legal_counts(heads: int, frame_tokens: int, guided: bool, wanted: Wanted) -> list[int]:
    """How many ranks may share a video, up to MOST_RANKS."""
    counts = range(1, MOST_RANKS + 1)
    return [n for n in counts if any(map(wanted.allows, layouts(n, heads, frame_tokens, guided)))]


def choose_layout(ranks: int, heads: int, frame_tokens: int, guided: bool, wanted: Wanted = Wanted()) -> Layout:
    """The best legal layout that is as asked for.

    Args:
        ranks: processes.
        heads: of the transformer's attention.
        frame_tokens: tokens of a latent frame: height / 16 x width / 16 of the video.
        guided: whether there are two branches of guidance.
        wanted: by default each branch has ranks of its own where the number of ranks allows it.

    Raises:
        InputError: none is; names what would be legal.
    """
    if wanted.cfg_parallel and not guided:
        raise InputError("cfg_parallel", None, "needs two branches of guidance; --guidance_scale up to 1 has one")
    for layout in layouts(ranks, heads, frame_tokens, guided):
        if wanted.allows(layout):
            return layout
    counts = legal_counts(heads, frame_tokens, guided, wanted)
    choices = f"legal are {', '.join(map(str, counts))}" if counts else "no number of processes is legal"
    shares = f"{ranks} processes cannot share {heads} heads and {frame_tokens} tokens a frame"
    raise InputError("use_usp", None, f"{shares}{f' with {wanted}' if str(wanted) else ''}; {choices}")
