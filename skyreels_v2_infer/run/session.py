"""A session: the processes, the device, the loaded model and its kernels. It makes one video after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.console import say, silent
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.run.video import Video
from skyreels_v2_infer.run.worker import Worker
from skyreels_v2_infer.weights.locate import Checkpoint

if TYPE_CHECKING:
    from skyreels_v2_infer.pipelines.base import VideoPipeline
    from skyreels_v2_infer.pipelines.history import Finished, Resume
    from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
    from skyreels_v2_infer.runtime import Placement

KNOWN_FPS = (16, 24)  # the frame rates that the models were trained with


class Session:
    """Everything that is expensive to set up, for any number of videos.

    Args:
        checkpoint: the model's files; loaded when the first video is made.
        place: device and precision.
        team: the processes that share the work.
        offload: keep weights in the host's memory, and on the device only what computes now.
        check: called now and then; raises when the process is to end.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        place: Placement,
        team: Team,
        *,
        offload: bool = False,
        check: Callable[[], object] = lambda: None,
    ):
        self.checkpoint, self.place, self.team = checkpoint, place, team
        self.offload, self.check = offload, check
        self.loading = 0.0  # seconds
        self._pipeline: VideoPipeline | None = None
        self._ranks: dict[Layout, Ranks] = {}

    def make(self, plan: Plan, inputs: Inputs, video: Video | None) -> Path | None:
        """Makes one video, or what is left of an interrupted one.

        Args:
            plan: with a seed.
            inputs: what the plan says is given.
            video: its files; None on other ranks than the first.

        Returns:
            the video's path; None on other ranks than the first.
        """
        resume = self._resume(self.team.same(None if video is None else video.state()))
        self.load()
        hooks = self._hooks(plan)
        parts = self.execute(plan, inputs, resume, hooks)
        if video is not None:
            return self._write(parts, video, resume.latents is not None)
        for _ in parts:
            self.check()
        return None

    def execute(self, plan: Plan, inputs: Inputs, resume: Resume, hooks: Hooks) -> Iterator[Finished]:
        return self._pipeline.execute(plan, inputs, resume, hooks)

    def _resume(self, state: tuple | None) -> Resume:
        import torch

        from skyreels_v2_infer.pipelines.history import Resume

        if state is None:
            return Resume()
        window, *arrays = state
        return Resume(window, *(None if array is None else torch.from_numpy(array) for array in arrays))

    def load(self) -> None:
        """Loads the model, if no video was made before."""
        if self._pipeline is not None:
            return
        from tqdm import tqdm

        from skyreels_v2_infer import pipelines
        from skyreels_v2_infer.runtime import has_bfloat16

        kind = "Image2VideoPipeline" if self.checkpoint.is_image_to_video else "DiffusionForcingPipeline"
        model, began = self.checkpoint.model_id, time.perf_counter()
        # Gone again when it is done: a checkpoint that does not fit is refused in one line.
        with tqdm(desc=f"loading {model}", bar_format="{desc}", leave=False, disable=silent()):
            self._pipeline = getattr(pipelines, kind)(self.checkpoint, device=self.place, offload=self.offload)
        self.loading = time.perf_counter() - began
        dtype = str(self.place.dtype).removeprefix("torch.")
        say(f"loaded {model} on {self.place.device} in {dtype}, {self.loading:.1f} s")
        if dtype == "bfloat16" and not has_bfloat16(self.place.device):
            say("--dtype bfloat16: this GPU has no fast attention in it, only one that takes much memory; try float16")

    def _hooks(self, plan: Plan) -> Hooks:
        from skyreels_v2_infer.modules.caches.teacache import TeaCache
        from skyreels_v2_infer.pipelines.hooks import Hooks

        if self._pipeline.transformer.inject_sample_info and plan.fps not in KNOWN_FPS:
            say(f"--fps {plan.fps}: this model was trained at 16 and 24 and gets 24; the video plays at {plan.fps}")
        cache = plan.cache and TeaCache(plan.cache.threshold, plan.cache.coefficients, plan.cache.use_ret_steps)
        return Hooks(partial(show_rows, self.check), cache, self._shared(plan.sharing or Layout()))

    def _shared(self, layout: Layout) -> Ranks:
        """How the ranks share a video; set up once for each layout."""
        from skyreels_v2_infer.pipelines.hooks import Ranks

        if layout not in self._ranks:
            if layout.ranks == 1:
                self._ranks[layout] = Ranks()
                return self._ranks[layout]
            self._ranks[layout] = Ranks.of(self.team.share(layout))
            halves = "prompt and negative prompt side by side, " if layout.guidance == 2 else ""
            say(f"{layout.ranks} processes: {halves}each frame over {layout.ulysses} (ulysses) x {layout.ring} (ring)")
        return self._ranks[layout]

    def _write(self, parts: Iterator[Finished], video: Video, denoised: bool) -> Path:
        """Writes what is finished, beside the computation of what follows.

        A window's latents are kept before it is decoded; frames are converted, measured and encoded by another thread
        while the next are decoded or denoised.

        Args:
            denoised: latents of the first window are on the disk already.
        """
        from tqdm import tqdm

        worker, waited = Worker(), time.perf_counter()
        try:
            with tqdm(desc="finished", unit=" frames", leave=False, disable=silent()) as bar:
                for part in parts:
                    if not denoised:
                        worker.put(partial(keep_latents, video, part.whole))
                    denoised, sampled = False, time.perf_counter()
                    worker.put(video.begin_piece)
                    for frames in part.pieces:
                        worker.put(partial(video.write, on_host(frames)))
                        bar.update(frames.shape[2])
                        self.check()
                    state = part.history.state()
                    seconds = {"sampling": sampled - waited, "decoding": time.perf_counter() - sampled}
                    worker.put(partial(video.end_piece, None if state is None else state.numpy(), seconds))
                    waited = time.perf_counter()
                    self.check()
            worker.finish()
        finally:
            worker.close(video.stop_writing)  # an interrupted run does not wait for an encoder that is stuck
            video.give_up_piece()
        return video.finish(self.loading)


def keep_latents(video: Video, latents) -> None:
    video.journal.keep_latents(latents.cpu().numpy())


def on_host(frames) -> Callable:
    """uint8 ``[t, H, W, 3]`` of the first of ``[B, 3, t, H, W]``, to be fetched by another thread.

    On a GPU the copy is queued here, behind the work that makes the frames, so that fetching does not wait for work
    that is queued later.
    """
    import torch

    from skyreels_v2_infer.pipelines.conditioning import to_frames, to_levels

    if not frames.is_cuda:
        return lambda: to_frames(frames[:1])[0]
    levels = to_levels(frames[:1])[0]
    host = torch.empty(levels.shape, dtype=levels.dtype, pin_memory=True)
    host.copy_(levels, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def fetch():
        copied.synchronize()
        return host.numpy()

    return fetch


@contextmanager
def show_rows(check: Callable[[], None], window: int, windows: int, rows: int) -> Iterator[Callable[[], object]]:
    """A progress bar for a window where stderr is a terminal, and a line when it is done."""
    from tqdm import tqdm

    name = f"window {window + 1}/{windows}"
    began = time.perf_counter()
    with tqdm(total=rows, desc=name, unit="row", leave=False, disable=silent()) as bar:

        def advance() -> None:
            bar.update()
            check()

        yield advance
    say(f"{name}: {rows} rows, {time.perf_counter() - began:.1f} s")
