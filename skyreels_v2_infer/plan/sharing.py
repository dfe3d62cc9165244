"""The layout of the ranks that share a video: numbers only, chosen before torch is imported.

A rank belongs to one of `guidance` groups, each of which computes one pass of guidance (conditional or unconditional).
Within a group the tokens of every latent frame are split over ``ulysses x ring`` ranks. Ulysses (DeepSpeed-Ulysses,
Jacobs et al. 2023) exchanges tokens for heads around attention, so its degree has to divide the number of heads; ring
(Liu et al. 2023) passes keys and values around.
"""

from dataclasses import dataclass

from skyreels_v2_infer.errors import InputError

MOST_RANKS = 64  # largest number of ranks that messages list


@dataclass(frozen=True)
class Layout:
    """guidance: 2 if each pass of guidance has its own ranks, else 1. ulysses, ring: degrees, at least 1."""

    guidance: int = 1
    ulysses: int = 1
    ring: int = 1

    @property
    def parts(self) -> int:
        """Number of parts that the tokens of a frame are split into."""
        return self.ulysses * self.ring

    @property
    def ranks(self) -> int:
        return self.guidance * self.parts


def layouts(ranks: int, heads: int, frame_tokens: int, guided: bool) -> list[Layout]:
    """All legal layouts, best first: parallel passes (least communication), then the highest Ulysses degree."""
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
    """The layout that the flags request; None: any.

    Attributes:
        cfg_parallel: whether each pass of guidance has its own ranks.
        ulysses, ring: degrees.
    """

    cfg_parallel: bool | None = None
    ulysses: int | None = None
    ring: int | None = None

    def allows(self, layout: Layout) -> bool:
        asked = (self.cfg_parallel, self.ulysses, self.ring)
        has = (layout.guidance == 2, layout.ulysses, layout.ring)
        return all(wish in (None, is_so) for wish, is_so in zip(asked, has, strict=True))

    def flags(self) -> list[tuple[str, int | None, "Wanted"]]:
        """For each given flag its name, its value (None for a switch), and the request of that flag alone."""
        each = [
            ("cfg_parallel", None, Wanted(cfg_parallel=self.cfg_parallel)),
            ("ulysses_degree", self.ulysses, Wanted(ulysses=self.ulysses)),
            ("ring_degree", self.ring, Wanted(ring=self.ring)),
        ]
        return [flag for flag in each if flag[2] != Wanted()]

    def __str__(self) -> str:
        flags = [] if self.cfg_parallel is None else ["--cfg_parallel" if self.cfg_parallel else "--no-cfg_parallel"]
        return " ".join(flags + [f"--{name} {value}" for name, value, _ in self.flags() if value is not None])


def legal_counts(heads: int, frame_tokens: int, guided: bool, wanted: Wanted) -> list[int]:
    """The legal numbers of ranks, up to MOST_RANKS."""
    counts = range(1, MOST_RANKS + 1)
    return [n for n in counts if any(map(wanted.allows, layouts(n, heads, frame_tokens, guided)))]


def choose_layout(ranks: int, heads: int, frame_tokens: int, guided: bool, wanted: Wanted = Wanted()) -> Layout:
    """The best legal layout that `wanted` allows, also for a single rank.

    Args:
        ranks: number of processes.
        heads: of the transformer's attention.
        frame_tokens: tokens of a latent frame: height / 16 x width / 16 of the video.
        guided: whether there are two passes of guidance.
        wanted: by default each pass has its own ranks where their number is even.

    Raises:
        InputError: there is none; names the flag that cannot be satisfied (use_usp if the number of ranks itself is
            illegal) and the legal numbers of processes.
    """
    if wanted.cfg_parallel and not guided:
        raise InputError("cfg_parallel", None, "needs two passes of guidance; --guidance_scale up to 1 has one")
    legal = layouts(ranks, heads, frame_tokens, guided)
    for layout in legal:
        if wanted.allows(layout):
            return layout
    counts = legal_counts(heads, frame_tokens, guided, wanted)
    choices = f"legal are {', '.join(map(str, counts))}" if counts else "no number of processes is legal"
    processes = "1 process" if ranks == 1 else f"{ranks} processes"
    shares = f"{processes} cannot share {heads} heads and {frame_tokens} tokens a frame"
    if not legal:
        raise InputError("use_usp", None, f"{shares}{f' with {wanted}' if str(wanted) else ''}; {choices}")
    flags = wanted.flags()
    name, value, _ = next((flag for flag in flags if not any(map(flag[2].allows, legal))), flags[0])
    raise InputError(name, value, f"{shares} with {wanted}; {choices}")
