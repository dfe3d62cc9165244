"""Inference for SkyReels-V2: text, images and videos to videos of any length.

The names below are imported when they are first used (PEP 562), so that ``import skyreels_v2_infer`` costs nothing
and argument errors and ``--help`` never wait for torch.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOMES = {
    "DiffusionForcingPipeline": "skyreels_v2_infer.pipelines",
    "Image2VideoPipeline": "skyreels_v2_infer.pipelines",
    "PromptEnhancer": "skyreels_v2_infer.pipelines",
    "Text2VideoPipeline": "skyreels_v2_infer.pipelines",
}
__all__ = ["DiffusionForcingPipeline", "Image2VideoPipeline", "PromptEnhancer", "Text2VideoPipeline", "__version__"]


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
