"""When every frame is denoised by how much: sigmas, the solver, the schedule, the windows.

``sigmas``, ``diffusion_forcing`` and ``windows`` are plans: numpy alone. The solver computes and needs torch, which is
why its name is imported only when it is used.
"""

from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule, ad_schedule
from skyreels_v2_infer.scheduler.sigmas import flow_sigmas, flow_timesteps
from skyreels_v2_infer.scheduler.windows import Window, plan_windows

__all__ = [
    "FlowUniPCMultistepScheduler",
    "Schedule",
    "Window",
    "ad_schedule",
    "flow_sigmas",
    "flow_timesteps",
    "plan_windows",
]


def __getattr__(name: str):
    if name == "FlowUniPCMultistepScheduler":
        from skyreels_v2_infer.scheduler.unipc import FlowUniPCMultistepScheduler

        return FlowUniPCMultistepScheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
