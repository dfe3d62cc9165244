"""The world: exact, repeatable, without surprises at its walls; prompts that say what is seen, and a test set apart."""

import itertools
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from training import grammar, world
from training.judge import judge
from training.world import COLOURS, CORE, MOTIONS, SHAPES, SIDE, SPEEDS, Mix, Scene

EVERYTHING = Mix(0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.1, 0.1)


def clips(count, frames=17, mix=CORE, split="train", seed=1):
    return [world.sample_clip(seed, i, frames, mix, split) for i in range(count)]


def test_a_clip_is_a_function_of_seed_and_index():
    first, again = (world.sample_clip(7, 3, mix=EVERYTHING) for _ in range(2))
    assert first == again and np.array_equal(first.render(), again.render())
    assert len({(c.prompt, c.scene) for c in clips(50) + clips(50, seed=2)}) == 100


@pytest.mark.parametrize("frames", [1, 5, 17, 33, 257])
@pytest.mark.parametrize("size", [32, 64, 96])
def test_frames_are_uint8_of_the_size_asked_for(frames, size):
    video = world.sample_clip(0, 0, frames).render(size)
    assert video.shape == (frames, size, size, 3) and video.dtype == np.uint8


@pytest.mark.parametrize("shape", SHAPES)
def test_a_drawing_has_the_place_and_the_area_of_the_exact_shape(shape):
    """Corners and edges are anti-aliased: sub-pixel places show."""
    scene = Scene(shape, "white", 11.3, motion="down right", start=(21.37, 20.81))
    alpha = world.render(scene, 9)[..., 0] / 245
    y, x = np.mgrid[:64, :64] + 0.5
    area = alpha.sum(axis=(1, 2))
    centre = np.stack([(alpha * x).sum(axis=(1, 2)), (alpha * y).sum(axis=(1, 2))], axis=1) / area[:, None]
    np.testing.assert_allclose(area, SHAPES[shape].area * 11.3**2, rtol=0.01)
    np.testing.assert_allclose(centre, world.position(scene, np.arange(9)), atol=0.05)


def test_no_wall_is_touched_for_33_frames():
    for clip in clips(300, mix=replace(EVERYTHING, bounce=0, camera=0)):
        low, high = world.walls(clip.scene)
        last = np.array(clip.scene.start) + 32 * clip.scene.velocity
        assert (low <= clip.scene.start).all() and (clip.scene.start <= high).all()
        assert (low <= last).all() and (last <= high).all()


def test_it_turns_at_walls_and_never_wraps():
    scene = Scene("square", motion="down right", speed="fast", start=(20.0, 30.0))
    track = world.position(scene, np.arange(-50, 400))
    low, high = world.walls(scene)
    assert (track >= low).all() and (track <= high).all()
    assert np.abs(np.diff(track, axis=0)).max() <= 1.15 * np.sqrt(0.5) + 1e-9
    turns = world.turn_times(scene, 2)
    assert [world.heading(scene, t + e) for t in turns[:1] for e in (-0.1, 0.1)] == ["down right", "up right"]
    border = world.render(scene, 400)[:, [0, -1]]
    assert not border.any(), "the outline stays off the border"


def test_a_long_video_is_its_windows_side_by_side():
    scene = clips(1)[0].scene
    parts = [world.render(scene, 17, first_frame=t) for t in (0, 17, 34)]
    assert np.array_equal(np.concatenate(parts), world.render(scene, 51))


def test_a_scene_is_drawn_at_any_time_and_size():
    scene = world.Scene(colour="white", motion="right", speed="slow", start=(20.0, 32.0), radius=10.0)
    seen = judge(world.render_at(scene, np.array([0.0, 2.5, 7.0]), scale=np.array([1.0, 1.1, 0.9]))).first
    assert seen.position[:, 0] == pytest.approx([20, 21.25, 23.5], abs=0.1)
    assert seen.size == pytest.approx([10, 11, 9], abs=0.15)


def test_bounce_clips_are_continuations_about_a_wall():
    """A quarter of them; before, at or up to a leg after a turn; the prompt keeps, changes or drops the direction."""
    sample = clips(400, mix=Mix())
    bounces = [c for c in sample if c.history]
    assert 0.18 < len(bounces) / len(sample) < 0.32
    told, long_after = {"as before": 0, "as seen": 0, "nothing": 0}, 0
    for clip in bounces:
        turns = np.array(world.turn_times(clip.scene, 3))
        reach = max(clip.frames / 2, *np.diff(turns))
        assert any(-reach - 1 <= t - clip.first_frame <= clip.frames + 5 for t in turns)
        inside = (clip.first_frame < turns) & (turns < clip.first_frame + clip.frames)
        long_after += not inside.any() and world.heading(clip.scene, clip.first_frame) != clip.scene.motion
        seen = world.heading(clip.scene, clip.first_frame + clip.frames - 1)
        motion = clip.named.get("motion")
        told["nothing" if motion is None else "as before" if motion == clip.scene.motion else "as seen"] += 1
        assert motion in (None, clip.scene.motion, seen)
    assert min(told.values()) > 0.08 * len(bounces), told
    assert long_after > 0.05 * len(bounces)
    assert all(c.first_frame == 0 for c in sample if not c.history)


def test_training_never_shows_what_is_kept_for_the_test():
    """Neither as the second of two objects nor after a turn."""
    sample = clips(500, mix=Mix(bounce=0.6, pair=0.6))
    assert sum(len(world.shown(clip)) > 1 for clip in sample) > 300
    assert all(world.in_split(scene, "train") for clip in sample for scene in world.shown(clip))
    free = clips(500, mix=Mix(bounce=0.6, pair=0.6), split=None)
    assert not all(world.in_split(scene, "train") for clip in free for scene in world.shown(clip))


def test_the_core_is_the_core_and_all_of_it():
    scenes = [c.scene for c in clips(1500, split=None)]
    assert {s.shape for s in scenes} == {"circle", "square", "triangle"}
    assert {s.colour for s in scenes} == set(COLOURS)
    assert {s.motion for s in scenes} == {"left", "right", "up", "down", "still"}
    assert {s.speed for s in scenes} == set(SPEEDS)
    assert {s.background.kind for s in scenes} == set(world.BACKGROUNDS)
    assert {s.radius for s in scenes} == {7.5, 10, 12}
    assert not any(s.spin or s.growth or s.camera or s.other for s in scenes)


def test_radii_are_well_apart():
    """So that a model can tell which one was meant by an object that is a few percent too large."""
    radii = sorted((world.RADIUS, *world.SIZES.values()))
    assert all(after / before > 1.19 for before, after in itertools.pairwise(radii)), radii


def test_every_size_but_the_usual_one_is_told():
    """What a prompt leaves open would be a mixture of sizes, with nothing to come back to."""
    told = {None: world.RADIUS} | world.SIZES
    for clip in clips(300, split=None) + clips(300, mix=replace(EVERYTHING, growth=0, pair=0)):
        assert clip.scene.radius == told[clip.named.get("size")], clip.prompt


def test_small_and_big_objects_move_fast_too():
    """Large ones have room for it."""
    for size in world.SIZES:
        fast = [c.scene for c in clips(800) if c.scene.speed == "fast" and c.named.get("size") == size]
        assert {s.shape for s in fast} == set(world.CORE_SHAPES) and {s.motion for s in fast} == set(world.CORE_MOTIONS)


def test_gradients_get_darker_from_top_to_bottom_and_only_so():
    """Otherwise the one word for them would stand for several things."""
    made = [c.render()[0].astype(int) for c in clips(400) if c.scene.background.kind == "gradient"]
    assert len(made) > 50
    for frame in made:
        top, bottom = (np.median(row, axis=0) for row in (frame[0], frame[-1]))
        assert (frame[0] == top).all(axis=1).mean() > 0.9 and (frame[-1] == bottom).all(axis=1).mean() > 0.9
        assert np.linalg.norm(top - bottom) > 38 and top.sum() > bottom.sum()


def test_the_core_is_balanced():
    """No attribute is squeezed out by the room that others need."""
    scenes = [s for s in (c.scene for c in clips(3000)) if s.motion != "still"]
    for attribute in ("shape", "speed", "motion"):
        values = [getattr(s, attribute) for s in scenes]
        shares = [values.count(v) / len(values) * len(set(values)) for v in set(values)]
        assert min(shares) > 0.8 and max(shares) < 1.2, (attribute, shares)


@pytest.mark.parametrize("option", ["star", "diagonal", "sizes", "spin", "growth", "camera", "pair"])
def test_every_option_gives_what_it_is_called(option):
    fits = {
        "star": lambda s: s.shape == "star",
        "diagonal": lambda s: " " in s.motion,
        "sizes": lambda s: s.radius in (7.5, 12),
        "spin": lambda s: s.spin or s.shape == "circle",
        "growth": lambda s: s.growth,
        "camera": lambda s: s.camera and s.background.waves,
        "pair": lambda s: s.other is not None and s.other.colour != s.colour,
    }
    for clip in clips(30, mix=replace(CORE, **{option: 1.0})):
        assert fits[option](clip.scene), clip.scene
        assert clip.render().shape == (17, 64, 64, 3)


def test_two_objects_never_meet():
    for clip in clips(20, mix=replace(CORE, pair=1.0)):
        t = np.arange(200)
        apart = np.linalg.norm(world.position(clip.scene, t) - world.position(clip.scene.other, t), axis=1)
        assert apart.min() > 18 or abs(np.diff([clip.scene.start, clip.scene.other.start], axis=0)).max() > 22


def test_the_splits_share_neither_combinations_nor_sentences():
    train, test = clips(1200), clips(1200, split="test")
    combinations = {c.scene.combination for c in train}, {c.scene.combination for c in test}
    assert not combinations[0] & combinations[1] and len(combinations[1]) >= 20
    for attribute in ("shape", "colour", "motion", "speed"):
        values = [{getattr(c.scene, attribute) for c in part} for part in (train, test)]
        assert values[0] == values[1], f"{attribute}: the test must ask for all of it"
    assert not set(grammar.frames_of("train")) & set(grammar.frames_of("test"))
    assert not {c.prompt.lower().rstrip(".") for c in train} & {c.prompt.lower().rstrip(".") for c in test}


def test_no_sentence_of_the_test_is_built_as_one_of_training():
    """Also where attributes are left out, and with them the parts in which frames differ."""
    colours = sorted((word for row in grammar.COLOUR_WORDS.values() for word in row), key=len, reverse=True)
    things = [word for row in grammar.SHAPE_WORDS.values() for word in row]
    thing = rf"(?:a|an|the|one|)? ?(?:{'|'.join(colours)}|) ?(?:{'|'.join(sorted(things, key=len, reverse=True))})"
    bare, still = re.compile(rf"{thing}\.?"), re.compile(rf"{thing},? (?:stays|staying|is staying) still\.?")
    assert bare.fullmatch("a red circle") and still.fullmatch("a red circle is staying still.")
    test = [c.prompt.lower() for c in clips(1200, split="test")]
    assert not [p for p in test if bare.fullmatch(p) or still.fullmatch(p)]
    assert any(bare.fullmatch(c.prompt.lower()) for c in clips(1200)) and len(set(test)) > 1000
    assert not {grammar.form_of(f, WORDS) for f in grammar.frames_of("test")} - grammar.forms_of("test")


WORDS = {"thing": "a red circle", "it": "it", "is": "is", "tone": "", "on": "", "pace": ""}
WORDS |= dict.fromkeys(("move", "moves", "moving", "heading"), "still")


def test_no_word_of_the_test_is_new():
    mix = replace(EVERYTHING, bounce=0)
    train, test = (
        {word for c in clips(2500, mix=mix, split=split) for word in re.findall(r"[\w-]+", c.prompt.lower())}
        for split in ("train", "test")
    )
    assert test <= train, test - train


def test_prompts_of_the_test_set():
    prompts = world.core_prompts(200)
    assert prompts == world.core_prompts(200)
    assert len({c.prompt for c in prompts}) >= 190
    assert all(not c.history and world.in_split(c.scene, "test") for c in prompts)
    for attribute, share in (("colour", 0.8), ("shape", 0.8), ("motion", 0.8), ("speed", 0.5)):
        assert sum(attribute in c.named for c in prompts) > share * 200
    others = world.core_prompts(50, split="train")
    assert all(world.in_split(c.scene, "train") for c in others)
    assert not {c.prompt for c in prompts} & {c.prompt for c in others}


SAID = {
    "colour": grammar.COLOUR_WORDS,
    "shape": grammar.SHAPE_WORDS,
    "background": grammar.TONE_WORDS,
    "camera": grammar.CAMERA_WORDS,
    "speed": {k: (*v, k) for k, v in grammar.SPEED_WORDS.items() if k},
    "motion": grammar.DIRECTION_WORDS | {"still": tuple(form for verb in grammar.STILL_VERBS for form in verb)},
    "spin": {k: tuple(form for verb in v for form in verb) for k, v in grammar.CHANGE_VERBS.items()},
    "growth": {k: tuple(form for verb in v for form in verb) for k, v in grammar.CHANGE_VERBS.items()},
    "size": grammar.SIZE_WORDS,
    "other colour": grammar.COLOUR_WORDS,
    "other shape": grammar.SHAPE_WORDS,
}


def test_a_prompt_says_what_it_is_said_to_name_and_nothing_else():
    for clip in clips(1500, mix=replace(EVERYTHING, bounce=0)) + clips(300, mix=EVERYTHING, split="test"):
        text = clip.prompt.lower()
        facts = world.attributes(clip.scene)
        for name, value in clip.named.items():
            assert any(word in text for word in SAID[name][value]), (name, value, text)
            assert clip.history or facts[name] == value
        if not clip.scene.other:
            for colour in set(COLOURS) - {clip.named.get("colour")}:
                assert not re.search(rf"\b{colour}\b", text.replace("navy blue", "navy")), text
        if not clip.scene.camera and "motion" not in clip.named:
            assert not re.search(r"\b(left|right|up|down|upwards?|downwards?|still|top|bottom)\b", text), text
        assert "  " not in text and "{" not in text and "[" not in text and not re.search(r"[,:.] ?[,:]", text), text


def test_prompts_vary():
    sample = [c.prompt for c in clips(1000)]
    assert len(set(sample)) > 950
    lengths = [len(p.split()) for p in sample]
    assert min(lengths) <= 3 and max(lengths) >= 13


def test_the_docs_list_every_word():
    text = (Path(__file__).parents[2] / "docs" / "world.md").read_text()
    tables = (grammar.COLOUR_WORDS, grammar.SHAPE_WORDS, grammar.TONE_WORDS, grammar.DIRECTION_WORDS)
    tables += (grammar.SPEED_WORDS, grammar.SIZE_WORDS, grammar.CAMERA_WORDS)
    words = {word for table in tables for row in table.values() for word in row}
    words |= {verb[1] for verb in grammar.VERBS + grammar.STILL_VERBS}
    words |= {verb[2] for verbs in grammar.CHANGE_VERBS.values() for verb in verbs}
    assert all(word in text for word in words), {word for word in words if word not in text}


def test_opposites():
    assert world.OPPOSITE["still"] == "still" and world.OPPOSITE["up left"] == "down right"
    assert all(world.OPPOSITE[world.OPPOSITE[name]] == name for name in MOTIONS)
    assert SIDE == 64


@pytest.mark.slow
def test_clips_are_made_faster_than_they_are_learned_from():
    start = time.process_time()
    for i in range(300):
        world.sample_clip(3, i).render()
    assert time.process_time() - start < 1.0
