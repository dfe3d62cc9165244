"""Noise levels, solvers, the adaptive-difference schedule and the windows.

``sigmas``, ``diffusion_forcing``, ``windows`` and the table of solvers import numpy at most; the solvers themselves
need torch. So that planning works without torch, every name is imported at its first use.
"""

from importlib import import_module

_HOMES = {
    "SOLVERS": "solvers",
    "FlowUniPCMultistepScheduler": "unipc",
    "Schedule": "diffusion_forcing",
    "Window": "windows",
    "ad_schedule": "diffusion_forcing",
    "check_sigmas": "sigmas",
    "flow_sigmas": "sigmas",
    "flow_timesteps": "sigmas",
    "plan_windows": "windows",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
