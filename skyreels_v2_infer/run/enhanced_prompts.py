"""--prompt_enhancer: prompts are expanded by a language model before the video model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from skyreels_v2_infer.cli.settings import GenerateSettings
from skyreels_v2_infer.console import quiet_transformers, say
from skyreels_v2_infer.progress import doing

if TYPE_CHECKING:
    from skyreels_v2_infer.runtime import Placement


def enhanced(settings: GenerateSettings, place: Placement) -> str:
    """The prompt expanded by the language model, which is freed afterwards."""
    return enhance_all(settings, [settings.prompt], place)[0]


def enhance_all(settings: GenerateSettings, prompts: Sequence[str], place: Placement) -> list[str]:
    """Prompts expanded by the settings' language model, which is loaded once and freed afterwards."""
    from skyreels_v2_infer.pipelines.prompt_enhancer import PromptEnhancer

    quiet_transformers()
    with doing(f"loading {settings.prompt_enhancer_model}"):
        enhancer = PromptEnhancer(settings.prompt_enhancer_model, "cpu" if place.device.type == "cpu" else "auto")
    found = []
    for number, prompt in enumerate(prompts, 1):
        with doing(f"enhancing prompt {number}/{len(prompts)}"):
            found.append(enhancer(prompt))
        say(f"prompt: {prompt}")
        unusable = "not enhanced: the language model gave no usable answer"
        say(unusable if found[-1] == prompt else f"enhanced: {found[-1]}")
    enhancer.free()
    return found
