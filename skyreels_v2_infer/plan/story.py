"""Stories: prompts that change in the course of a long video, where its windows begin."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.plan.auto_prompt import wish_in
from skyreels_v2_infer.plan.yaml_text import read_yaml
from skyreels_v2_infer.scheduler.windows import Window

MOST_BYTES = 2**19  # of a story
MOST_START = 10**9  # frame
SHOWN = 8  # windows, in a message


@dataclass(frozen=True)
class Scene:
    """Prompt and settings from a frame on, until the next scene begins.

    Attributes:
        start: frame of the video; the scene begins with the first window whose new frames do not begin before it.
        prompt: description of the scene.
        negative_prompt, guidance_scale, seed: None: those of the whole video.
        lora: strengths of LoRAs by name (file name without suffix), where they differ from the whole video's.
    """

    start: int
    prompt: str
    negative_prompt: str | None = None
    guidance_scale: float | None = None
    seed: int | None = None
    lora: dict[str, float] | None = None


def read_story(text: str, fps: float) -> tuple[Scene, ...]:
    """The scenes in a file (.json, .yaml or .yml) or in a JSON text.

    Args:
        text: a path, or a JSON list.
        fps: frames per second, for starts in seconds ("4.5s").

    Raises:
        InputError: names the scene and what is wrong with it.
    """
    path = Path(text)
    try:
        if text.lstrip().startswith("["):
            scenes = json.loads(text)
        elif path.suffix.lower() in (".yaml", ".yml"):
            scenes = _of_yaml(text, read_small(path, MOST_BYTES).decode("utf-8-sig"))
        else:
            scenes = json.loads(read_small(path, MOST_BYTES).decode("utf-8-sig"))  # after a byte order mark
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise _refused(text, f"cannot be read ({first_line(error, 100)})") from None
    except ImportError:
        raise _refused(text, "needs PyYAML: pip install pyyaml; or write it as JSON") from None
    except RecursionError:
        raise _refused(text, "is nested too deeply") from None
    if not isinstance(scenes, list) or not scenes:
        raise _refused(text, "must be a list of scenes, each with start and prompt")
    story = tuple(_scene(text, number, scene, fps) for number, scene in enumerate(scenes, start=1))
    if story[0].start != 0:
        raise _refused(text, "scene 1: start must be 0")
    for number, (before, after) in enumerate(pairwise(story), start=2):
        if after.start <= before.start:
            raise _refused(text, f"scene {number}: start must be after that of the scene before")
    return story


def _of_yaml(path: str, text: str) -> object:
    try:
        return read_yaml(text)
    except ValueError as error:
        raise _refused(path, f"is not valid YAML ({error})") from None


def _refused(text: str, reason: str) -> InputError:
    shown = " ".join(text.split())
    return InputError("story", shown if len(shown) < 80 else f"{shown[:77]}...", reason)


def _scene(text: str, number: int, scene: object, fps: float) -> Scene:
    def wrong(reason: str) -> InputError:
        return _refused(text, f"scene {number}: {reason}")

    if not isinstance(scene, dict):
        raise wrong("must be a mapping with start and prompt")
    unknown = set(scene) - set(Scene.__dataclass_fields__)
    if unknown:
        shown = next((name[:40] for name in unknown if isinstance(name, str)), "a key that is no text")
        raise wrong(f"{shown} is none of {', '.join(Scene.__dataclass_fields__)}")
    start = scene.get("start")
    if isinstance(start, str) and start.endswith("s"):
        try:
            start = round(float(start[:-1]) * fps)
        except (ValueError, OverflowError):
            start = None
    if not isinstance(start, int) or isinstance(start, bool) or not 0 <= start <= MOST_START:
        raise wrong(f'start must be a frame (24) or seconds ("1.5s"), from 0 to frame {MOST_START}')
    prompt, negative = scene.get("prompt"), scene.get("negative_prompt")
    if not isinstance(prompt, str) or not prompt.strip():
        raise wrong("prompt must be text")
    if wish_in(prompt) is not None:
        raise wrong("prompt auto is for --prompt; write the scene's prompt out")
    if negative is not None and not isinstance(negative, str):
        raise wrong("negative_prompt must be text")
    try:
        f"{prompt}{negative}".encode()
    except UnicodeEncodeError:
        raise wrong("its text must be valid UTF-8") from None
    scale, seed = scene.get("guidance_scale"), scene.get("seed")
    if scale is not None and (not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 <= scale < 1e6):
        raise wrong("guidance_scale must be a number, at least 0 and below 1000000")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63):
        raise wrong(f"seed must be a whole number from 0 to {2**63 - 1}")
    lora = scene.get("lora")
    if lora is not None:
        numbers = lora.values() if isinstance(lora, dict) else [None]
        if not all(
            isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6 for value in numbers
        ):
            raise wrong("lora must be a mapping from names of --lora files to strengths")
    return Scene(start, prompt, negative, None if scale is None else float(scale), seed, lora)


def of_prompts(prompts: Sequence[str], windows: Sequence[Window]) -> tuple[Scene, ...]:
    """One scene per prompt, each beginning with a window; the last one holds to the end.

    Raises:
        InputError: there are more prompts than windows.
    """
    if len(prompts) > len(windows):
        many = f"{len(windows)} window{'s' * (len(windows) != 1)}"
        legal = f"{len(prompts)} prompts for {many}; at most one each (a prompt with spaces needs quotes)"
        raise InputError("prompt", None, legal)
    starts = [0, *(window.first_frame for window in windows[1:])]
    return tuple(Scene(start, prompt) for start, prompt in zip(starts, prompts, strict=False))


def scenes_of(story: Sequence[Scene], windows: Sequence[Window]) -> list[Scene]:
    """The scene of each window.

    Raises:
        InputError: no window begins within a scene; names the frames where windows begin.
    """
    starts = [scene.start for scene in story]
    chosen = [bisect_right(starts, window.first_frame) - 1 for window in windows]
    begun = set(chosen)
    for number, scene in enumerate(story):
        if number not in begun:
            edges = ", ".join(str(window.first_frame) for window in windows[:SHOWN]) + ", ..." * (len(windows) > SHOWN)
            begin = "windows begin at frames" if len(windows) > 1 else "the only window begins at frame"
            legal = f"the scene from frame {scene.start} on would never begin; {begin} {edges}"
            raise InputError("story", None, legal)
    return [story[number] for number in chosen]
