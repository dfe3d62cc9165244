"""How the work of a video divides among its rows, for estimates of the time that is left."""

from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.progress import WindowWork


def work_of(plan: Plan) -> list[WindowWork]:
    """The work of each window; a row costs one for each latent frame and pass of guidance."""
    work = []
    for window in plan.windows:
        frames = window.schedule.reach(plan.causal_block_size)
        work.append(WindowWork((frames * (1 + window.is_guided)).tolist(), window.window.new_frames))
    return work
