"""Prompts: how the world is put into words, and which wordings are kept from training.

A prompt is a sentence frame with a thing, what it does and where. Every word of the held-out frames also occurs in
others, so a test asks for new sentences, not for new words. docs/world.md lists all of it for a user.
"""

import itertools
import re
from functools import lru_cache

COLOUR_WORDS = {
    "red": ("red", "crimson"),
    "green": ("green", "emerald"),
    "blue": ("blue", "royal blue"),
    "yellow": ("yellow", "lemon yellow"),
    "white": ("white", "snow white"),
    "purple": ("purple", "violet"),
    "orange": ("orange", "tangerine"),
    "cyan": ("cyan", "turquoise"),
}
SHAPE_WORDS = {
    "circle": ("circle", "ball", "disc", "round shape"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "three-sided shape"),
    "star": ("star", "five-pointed star"),
    None: ("object", "shape", "thing"),
}
SIZE_WORDS = {"small": ("small", "little"), "big": ("big", "large"), None: ("",)}
TONE_WORDS = {
    "black": ("black",),
    "gray": ("gray", "grey"),
    "navy": ("navy", "navy blue"),
    "gradient": ("gradient", "shaded"),
    "patterned": ("patterned",),
}
PLAIN_TONES = ("black", "gray", "navy")  # those that are colours
DIRECTION_WORDS = {
    "left": ("left", "to the left", "leftward", "towards the left", "from right to left"),
    "right": ("right", "to the right", "rightward", "towards the right", "from left to right"),
    "up": ("up", "upward", "upwards", "towards the top", "from bottom to top"),
    "down": ("down", "downward", "downwards", "towards the bottom", "from top to bottom"),
    "up left": ("up and to the left", "diagonally up left", "towards the upper left"),
    "up right": ("up and to the right", "diagonally up right", "towards the upper right"),
    "down left": ("down and to the left", "diagonally down left", "towards the lower left"),
    "down right": ("down and to the right", "diagonally down right", "towards the lower right"),
    None: ("",),
}
SPEED_WORDS = {
    "slow": ("slowly", "gently", "at a slow pace", "at low speed"),
    "fast": ("quickly", "rapidly", "fast", "at a fast pace", "at high speed"),
    None: ("",),
}
BEFORE_VERB = ("slowly", "gently", "quickly", "rapidly")
# A verb: as in "they -", "it -", "it is -".
VERBS = (
    ("move", "moves", "moving"),
    ("slide", "slides", "sliding"),
    ("glide", "glides", "gliding"),
    ("travel", "travels", "travelling"),
    ("go", "goes", "going"),
    ("float", "floats", "floating"),
)
STILL_VERBS = (
    ("stay still", "stays still", "staying still"),
    ("stand still", "stands still", "standing still"),
    ("rest in place", "rests in place", "resting in place"),
    ("do not move", "does not move", "not moving"),
)
CHANGE_VERBS = {
    "spin": (("spin", "spins", "spinning"), ("rotate", "rotates", "rotating")),
    "grow": (("grow", "grows", "growing"), ("get bigger", "gets bigger", "getting bigger")),
    "shrink": (("shrink", "shrinks", "shrinking"), ("get smaller", "gets smaller", "getting smaller")),
}
CAMERA_WORDS = {
    "pan left": ("the camera pans left", "the camera moves to the left"),
    "pan right": ("the camera pans right", "the camera moves to the right"),
    "pan up": ("the camera pans up", "the camera moves upward"),
    "pan down": ("the camera pans down", "the camera moves downward"),
    "zoom in": ("the camera zooms in", "zooming in"),
    "zoom out": ("the camera zooms out", "zooming out"),
}
# "{moves}" and its kin are empty when the prompt names neither motion nor speed, "{on}" and "{tone}" when it names no
# background; a part in brackets goes with the word in it. Every fifth frame is kept for "test".
FRAMES = (
    "{thing}[ {moves}][ {on}]",
    "{thing}[ {moving}][ {on}]",
    "[{on}, ]{thing}[ {moves}]",
    "{thing}[, {heading}][, {pace}][, {tone} background]",
    "{thing}[ {on}][, {moving}]",  # test
    "a video of {thing}[ {moving}][ {on}]",
    "there is {thing}[. {it} {moves}][. the background is {tone}]",
    "{thing}[ {on}][ {moving}]",
    "[{tone} background, ]{thing}[, {moving}]",
    "a video that shows {thing}[ {moving}][ {on}]",  # test
    "watch {thing}[ {move}][ {on}]",
    "{thing}[ that {moves}][ {on}]",
    "{thing}[ {is} {moving}][ {on}]",
    "[{pace}, ][{heading}: ]{thing}[, {tone} background]",
    "{thing}[. {it} {is} {moving}][. {tone} background]",  # test
    "[on a {tone} background ]there is {thing}[ {moving}]",
    "this video shows {thing}[ {moving}][ {on}]",
    "a scene with {thing}[ {moving}][ {on}]",
    "{thing}[ {moves}][, the background is {tone}]",
    "[{on} ]{thing}[ {is} {moving}]",  # test
    "we see {thing}[ {move}][ {on}]",
    "[a {tone} background and ]{thing}[ that {moves}]",
    "[{moving}: ]{thing}[ {on}]",
    "[the background is {tone}. ]{thing}[ {moves}]",
    "a scene: [{on}, ]{thing}[ {moves}]",  # test
    "a clip of {thing}[ {on}][ {moving}]",
    "here {is} {thing}[, {moving}][, {on}]",
    "a short clip with {thing}[. {it} {moves}][. {tone} background]",
    "{thing}[, {tone} background][, {heading}][, {pace}]",
    "there is {thing}[ {on}][. {it} {moves}]",  # test
)
NAMED = {
    "colour": 0.92,
    "shape": 0.94,
    "motion": 0.92,
    "speed": 0.8,
    "background": 0.5,
}  # else 1: how often each is told


def form_of(frame: str, words: dict[str, str]) -> str:
    """What is left of a frame where some words are empty, in one spelling for what reads alike."""
    alike = {"thing": "{thing}", "moves": "{moves}", "move": "{move}", "moving": "{moving}", "tone": "{tone}"}
    alike |= {"on": "on {tone}", "it": "it", "is": "is", "pace": "{pace}"}
    alike["heading"] = "{heading}" if words["pace"] else "{moving}"  # without a pace they are the same
    text = _fill(frame, {name: alike[name] if word else "" for name, word in words.items()})
    return re.sub(r"[\s,.:]+", " ", text.replace("on a {tone} background", "on {tone}")).strip()


@lru_cache
def forms_of(split: str) -> frozenset[str]:
    """All that the frames of a split can be reduced to."""
    optional = ("moves", "tone", "heading", "pace")
    states = []
    for some in itertools.product((True, False), repeat=len(optional)):
        words = dict.fromkeys(("thing", "it", "is"), "x") | dict(zip(optional, ["x" * on for on in some], strict=True))
        states.append(words | {"on": words["tone"], "move": words["moves"], "moving": words["moves"]})
    return frozenset(form_of(frame, words) for frame in frames_of(split) for words in states)


@lru_cache
def frames_of(split: str | None) -> tuple[str, ...]:
    """The sentence frames of "train", "test", or (None) both."""
    return tuple(frame for i, frame in enumerate(FRAMES) if split is None or (i % 5 == 4) == (split == "test"))


def put_into_words(facts: dict[str, str], rng, split: str | None) -> tuple[str, dict[str, str]]:
    """A prompt in one of very many wordings, and the facts it names; for "test" in none that "train" can have.

    Args:
        facts: attribute -> value, as `world.attributes` gives them; some are left out at random.
        split: whose sentence frames to use; None: all.
    """

    while True:
        text, named, form = _any_wording(facts, rng, split)
        if split != "test" or form not in forms_of("train"):
            return text, named


def _any_wording(facts: dict[str, str], rng, split: str | None) -> tuple[str, dict[str, str], str]:
    """The same, of any form, and the form."""

    def pick(values):
        return values[rng.integers(len(values))]

    named = {k: v for k, v in facts.items() if rng.random() < NAMED.get(k, 1)}
    frame = pick(frames_of(split))
    pace_first = "speed" in named and "{pace}" not in frame and rng.random() < 0.12  # "a fast red circle"
    adjective = named["speed"] if pace_first else None
    thing = _thing(pick, named.get("colour"), named.get("shape"), named.get("size"), adjective)
    pair = "other shape" in facts
    if pair:
        thing += " and " + _thing(pick, named["other colour"], named["other shape"], None, None)
    spoken = None if pace_first else named.get("speed")
    verb = _verb(pick, named.get("motion"), spoken, named.get("spin"), named.get("growth"))
    plain = _verb(pick, named.get("motion"), None, named.get("spin"), named.get("growth"))
    it = ("they", "are") if pair else ("it", "is")
    words = {
        "thing": thing,
        "move": verb[0],
        "moves": verb[0] if pair else verb[1],
        "moving": verb[2],
        "heading": plain[2],
        "pace": named.get("speed", ""),
        "tone": pick(TONE_WORDS[named["background"]]) if "background" in named else "",
        "it": it[0],
        "is": it[1],
    }
    words["on"] = _on(pick, words["tone"])
    text = _fill(frame, words)
    if "camera" in named:
        text += pick((", ", " as ", " while ")) + pick(CAMERA_WORDS[named["camera"]])
    return _finish(text, capital=rng.random() < 0.3, stop=rng.random() < 0.3), named, form_of(frame, words)


# Articles and other words in the functions below; a test compares all of them with drawn prompts.
LITTLE_WORDS = "a an the one in on against over with and as while"


def vocabulary() -> list[str]:
    """All words that prompts are made of, sorted."""
    tables = (COLOUR_WORDS, SHAPE_WORDS, SIZE_WORDS, TONE_WORDS, DIRECTION_WORDS, SPEED_WORDS, CAMERA_WORDS)
    texts = [text for table in tables for forms in table.values() for text in forms]
    verbs = (*VERBS, *STILL_VERBS, *itertools.chain(*CHANGE_VERBS.values()))
    texts += [*itertools.chain(*verbs), *(re.sub("{.*?}", " ", frame) for frame in FRAMES), LITTLE_WORDS]
    return sorted(set(re.findall("[a-z]+", " ".join([*texts, "it is they are"]))))


def never_said() -> tuple[list[str], list[str]]:
    """Phrases that no prompt has although their words occur: backgrounds of the objects' colours, and objects of the
    backgrounds'. Then longer phrases that contain such and do occur."""
    tones = [tone for name, forms in TONE_WORDS.items() if name in PLAIN_TONES for tone in forms]
    colours = {form.split()[-1] for forms in COLOUR_WORDS.values() for form in forms}
    nouns = [noun for forms in SHAPE_WORDS.values() for noun in forms if " " not in noun]
    never = {phrase for colour in colours for phrase in (f"{colour} background", f"background is {colour}")}
    never |= {f"{tone} {noun}" for tone in tones for noun in nouns}
    return sorted(never), sorted(f"{tone} background" for tone in tones if " " in tone)


def _thing(pick, colour, shape, size, adjective) -> str:
    noun = pick(SHAPE_WORDS[shape])
    before = " ".join(word for word in (adjective, pick(SIZE_WORDS[size])) if word)
    if not colour:
        return f"{pick(('a', 'the', 'one'))} {before} {noun}"
    plain, synonym = COLOUR_WORDS[colour]
    word = pick((plain, plain, plain, synonym))
    form = pick(("a {b} {c} {n}",) * 5 + ("the {b} {c} {n}", "one {b} {c} {n}", "{b} {c} {n}", "a {b} {n} in {c}"))
    return form.format(b=before, c=word, n=noun)


def _verb(pick, motion, speed, spin, growth) -> tuple[str, str, str]:
    """The three forms of what the thing does, all empty if nothing is named."""
    changes = [pick(CHANGE_VERBS[change]) for change in (spin, growth) if change]
    adverb = pick(SPEED_WORDS[speed])
    if motion == "still":
        forms = pick(STILL_VERBS)
    elif motion or speed:
        where = pick(DIRECTION_WORDS[motion])
        orders = ("{v} {d} {a}", "{v} {a} {d}") + (("{a} {v} {d}",) if adverb in BEFORE_VERB else ())
        order = pick(orders)
        forms = tuple(order.format(v=verb, d=where, a=adverb) for verb in pick(VERBS))
    elif changes:
        forms = changes.pop(0)
    else:
        return "", "", ""
    tail = " and ".join(change[2] for change in changes)
    return tuple(f"{form} while {tail}" for form in forms) if tail else forms


def _on(pick, tone: str) -> str:
    if not tone:
        return ""
    form = pick(("on a {} background", "against a {} background", "over a {} background", "with a {} background"))
    return form.format(tone)


def _fill(frame: str, words: dict[str, str]) -> str:
    """Fills the words in; a bracket goes if a word in it is empty."""

    def bracket(match: re.Match) -> str:
        inner = match[1]
        return inner if all(words[name] for name in re.findall(r"{(\w+)}", inner)) else ""

    return re.sub(r"\[([^\]]*)\]", bracket, frame).format(**words)


def _finish(text: str, capital: bool, stop: bool) -> str:
    text = re.sub(r"\s+", " ", text).strip(" ,")
    text = re.sub(r" ([,.:])", r"\1", text)
    text = re.sub(r"\ba (?=[aeiou])", "an ", text)
    if capital:
        text = re.sub(r"(^|[.:] )([a-z])", lambda match: match[1] + match[2].upper(), text)
    return text + "." if stop else text
