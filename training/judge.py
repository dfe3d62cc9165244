"""The judge: reads a video of the world from its frames alone; what that is worth is said in `scores`.

It tests every frame as well as the clip: a median over frames would hide a first frame in another colour, a ghost or a
pinched square. Positions and lengths are in world units (the shorter side of the frame is 64), times in frames.
Letters in shapes: T frames, H and W pixels, P pixels of a sparse grid, S shapes, C colours.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from training.world import COLOURS, MOTIONS, OPPOSITE, RADIUS, SHAPES, SIDE, SIZES, TONES, WAVE, coverage

# Distances between colours are Euclidean, in levels of 255. The world's objects differ from its backgrounds by 100 and
# more; noise, once smoothed, by less than 15.
SOLID = 45.0  # from the background: belongs to an object
FAINT = 24.0  # from the background: may be a ghost
PATTERN = 3.0  # typical distance from a plane: a pattern, or stains all over; a ghost does not reach so far
MOVED = 30.0  # a corner of the background that is so far from where it is in most frames has changed
SAME_COLOUR = 60.0  # from a named colour: still that colour
COLOUR_SHARE = 0.8  # of the pixels inside an object must have its colour
LEAST_AREA = 14.0  # square units that a patch must have to count as an object, or as a ghost
HALO = 3  # pixels around an object that its soft edge may reach
OUTLINE = 0.88  # overlap with the ideal shape below which the outline is at fault
STILL, FAST = 0.22, 0.8  # units a frame: slower is still, faster is fast
SMALL, BIG = (math.sqrt(RADIUS * SIZES[name]) for name in ("small", "big"))  # the radii where these begin
STRIDE = 4  # frames over which a velocity is taken
JUMP = 1.2  # beyond its usual speed, in one frame: a jump
NEAR_WALL = 6.0  # an object whose edge is so near to a wall may be turning
LONGEST_TURN = 10  # frames that a turn may take


@dataclass(frozen=True)
class Track:
    """One object through a clip. Rows of frames in which it is missing are NaN, and its colour there is None.

    Attributes:
        colour, shape: over the clip.
        colours: the name per frame; None where no name fits or the object has several colours.
        rgb: [T, 3], mean colour inside, 0 to 255.
        position: [T, 2], centre of mass.
        size: [T], radius of the circle of the same area.
        box: [T, 4], left, top, right, bottom.
        outline: [T], overlap with the ideal shape, 0 to 1.
        angle: [T], radians clockwise from how the shape stands, unwrapped.
    """

    colour: str | None
    shape: str
    colours: tuple[str | None, ...]
    rgb: np.ndarray
    position: np.ndarray
    size: np.ndarray
    box: np.ndarray
    outline: np.ndarray
    angle: np.ndarray

    @cached_property
    def velocities(self) -> np.ndarray:
        """[T - k, 2], each over k = STRIDE frames (fewer in a shorter clip)."""
        k = min(STRIDE, len(self.position) - 1)
        return (self.position[k:] - self.position[:-k]) / k if k else np.zeros((0, 2))

    @cached_property
    def _near_wall(self) -> np.ndarray:
        """bool [T - k, 2]: on each axis, whether a wall comes near within the frames of a velocity."""
        gap = np.minimum(self.box[:, :2], SIDE - self.box[:, 2:]) < NEAR_WALL
        k = len(gap) - len(self.velocities)
        return np.any([gap[i : len(self.velocities) + i] for i in range(k + 1)], axis=0)

    @cached_property
    def breaks(self) -> np.ndarray:
        """bool [T]: frames around which the motion stops, jumps or turns though no wall is near.

        On each axis the object keeps its own usual speed; near a wall it may be slower, but for LONGEST_TURN at most.
        """
        flagged = np.zeros(len(self.position), bool)
        if not len(self.velocities):
            return flagged
        pace = np.abs(self.velocities)  # [T - k, 2]
        usual = np.nan_to_num(np.nanmedian(pace, axis=0)) if np.isfinite(pace).any() else np.zeros(2)
        leeway = np.maximum(0.25, 0.5 * usual)
        turning = self._near_wall & (pace < usual)
        wrong = ~(np.abs(pace - usual) <= leeway)  # also where the object is missing
        for axis in range(2):
            wrong[:, axis] &= ~turning[:, axis] | (_run_lengths(wrong[:, axis] & turning[:, axis]) > LONGEST_TURN)
        for t in np.flatnonzero(wrong.any(axis=1)):
            flagged[t : t + len(flagged) - len(pace) + 1] = True
        jumps = np.abs(np.diff(self.position, axis=0)).max(axis=1) > usual.max() + JUMP
        flagged[:-1] |= jumps
        flagged[1:] |= jumps
        return flagged

    @cached_property
    def turn(self) -> int | None:
        """The frame about which the object first turns round at a wall."""
        firsts = []
        for axis in range(2):
            v = self.velocities[:, axis]
            moving = np.flatnonzero(np.abs(v) > 0.2)
            signs = np.sign(v[moving])
            firsts += [
                (moving[i] + moving[i + 1] + STRIDE) // 2
                for i in np.flatnonzero(signs[1:] != signs[:-1])
                if self._near_wall[moving[i] : moving[i + 1] + 1, axis].any()
            ]
        return int(min(firsts)) if firsts else None

    @cached_property
    def velocity(self) -> np.ndarray:
        """[2], by least squares over the frames before the first turn (after it, if hardly any come before)."""
        turn, frames = self.turn, len(self.position)
        span = slice(0, frames) if turn is None else slice(0, turn) if turn > STRIDE else slice(turn, frames)
        return slope(self.position[span])

    @property
    def motion(self) -> str | None:
        """The name of the motion the clip begins with; None in a clip of one frame."""
        if len(self.position) < 2 or not np.isfinite(self.velocity).all():
            return None
        if np.linalg.norm(self.velocity) < STILL:
            return "still"
        return max(MOTIONS, key=lambda name: float(np.dot(MOTIONS[name], self.velocity)))

    @property
    def pace(self) -> float:
        """Usual speed, units a frame."""
        paces = np.linalg.norm(self.velocities, axis=1)
        return float(np.nanmedian(paces)) if np.isfinite(paces).any() else math.nan

    @property
    def speed(self) -> str | None:
        """None of an object that stands still, or in a clip of one frame."""
        return None if not self.pace >= STILL else "fast" if self.pace > FAST else "slow"

    @property
    def steady(self) -> bool:
        return not self.breaks.any()

    @property
    def spin(self) -> str | None:
        return "spin" if self.shape != "circle" and abs(slope(self.angle)) > math.radians(2) else None

    @property
    def growth(self) -> str | None:
        rate = float(slope(self.size))
        return "grow" if rate > 0.04 else "shrink" if rate < -0.04 else None

    @property
    def radius(self) -> float:
        """As a scene gives it, the median over the clip."""
        return float(np.nanmedian(self.size)) * math.sqrt(math.pi / SHAPES[self.shape].area)

    @property
    def size_name(self) -> str | None:
        return "small" if self.radius < SMALL else "big" if self.radius > BIG else None


@dataclass(frozen=True)
class Verdict:
    """What a clip shows; without any object it has no tracks.

    Attributes:
        tracks: the objects, the largest first.
        counts: [T], objects in each frame. ghosts: bool [T], something faint beside them.
        background: a name, or "other". steady_background: bool [T], where it is as in most frames.
        camera: "pan left", "zoom in", ...; None: it rests, or the background does not show it.
    """

    tracks: tuple[Track, ...]
    counts: np.ndarray
    ghosts: np.ndarray
    background: str
    steady_background: np.ndarray
    camera: str | None

    @property
    def count(self) -> int:
        """The commonest number of objects in a frame."""
        return int(np.bincount(self.counts).argmax())

    @property
    def first(self) -> Track | None:
        """The object; of several the largest."""
        return self.tracks[0] if self.tracks else None

    def clean_frames(self, colours: tuple[str | None, ...] = (), count: int | None = None) -> np.ndarray:
        """bool [T]: no wrong colour, no object too many or too few, no ghost, no other background than in most frames.

        `colours` (one for each track) and `count` are those that should be seen; else those of the clip itself.
        """
        clean = ~self.ghosts & self.steady_background & (self.counts == (count or self.count)) & bool(self.tracks)
        for track, named in zip(self.tracks, colours or (None,) * len(self.tracks), strict=False):
            wanted = named or track.colour
            clean &= np.array([colour is not None and colour == wanted for colour in track.colours])
        return clean

    @property
    def whole_frames(self) -> np.ndarray:
        """bool [T]: the outline of every object is that of its shape."""
        return np.all([track.outline >= OUTLINE for track in self.tracks], axis=0) & (self.counts > 0)


def judge(frames: np.ndarray) -> Verdict:
    """Reads a clip: uint8 [T, H, W, 3]."""
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8:
        raise ValueError(f"judge: expected uint8 frames [T, H, W, 3], received {frames.dtype} {frames.shape}")
    scale = min(frames.shape[1:3]) / SIDE
    frames = frames.astype(np.float32)
    plane = _background(frames)  # [T, H, W, 3]
    difference = frames - plane
    smooth = _box_blur(difference)
    distance = np.sqrt(np.einsum("thwc,thwc->thw", smooth, smooth))  # [T, H, W]
    solid = distance > SOLID
    labels, areas = _patches(solid)
    least = LEAST_AREA * scale**2
    large = [[name for name, area in found.items() if area >= least] for found in areas]
    counts = np.array([len(names) for names in large])
    # What is too small to count hides nothing: around it the rest of a ghost may be.
    counted = np.stack([np.isin(frame, names) for frame, names in zip(labels, large, strict=True)])
    halo = _dilate(counted, HALO)
    background = _background_kind(plane, smooth, halo)
    corners = plane[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # [T, 4, 3]
    moved = np.linalg.norm(corners - np.median(corners, axis=0), axis=2).max(axis=1)
    faint = (distance > FAINT) & ~halo & (background != "patterned")  # in a pattern nothing faint can be told
    _, faint_areas = _patches(faint)
    ghosts = np.array([any(area >= least for area in found.values()) for found in faint_areas])
    chosen = _link(labels, areas, max(1, int(np.bincount(counts).argmax())), least) if counts.any() else []
    tracks = [_read(frames, plane, labels == label[:, None, None], scale) for label in chosen]
    tracks.sort(key=lambda track: -np.nanmedian(track.size))
    camera = _camera(difference, halo, scale) if background == "patterned" and len(frames) > 1 else None
    return Verdict(tuple(tracks), counts, ghosts, background, moved < MOVED, camera)


# What is seen: background and patches


def _background(frames: np.ndarray) -> np.ndarray:
    """The plane in x and y that fits each colour channel of each frame best, objects ignored: [T, H, W, 3]."""
    count, height, width, _ = frames.shape
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    basis = np.stack([np.ones_like(x), x, y], axis=-1)  # [H, W, 3]
    step = max(1, height // 32)
    sparse = basis[::step, ::step].reshape(-1, 3)  # [P, 3]
    seen = frames[:, ::step, ::step].reshape(count, -1, 3)  # [T, P, 3]
    weight = np.ones(seen.shape[:2], np.float32)
    for _ in range(5):
        weighted = sparse * weight[..., None]  # [T, P, 3]
        gram = np.swapaxes(weighted, 1, 2) @ sparse + 1e-3 * np.eye(3, dtype=np.float32)
        plane = np.linalg.solve(gram, np.swapaxes(weighted, 1, 2) @ seen)  # [T, 3, 3]
        residual = np.linalg.norm(seen - sparse @ plane, axis=2)
        weight = (residual < np.maximum(2 * np.median(residual, axis=1, keepdims=True), 20)).astype(np.float32)
    return (basis.reshape(-1, 3) @ plane).reshape(frames.shape)


def _background_kind(plane: np.ndarray, smooth: np.ndarray, halo: np.ndarray) -> str:
    rest = smooth[~halo].mean(axis=1)
    if len(rest) and np.median(np.abs(rest)) > PATTERN:
        return "patterned"
    corners = np.median(plane[:, [0, 0, -1, -1], [0, -1, 0, -1]], axis=0)  # [4, 3]
    if np.linalg.norm(corners[:, None] - corners[None], axis=2).max() > 38:
        return "gradient"
    distances = {name: np.linalg.norm(corners.mean(axis=0) - tone) for name, tone in TONES.items()}
    nearest = min(distances, key=distances.get)
    return nearest if distances[nearest] < 38 else "other"


def _camera(difference: np.ndarray, halo: np.ndarray, scale: float) -> str | None:
    """From the pattern's waves along x and along y: how their phase and their wavelength change."""
    seen = np.where(halo, 0, difference.mean(axis=3))  # [T, H, W]
    shown = (~halo).astype(np.float32)
    zooms = np.linspace(0.6, 1.8, 61)
    shift, zoom = [], []
    for axis in (1, 2):  # averaged over y: the wave along x
        profile = seen.sum(axis=axis) / np.maximum(shown.sum(axis=axis), 1)  # [T, W]
        at = (np.arange(profile.shape[1]) + 0.5) / scale
        wave = np.exp(-2j * math.pi * at / (WAVE * zooms[:, None]))  # [zooms, W]
        strength = (profile - profile.mean(axis=1, keepdims=True)) @ wave.T  # [T, zooms]
        zoom.append(zooms[np.abs(strength).argmax(axis=1)])
        phase = np.unwrap(np.angle(strength[:, np.abs(zooms - 1).argmin()]))
        shift.append(-phase * WAVE / (2 * math.pi))
    rate = float(slope(np.mean(zoom, axis=0)))
    if abs(rate) > 0.005:
        return "zoom in" if rate > 0 else "zoom out"
    moved = slope(np.stack(shift, axis=1))
    if np.linalg.norm(moved) < STILL:
        return None
    return "pan " + OPPOSITE[max(MOTIONS, key=lambda name: float(np.dot(MOTIONS[name], moved)))]


def _patches(mask: np.ndarray) -> tuple[np.ndarray, list[dict[int, int]]]:
    """Connected patches of mask [T, H, W]: labels [T, H, W] (0: none), and per frame label -> pixels."""
    _, height, width = mask.shape
    labels = np.where(mask, np.arange(1, height * width + 1, dtype=np.int32).reshape(height, width), 0)
    while True:  # the highest number of a patch spreads through it
        spread = labels.copy()
        for axis in (1, 2):
            ahead, behind = _shifted(axis)
            np.maximum(spread[ahead], labels[behind], out=spread[ahead])
            np.maximum(spread[behind], labels[ahead], out=spread[behind])
        spread *= mask
        if np.array_equal(spread, labels):
            break
        labels = spread
    areas = []
    for frame in labels:
        names, pixels = np.unique(frame[frame > 0], return_counts=True)
        areas.append(dict(zip(names.tolist(), pixels.tolist(), strict=True)))
    return labels, areas


def _link(labels: np.ndarray, areas: list[dict[int, int]], count: int, least: float) -> list[np.ndarray]:
    """Follows `count` patches through the frames: for each [T] labels, -1 where it is missing.

    They are the largest of the first frame that has so many; elsewhere each goes on in the nearest patch.
    """
    middles = []
    for frame, found in zip(labels, areas, strict=True):
        large = sorted((name for name, area in found.items() if area >= least), key=lambda name: -found[name])
        middles.append({name: np.argwhere(frame == name).mean(axis=0) for name in large})
    begin = next(t for t, found in enumerate(middles) if len(found) >= count)
    chosen = np.full((count, len(labels)), -1)
    for order in (range(begin, len(labels)), range(begin, -1, -1)):
        last = list(middles[begin].values())[:count]
        for t in order:
            free = dict(middles[t])
            for k in range(count):
                if free:
                    name = min(free, key=lambda name: float(np.linalg.norm(free[name] - last[k])))
                    chosen[k, t], last[k] = name, free.pop(name)
    return list(chosen)


# What an object is


def _read(frames: np.ndarray, plane: np.ndarray, mask: np.ndarray, scale: float) -> Track:
    """Colour, place and shape of the object under mask [T, H, W] in every frame; `plane`: the background."""
    top, left, window = _window(mask)
    mask, seen, plane = mask[window], frames[window], plane[window]
    here = mask.any(axis=(1, 2))  # [T]
    contrast = _mean(seen, _inside(mask))[:, None, None] - plane  # [T, h, w, 3]
    alpha = np.einsum("thwc,thwc->thw", seen - plane, contrast) / np.maximum((contrast**2).sum(axis=3), 1)
    alpha = np.clip(alpha, 0, 1) * _dilate(mask, 2)
    inside = _inside(alpha > 0.5)
    names = _colour_names(seen, _inside(mask, 3))  # not by contrast, which leaves out parts of a colour opposite to it
    rgb = _mean(seen, inside)

    y, x = np.mgrid[: mask.shape[1], : mask.shape[2]].astype(np.float32) + 0.5
    area = np.maximum(alpha.sum(axis=(1, 2)), 1e-6)
    centre = np.stack([(alpha * x).sum(axis=(1, 2)), (alpha * y).sum(axis=(1, 2))], axis=1) / area[:, None]  # [T, 2]
    overlap, angles = _compare(alpha, centre, area, x, y)
    shape = max(SHAPES, key=lambda name: float(overlap[name][here].mean()))
    missing = np.where(here, 0.0, math.nan)
    known = [name for name in names if name]
    return Track(
        colour=max(sorted(set(known)), key=known.count) if known else None,
        shape=shape,
        colours=tuple(names),
        rgb=rgb + missing[:, None],
        position=(centre + np.array([left, top])) / scale + missing[:, None],
        size=np.sqrt(area / math.pi) / scale + missing,
        box=(_box(alpha > 0.5) + np.array([left, top, left, top])) / scale + missing[:, None],
        outline=np.where(here, overlap[shape], 0.0),
        angle=np.unwrap(angles[shape], period=2 * math.pi / SHAPES[shape].points) + missing,
    )


def _compare(alpha, centre, area, x, y) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """For every shape the overlap (0 to 1) with its ideal of the same place, area and turn, and that turn: [T] each.

    The n-th moment of a shape with n corners points to its corners.
    """
    offset = (x - centre[:, 0, None, None]) + 1j * (y - centre[:, 1, None, None])
    offset /= np.sqrt(area)[:, None, None]
    sharp = _sharpen(alpha)
    overlap, angles = {}, {}
    for name, outline in SHAPES.items():
        moment = (alpha * offset**outline.points).sum(axis=(1, 2)) if name != "circle" else np.ones(len(alpha))
        turn = np.angle(moment) / outline.points - outline.first
        ideal = _sharpen(coverage(name, centre, np.sqrt(area / outline.area), turn, x, y))
        either = np.maximum(sharp, ideal).sum(axis=(1, 2))
        overlap[name] = np.minimum(sharp, ideal).sum(axis=(1, 2)) / np.maximum(either, 1e-6)
        angles[name] = turn
    return overlap, angles


def _colour_names(seen: np.ndarray, inside: np.ndarray) -> list[str | None]:
    """For each frame the colour that COLOUR_SHARE of the pixels inside have, or None."""
    names, palette = [*COLOURS, None], np.array(list(COLOURS.values()), np.float32)  # [C, 3]
    distance = np.linalg.norm(seen[inside][:, None] - palette, axis=2)  # [pixels, C]
    nearest = np.where(distance.min(axis=1) < SAME_COLOUR, distance.argmin(axis=1), len(palette))
    votes = np.zeros((len(seen), len(names)), int)
    np.add.at(votes, (np.nonzero(inside)[0], nearest), 1)
    clear = votes.max(axis=1) >= COLOUR_SHARE * np.maximum(votes.sum(axis=1), 1)
    return [names[best] if sure else None for best, sure in zip(votes.argmax(axis=1), clear, strict=True)]


# Small tools


def slope(values: np.ndarray) -> np.ndarray:
    """Change a frame by least squares, of [T] or [T, n]; missing frames are passed over; NaN if there are not two."""
    t = np.arange(len(values), dtype=np.float64)
    known = np.isfinite(values).reshape(len(values), -1).all(axis=1)
    if known.sum() < 2:
        return np.full(values.shape[1:], math.nan)
    t, values = t[known] - t[known].mean(), values[known]
    return np.tensordot(t, values - values.mean(axis=0), 1) / (t @ t)


def _shifted(axis: int) -> tuple[tuple, tuple]:
    """Two indices of a [T, H, W, ...] array, one pixel apart along an axis."""
    before = (slice(None),) * axis
    return (*before, slice(1, None)), (*before, slice(None, -1))


def _box_blur(image: np.ndarray) -> np.ndarray:
    """Mean over 3x3 pixels of [T, H, W, ...]; beyond the border the border goes on."""
    for axis in (1, 2):
        ahead, behind = _shifted(axis)
        total = image.copy()
        total[ahead] += image[behind]
        total[behind] += image[ahead]
        first, last = (slice(None),) * axis + (0,), (slice(None),) * axis + (-1,)
        total[first] += image[first]
        total[last] += image[last]
        image = total / 3
    return image


def _sharpen(alpha: np.ndarray) -> np.ndarray:
    """Steeper edges at the same place: ideal and seen shape are compared by their outlines, however soft those are."""
    return np.clip(2.5 * (alpha - 0.5) + 0.5, 0, 1)


def _dilate(mask: np.ndarray, pixels: int) -> np.ndarray:
    for _ in range(pixels):
        wider = mask.copy()
        for axis in (1, 2):
            ahead, behind = _shifted(axis)
            wider[ahead] |= mask[behind]
            wider[behind] |= mask[ahead]
        mask = wider
    return mask


def _inside(mask: np.ndarray, rim: int = 2) -> np.ndarray:
    """The mask without a rim of some pixels, or without less where nothing would be left: bool [T, H, W]."""
    inner = mask
    for _ in range(rim):
        less = ~_dilate(~inner, 1)
        inner = np.where(less.any(axis=(1, 2), keepdims=True), less, inner)
    return inner


def _mean(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Mean of [T, H, W, 3] over the pixels `where`: [T, 3]."""
    return np.einsum("thwc,thw->tc", image, where) / np.maximum(where.sum(axis=(1, 2)), 1)[:, None]


def _window(mask: np.ndarray, margin: int = 4) -> tuple[int, int, tuple[slice, slice, slice]]:
    """Top, left and the slices of the part of the frame in which the object ever is."""
    rows, columns = (np.flatnonzero(mask.any(axis=axes)) for axes in ((0, 2), (0, 1)))
    top, left = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return top, left, (slice(None), slice(top, rows[-1] + margin + 1), slice(left, columns[-1] + margin + 1))


def _box(mask: np.ndarray) -> np.ndarray:
    """[T, 4]: left, top, right, bottom of each frame's mask, pixels."""
    columns, rows = mask.any(axis=1), mask.any(axis=2)
    left, top = columns.argmax(axis=1), rows.argmax(axis=1)
    right = columns.shape[1] - columns[:, ::-1].argmax(axis=1)
    bottom = rows.shape[1] - rows[:, ::-1].argmax(axis=1)
    return np.stack([left, top, right, bottom], axis=1).astype(np.float64)


def _run_lengths(flags: np.ndarray) -> np.ndarray:
    """For each element the length of the run of True it is in, 0 where False."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    lengths = np.zeros(len(flags), int)
    for begin, end in zip(edges[::2], edges[1::2], strict=True):
        lengths[begin:end] = end - begin
    return lengths
