"""The world of the embedded model: one plain shape on a plain background, moving, drawn exactly and without end.

Lengths are in world units: the side of the frame is 64, whatever its size in pixels, x goes right and y goes down, and
the position of an object is its centre of mass. Time is in frames. Nothing here is random but the sampling, and that is
a function of (seed, index): the same clip every time, on every machine.

The core is what the model's figures hold on: CORE_SHAPES x COLOURS x SIZES x BACKGROUNDS x CORE_MOTIONS x SPEEDS.
Sizes and speeds are few and well apart, as colours are, and all but the usual size have a word: a model can then see
what a value was meant to be, and come back to it, where among values without gaps every small error would stay, and
errors would add up over many windows. For a like reason gradients run one way only, which prompts do not name: a model
that hesitated between several ways made mixtures of them, with corners of another tone.

`Mix` says how much of what lies beyond the core is sampled.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from training import grammar

SIDE = 64.0
WALL = 1.0  # an object turns this far before the border, so that its outline stays whole
SAFE_FRAMES = 33  # from its start an object touches no wall for so long
HISTORY = 5  # frames (two latents) that a continuation must be given at least, or its motion could not be known

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 230),
    "yellow": (240, 220, 50),
    "white": (245, 245, 245),
    "purple": (150, 50, 190),
    "orange": (240, 135, 30),
    "cyan": (50, 210, 220),
}
TONES = {"black": (0, 0, 0), "gray": (70, 70, 70), "navy": (16, 24, 72)}  # the colours of backgrounds
BACKGROUNDS = (*TONES, "gradient")
SPEEDS = {"slow": 0.5, "fast": 1.15}  # units a frame, along the path
_HALF = math.sqrt(0.5)
MOTIONS = {
    "still": (0.0, 0.0),
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "up left": (-_HALF, -_HALF),
    "up right": (_HALF, -_HALF),
    "down left": (-_HALF, _HALF),
    "down right": (_HALF, _HALF),
}
OPPOSITE = {name: next(n for n, v in MOTIONS.items() if np.allclose(v, -np.array(u))) for name, u in MOTIONS.items()}
CORE_MOTIONS = tuple(MOTIONS)[:5]
RADIUS = 10.0  # of what no prompt calls small or big
SIZES = {"small": 7.5, "big": 12.0}  # radii; a fast object has room for SAFE_FRAMES at any of them
PAIR_RADIUS = 8.75
GROWTH = {"grow": 0.12, "shrink": -0.12}  # units a frame
GROWTH_RADIUS = (8.0, 12.0)  # where growth turns round
SPIN = math.radians(5)  # a frame, clockwise
WAVE, WAVE_HEIGHT = 16.0, 10.0  # the pattern that makes a moving camera visible: wavelength, and levels of 255


@dataclass(frozen=True)
class Outline:
    """A shape as a star of `points` corners: corners at distance `outer` radii, the notches between them at `inner`.

    A notch on the straight line between its neighbours makes a regular polygon of it.
    """

    points: int
    outer: float
    inner: float
    first: float  # direction of the first corner, radians clockwise from the x axis

    @property
    def area(self) -> float:
        """Of the shape of radius 1."""
        return self.points * self.outer * self.inner * math.sin(math.pi / self.points)

    def reach(self) -> tuple[np.ndarray, np.ndarray]:
        """How far the shape of radius 1 goes from its centre: [left, up] and [right, down]."""
        angles = self.first + 2 * math.pi / self.points * np.arange(self.points)
        corners = self.outer * np.stack([np.cos(angles), np.sin(angles)])  # [2, points]
        return -corners.min(axis=1), corners.max(axis=1)


def _polygon(points: int, outer: float, first: float) -> Outline:
    return Outline(points, outer, outer * math.cos(math.pi / points), first)


# Radii are about equal in looks, and small enough that a fast object of any shape has room for SAFE_FRAMES.
SHAPES = {
    "circle": _polygon(64, 1.0, 0.0),
    "square": _polygon(4, 1.25, math.pi / 4),
    "triangle": _polygon(3, 1.2, -math.pi / 2),
    "star": Outline(5, 1.1, 0.5, -math.pi / 2),
}
CORE_SHAPES = tuple(SHAPES)[:3]


@dataclass(frozen=True)
class Background:
    """One tone, or a linear passage from `tone` at the top to the darker `other` at the bottom; `waves`: patterned."""

    tone: str = "black"
    other: str | None = None
    waves: bool = False

    @property
    def kind(self) -> str:
        if self.waves:
            return "patterned"
        return "gradient" if self.other else self.tone


@dataclass(frozen=True)
class Scene:
    """One object and what it does; `camera`: the background is fixed to the object, as if only the camera moved."""

    shape: str = "circle"
    colour: str = "red"
    radius: float = RADIUS
    background: Background = Background()
    motion: str = "still"
    speed: str = "slow"  # of no account when still
    start: tuple[float, float] = (32.0, 32.0)  # at frame 0
    growth: str | None = None
    spin: bool = False
    camera: bool = False
    other: "Scene | None" = None  # a second object; it shares background, motion and speed

    @property
    def velocity(self) -> np.ndarray:
        """[x, y], units a frame, before the first wall."""
        return np.array(MOTIONS[self.motion]) * SPEEDS[self.speed]

    @property
    def combination(self) -> str:
        """What `in_split` goes by."""
        return f"{self.shape} {self.colour} {self.motion} {'' if self.motion == 'still' else self.speed}"


def reflect(value, low, high):
    """The path of `value` between two mirrors."""
    span = np.maximum(high - low, 1e-9)
    return high - np.abs((value - low) % (2 * span) - span)


def walls(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Where the centre of the object may be: the lowest and the highest [x, y]."""
    outline = SHAPES[scene.shape]
    before, after = (np.full(2, outline.outer),) * 2 if scene.spin else outline.reach()
    radius = GROWTH_RADIUS[1] if scene.growth else scene.radius
    return WALL + radius * before, SIDE - WALL - radius * after


def position(scene: Scene, t) -> np.ndarray:
    """Exact centre of the object at times `t` (a number or [T], frames, also negative): [..., 2]."""
    t = np.asarray(t, dtype=np.float64)
    if scene.camera and scene.growth:  # zoom: everything moves away from the middle of the frame, or towards it
        return SIDE / 2 + (np.array(scene.start) - SIDE / 2) * (radius_at(scene, t) / scene.radius)[..., None]
    return reflect(np.array(scene.start) + t[..., None] * scene.velocity, *walls(scene))


def radius_at(scene: Scene, t) -> np.ndarray:
    t = np.asarray(t, dtype=np.float64)
    if scene.growth is None:
        return np.full(t.shape, scene.radius)
    return reflect(scene.radius + GROWTH[scene.growth] * t, *GROWTH_RADIUS)


def heading(scene: Scene, t: float) -> str:
    """The motion that is seen at time t, after the walls that were met."""
    seen = np.sign(np.round(position(scene, t + 1e-3) - position(scene, t - 1e-3), 6))
    return next(name for name, vector in MOTIONS.items() if np.array_equal(np.sign(vector), seen))


def coverage(shape: str, centre, radius, angle, x, y) -> np.ndarray:
    """How much of each pixel a shape covers, 0 to 1, with edges one pixel wide.

    Args:
        centre: [T, 2], pixels. radius: [T], pixels. angle: [T], radians clockwise from how the shape stands.
        x, y: centres of the pixels, broadcastable to [T, H, W].
    """
    outline = SHAPES[shape]
    dx = (x - centre[:, 0, None, None]).astype(np.float32)
    dy = (y - centre[:, 1, None, None]).astype(np.float32)
    distance = np.hypot(dx, dy)
    if shape == "circle":
        return np.clip(0.5 + radius[:, None, None].astype(np.float32) - distance, 0, 1)
    # Every half of every point looks alike: fold them onto the one from a corner to a notch, which has a single edge.
    half = math.pi / outline.points
    turn = np.arctan2(dy, dx) + (half - outline.first - angle[:, None, None]).astype(np.float32)
    folded = np.abs(turn % np.float32(2 * half) - np.float32(half))  # 0: a corner, half: a notch
    normal = np.array([outline.inner * math.sin(half), outline.outer - outline.inner * math.cos(half)])
    normal = (normal / np.linalg.norm(normal)).astype(np.float32)
    edge = (normal[0] * outline.outer * radius[:, None, None]).astype(np.float32)
    return np.clip(0.5 + edge - distance * (normal[0] * np.cos(folded) + normal[1] * np.sin(folded)), 0, 1)


def backdrop(scene: Scene, t: np.ndarray, size: int) -> np.ndarray:
    """[1 or T, size, size, 3], float32, 0 to 255."""
    background = scene.background
    tone = np.array(TONES[background.tone], np.float32)
    other = np.array(TONES[background.other or background.tone], np.float32)
    ramp = np.linspace(0, 1, size, dtype=np.float32)[:, None] * (other - tone) + tone  # [size, 3]
    canvas = np.broadcast_to(ramp[:, None], (1, size, size, 3))
    if not background.waves:
        return canvas
    pixels = (np.arange(size) + 0.5) * SIDE / size
    scale, shift = np.ones(len(t)), np.zeros((len(t), 2))
    if scene.camera:
        scale = radius_at(scene, t) / scene.radius
        shift = position(scene, t) - scale[:, None] * np.array(scene.start)
    phase = (pixels[None, :, None] - shift[:, None]) / scale[:, None, None] * (2 * math.pi / WAVE)  # [T, size, 2]
    wave = WAVE_HEIGHT * (1 + np.sin(phase)).astype(np.float32)  # never below black
    return canvas + (wave[:, None, :, 0] + wave[:, :, None, 1])[..., None]


def render(scene: Scene, frames: int, size: int = 64, first_frame: int = 0) -> np.ndarray:
    """Frames first_frame, first_frame + 1, ... of a scene: uint8 [frames, size, size, 3]."""
    return render_at(scene, np.arange(first_frame, first_frame + frames), size)


def render_at(scene: Scene, t: np.ndarray, size: int = 64, scale: np.ndarray | float = 1.0) -> np.ndarray:
    """A scene at times `t` ([T], frames, whole or not), its objects `scale` ([T] or one) times as large."""
    frames = len(t)
    ground = np.clip(backdrop(scene, t, size) + 0.5, 0, 255).astype(np.uint8)
    video = np.broadcast_to(ground, (frames, size, size, 3)).copy()
    for thing in (scene, scene.other) if scene.other else (scene,):
        _draw(video, thing, t, scale)
    return video


def _draw(video: np.ndarray, scene: Scene, t: np.ndarray, scale: np.ndarray | float) -> None:
    """Draws the object into video [T, size, size, 3], in a square just large enough around it."""
    size = video.shape[1]
    pixels = size / SIDE
    centre, radius = position(scene, t) * pixels, radius_at(scene, t) * scale * pixels
    side = min(size, 2 * math.ceil(radius.max() * SHAPES[scene.shape].outer + 1) + 1)
    corner = np.clip(np.floor(centre - side / 2).astype(int), 0, size - side)  # [T, 2]
    x = (corner[:, 0, None] + np.arange(side))[:, None, :]
    y = (corner[:, 1, None] + np.arange(side))[:, :, None]
    angle = SPIN * t if scene.spin else np.zeros(len(t))
    alpha = coverage(scene.shape, centre, radius, angle, x + 0.5, y + 0.5)[..., None]
    colour = np.array(COLOURS[scene.colour], np.float32)
    for frame, (left, top), a in zip(video, corner, alpha, strict=True):
        patch = frame[top : top + side, left : left + side]
        patch[:] = patch + a * (colour - patch) + 0.5


@dataclass(frozen=True)
class Mix:
    """How often what is not usual is sampled, each a probability of its own; all but sizes lie beyond the core."""

    bounce: float = 0.25  # clips from the middle of a long video, before, at or after a wall
    sizes: float = 0.3  # small and big objects
    star: float = 0.0
    diagonal: float = 0.0
    spin: float = 0.0
    growth: float = 0.0
    camera: float = 0.0
    pair: float = 0.0


CORE = Mix(bounce=0.0)


def kept_colour(scene: Scene) -> str:
    """For each shape and way of moving one colour is kept for the test, so that every value is there in both splits."""
    way = 0 if scene.motion == "still" else 2 * list(MOTIONS).index(scene.motion) + list(SPEEDS).index(scene.speed) - 1
    return list(COLOURS)[(3 * list(SHAPES).index(scene.shape) + way) % len(COLOURS)]


def in_split(scene: Scene, split: str | None) -> bool:
    """Whether the scene's combination of shape, colour, motion and speed is in "train" or "test"; None: in either."""
    return split is None or (scene.colour == kept_colour(scene)) == (split == "test")


def sample_scene(rng: np.random.Generator, mix: Mix = CORE, split: str | None = "train") -> Scene:
    """A random scene of a split, whose object touches no wall for SAFE_FRAMES."""
    while not in_split(scene := _any_scene(rng, mix), split):
        pass
    return scene


def attributes(scene: Scene) -> dict[str, str]:
    """Everything of a scene that has a name, that a prompt may say and the judge reads."""
    facts = {"colour": scene.colour, "shape": scene.shape, "background": scene.background.kind}
    if scene.camera:
        zoom = {"grow": "zoom in", "shrink": "zoom out"}
        return facts | {"camera": zoom[scene.growth] if scene.growth else f"pan {OPPOSITE[scene.motion]}"}
    facts["motion"] = scene.motion
    if scene.motion != "still":
        facts["speed"] = scene.speed
    if scene.spin:
        facts["spin"] = "spin"
    if scene.growth:
        facts["growth"] = scene.growth
    if scene.other:
        return facts | {"other colour": scene.other.colour, "other shape": scene.other.shape}
    for name, radius in SIZES.items():
        if not scene.growth and scene.radius == radius:
            facts["size"] = name
    return facts


def _pick(rng, values):
    return values[rng.integers(len(values))]


def _any_scene(rng, mix) -> Scene:
    def chance(share: float) -> bool:
        return share > 0 and rng.random() < share

    shape = "star" if chance(mix.star) else _pick(rng, CORE_SHAPES)
    motion = _pick(rng, tuple(MOTIONS)[5:] if chance(mix.diagonal) else CORE_MOTIONS)
    scene = Scene(
        shape=shape,
        colour=_pick(rng, tuple(COLOURS)),
        radius=SIZES[_pick(rng, tuple(SIZES))] if chance(mix.sizes) else RADIUS,
        background=_any_background(rng),
        motion=motion,
        speed=_pick(rng, tuple(SPEEDS)),
        spin=shape != "circle" and chance(mix.spin),
    )
    if chance(mix.growth):
        growth = _pick(rng, tuple(GROWTH))
        scene = replace(scene, growth=growth, radius=GROWTH_RADIUS[growth == "shrink"])
    if chance(mix.camera):  # a pan, or a zoom; either shows on a pattern only
        background = replace(scene.background, waves=True)
        motion = "still" if scene.growth else _pick(rng, CORE_MOTIONS[1:])
        radius = scene.radius if scene.growth else RADIUS  # a prompt for the camera does not say the size
        scene = replace(scene, camera=True, background=background, motion=motion, radius=radius, spin=False)
    elif chance(mix.pair):
        return _with_second(scene, rng)
    if not has_room(scene):
        scene = replace(scene, speed="slow")
    return replace(scene, start=_start(scene, rng))


def _any_background(rng) -> Background:
    kind = _pick(rng, BACKGROUNDS)
    if kind != "gradient":
        return Background(kind)
    tone = _pick(rng, tuple(TONES))
    other = _pick(rng, [other for other in TONES if other != tone])
    return Background(*sorted((tone, other), key=lambda name: -sum(TONES[name])))


def _start_range(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    low, high = walls(scene)
    travel = scene.velocity * (SAFE_FRAMES - 1)
    return low - np.minimum(travel, 0), high - np.maximum(travel, 0)


def has_room(scene: Scene) -> bool:
    """Whether there is a start from which the object touches no wall for SAFE_FRAMES."""
    low, high = _start_range(scene)
    return bool((low <= high).all())


def _start(scene, rng) -> tuple[float, float]:
    x, y = rng.uniform(*_start_range(scene))
    return float(x), float(y)


def _with_second(scene, rng) -> Scene:
    """Two unlike objects, each in its own half of the frame, so that they never meet."""
    motion = _pick(rng, CORE_MOTIONS)
    scene = replace(scene, radius=PAIR_RADIUS, motion=motion, growth=None, spin=False)
    colours = [c for c in COLOURS if c != scene.colour]
    other = replace(scene, shape=_pick(rng, CORE_SHAPES), colour=_pick(rng, colours))
    across = 0 if motion in ("up", "down") else 1  # the axis along which they lie apart
    starts = []
    for thing, middle in zip((scene, other), rng.permutation([SIDE / 4, 3 * SIDE / 4]), strict=True):
        start = list(_start(thing, rng))
        start[across] = middle + rng.uniform(-2, 2)
        starts.append(tuple(start))
    return replace(scene, start=starts[0], other=replace(other, start=starts[1]))


@dataclass(frozen=True)
class Clip:
    """A scene, the part of it that is shown, its prompt, and what the prompt says.

    Attributes:
        named: attribute -> value, only those that the prompt names.
        facts: attribute -> value, all that a prompt for this clip may name; `grammar.put_into_words` words them anew.
        first_frame: where in the scene the clip begins.
        history: so many first frames must be given, not generated: the rest does not follow from the prompt alone.
    """

    scene: Scene
    prompt: str
    named: dict[str, str]
    facts: dict[str, str]
    frames: int
    first_frame: int = 0
    history: int = 0

    def render(self, size: int = 64) -> np.ndarray:
        """uint8 [frames, size, size, 3]."""
        return render(self.scene, self.frames, size, self.first_frame)


def sample_clip(seed: int, index: int, frames: int = 17, mix: Mix | None = None, split: str | None = "train") -> Clip:
    """Clip `index` of the endless list that `seed` stands for; "test" has scenes and wordings that "train" never has.

    A share `mix.bounce` of the clips comes from the middle of a long video, around the time of a turn at a wall. Its
    prompt is the one the video began with, the one of what is now seen, or names no direction: what counts is the
    history. A clip of more than SAFE_FRAMES from the start may meet a wall, too.
    """
    rng = np.random.default_rng([seed, index, split == "test"])
    while True:
        clip = _any_clip(rng, frames, mix or Mix(), split)
        if split != "train" or all(in_split(scene, split) for scene in shown(clip)):
            return clip


def shown(clip: Clip) -> list[Scene]:
    """A scene for each combination that a clip shows: both of two objects, and motions before and after a turn."""
    scenes = [clip.scene] + ([clip.scene.other] if clip.scene.other else [])
    if clip.history:
        times = range(clip.first_frame, clip.first_frame + clip.frames, 4)
        motions = {heading(clip.scene, t) for t in times}
        scenes += [replace(clip.scene, motion=motion) for motion in sorted(motions)]
    return scenes


def _any_clip(rng, frames, mix, split) -> Clip:
    bounce = frames > HISTORY and rng.random() < mix.bounce
    if not bounce:
        scene = sample_scene(rng, mix, split)
        facts = attributes(scene)
        return Clip(scene, *grammar.put_into_words(facts, rng, split), facts, frames)
    lasting = replace(mix, growth=0, camera=0, pair=0)  # what grows at first does not in the middle of a long video
    while (scene := sample_scene(rng, lasting, split)).motion == "still":
        pass
    turns = turn_times(scene, 3)
    which = rng.integers(len(turns) - 1)
    # Up to the next turn: a slow object goes on for 80 frames against what the prompt began with.
    until_next = turns[which + 1] - turns[which]
    first_frame = round(turns[which] - rng.uniform(-max(frames / 2, until_next - HISTORY), frames + 4))
    told = rng.random()  # half: as before; a quarter each: as now seen, and nothing
    scene_told = scene if told < 0.5 else replace(scene, motion=heading(scene, first_frame + frames - 1))
    facts = attributes(scene_told)
    if told > 0.75:
        del facts["motion"]
    return Clip(scene, *grammar.put_into_words(facts, rng, split), facts, frames, first_frame, HISTORY)


def turn_times(scene: Scene, turns: int) -> list[float]:
    """When the object turns at a wall, the first `turns` times on each axis it moves along, sorted."""
    low, high = walls(scene)
    times = []
    for axis, velocity in enumerate(scene.velocity):
        if velocity:
            ahead = (high[axis] if velocity > 0 else low[axis]) - scene.start[axis]
            span = high[axis] - low[axis]
            times += [float((abs(ahead) + k * span) / abs(velocity)) for k in range(turns)]
    return sorted(times)


def core_prompts(count: int = 200, frames: int = 17, split: str = "test", seed: int = 2030) -> list[Clip]:
    """The prompts that figures are measured on; those of "test" a trainer, or anything tuned, must never see."""
    return [sample_clip(seed, index, frames, CORE, split) for index in range(count)]
