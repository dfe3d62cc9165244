"""What a video is worth: what the judge read in it, held against a prompt, or against how the video itself began."""

import math
from dataclasses import dataclass, field

import numpy as np

from training import world
from training.judge import Track, Verdict, judge
from training.world import Scene

CORE_ATTRIBUTES = ("colour", "shape", "size", "motion", "speed")
UNSIZED = ("growth", "camera", "other shape")  # what a prompt with one of these leaves out of size is open
PROPERTY = {"size": "size_name", "other colour": "colour", "other shape": "shape"}  # where it is not called the same


@dataclass(frozen=True)
class Score:
    """`attributes`: whether each thing named, and the count, is seen; `clean` and `whole`: in every frame.

    `direction`: whether the motion named is seen, steady or not; None: none is named.
    """

    attributes: dict[str, bool]
    direction: bool | None
    clean: bool
    whole: bool
    frames: np.ndarray = field(repr=False)  # bool [T], clean

    @property
    def core(self) -> bool:
        """Colour, shape, motion and speed, those that are named, and the size, all together."""
        return all(right for name, right in self.attributes.items() if name in CORE_ATTRIBUTES)

    @property
    def together(self) -> bool:
        return all(self.attributes.values())


def score(verdict: Verdict, expected: Scene | dict[str, str]) -> Score:
    """Holds a verdict against a scene, or against the attributes that a prompt names; others are not looked at.

    A motion is right only if it is steady: no stop, jump or turn but at a wall. A size that is not named is the usual
    one.
    """
    named = world.attributes(expected) if isinstance(expected, Scene) else dict(expected)
    pair = "other shape" in named
    expected_count = 2 if pair else 1
    ways = [_attributes_right(tracks, verdict, named) for tracks in (verdict.tracks, verdict.tracks[::-1])]
    way = max(range(2 if pair else 1), key=lambda i: sum(ways[i].values()))  # either object may be the first of a pair
    colours = [named.get("colour"), named.get("other colour")]
    clean = verdict.clean_frames(tuple(colours[::-1] if way else colours), expected_count)
    if "camera" not in named and named.get("background") != "patterned":
        clean = clean & (verdict.background != "patterned")  # stains, in which no ghost could be told
    if "size" not in named and not any(name in named for name in UNSIZED):
        ways[way]["size"] = bool(verdict.tracks) and verdict.tracks[0].size_name is None
    right = ways[way] | {"count": verdict.count == expected_count}
    direction = None
    if "motion" in named:
        direction = bool(verdict.tracks) and all(track.motion == named["motion"] for track in verdict.tracks)
    return Score(right, direction, bool(clean.all()), bool(verdict.whole_frames.all()), clean)


def _attributes_right(tracks: tuple[Track, ...], verdict: Verdict, named: dict[str, str]) -> dict[str, bool]:
    right = {}
    for name, value in named.items():
        track = tracks[1:2] if name.startswith("other ") else tracks[:1]
        source = verdict if name in ("background", "camera") else track[0] if track else None
        seen = getattr(source, PROPERTY.get(name, name), None)
        right[name] = seen == value
        if name == "motion":
            right[name] = right[name] and all(track.steady and track.motion == value for track in tracks)
    return right


def continues(verdict: Verdict, seam: int, span: int = 8) -> bool:
    """Whether motion goes on, or turns at a wall, across a seam; `seam`: the first frame after it."""
    around = slice(max(0, seam - span), seam + span)
    return verdict.first is not None and not verdict.first.breaks[around].any()


@dataclass(frozen=True)
class Drift:
    """The furthest that an object strays from how it began: fractions of 255 and of its radius."""

    colour: float
    size: float

    def within(self, limit: float = 0.1) -> bool:
        return self.colour <= limit and self.size <= limit


def drift(verdict: Verdict, span: int = 8) -> Drift:
    """Over a long video, each value a mean over `span` frames; infinite where the object is missing."""
    if verdict.first is None or len(verdict.counts) < span:
        return Drift(math.inf, math.inf)
    rgb, size = _running_mean(verdict.first.rgb, span), _running_mean(verdict.first.size[:, None], span)
    changes = np.abs(rgb - rgb[0]).max() / 255, np.abs(size / size[0] - 1).max()
    return Drift(*(float(np.nan_to_num(change, nan=math.inf)) for change in changes))


def end_distance(verdict: Verdict, image: np.ndarray) -> float:
    """How far from its place in `image` (uint8 [H, W, 3]) the object ends; infinite if either lacks it."""
    wanted = judge(image[None]).first
    if wanted is None or verdict.first is None:
        return math.inf
    distance = np.linalg.norm(verdict.first.position[-1] - wanted.position[0])
    return float(np.nan_to_num(distance, nan=math.inf))


def _running_mean(values: np.ndarray, span: int) -> np.ndarray:
    """[T - span + 1, n] of [T, n]."""
    return np.lib.stride_tricks.sliding_window_view(values, span, axis=0).mean(axis=-1)
