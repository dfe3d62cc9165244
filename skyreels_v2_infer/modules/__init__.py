"""The models, and the published functions that load them; each is imported when it is first asked for."""

from importlib import import_module

_HOME = {
    "WanModel": "skyreels_v2_infer.modules.transformer",
    "WanVAE": "skyreels_v2_infer.modules.vae",
    "download_model": "skyreels_v2_infer.weights.download",
    "get_transformer": "skyreels_v2_infer.weights.loading",
    "get_vae": "skyreels_v2_infer.weights.loading",
    "get_text_encoder": "skyreels_v2_infer.weights.loading",
    "get_image_encoder": "skyreels_v2_infer.weights.loading",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
