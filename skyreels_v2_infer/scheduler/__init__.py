"""When every frame is denoised by how much: sigmas, the solver, the schedule, the windows.

``sigmas``, ``diffusion_forcing`` and ``windows`` plan: numpy at most. The solver computes and needs torch. So a name is
imported when it is first used.
"""

from importlib import import_module

_HOMES = {
    "FlowUniPCMultistepScheduler": "unipc",
    "Schedule": "diffusion_forcing",
    "Window": "windows",
    "ad_schedule": "diffusion_forcing",
    "flow_sigmas": "sigmas",
    "flow_timesteps": "sigmas",
    "plan_windows": "windows",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
