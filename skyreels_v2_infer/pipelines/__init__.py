"""The three pipelines, the prompt enhancer and the published `resizecrop`; each is imported when it is first used."""

from importlib import import_module

_HOMES = {
    "DiffusionForcingPipeline": "diffusion_forcing_pipeline",
    "Image2VideoPipeline": "image2video_pipeline",
    "PromptEnhancer": "prompt_enhancer",
    "Text2VideoPipeline": "text2video_pipeline",
    "resizecrop": "conditioning",
}
__all__ = ["DiffusionForcingPipeline", "Image2VideoPipeline", "PromptEnhancer", "Text2VideoPipeline", "resizecrop"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
