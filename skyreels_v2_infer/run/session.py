"""A session: processes, device, loaded model and compiled kernels. It makes one video after another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from skyreels_v2_infer.console import say
from skyreels_v2_infer.distributed.team import Team
from skyreels_v2_infer.plan.cost import Holding
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import LoraPlan, Plan
from skyreels_v2_infer.plan.sharing import Layout
from skyreels_v2_infer.progress import VideoProgress, doing
from skyreels_v2_infer.run.video import Video
from skyreels_v2_infer.run.worker import Worker
from skyreels_v2_infer.weights.locate import Checkpoint

if TYPE_CHECKING:
    from skyreels_v2_infer.pipelines.base import VideoPipeline
    from skyreels_v2_infer.pipelines.history import Finished, Resume
    from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
    from skyreels_v2_infer.pipelines.prompts import TextMemory
    from skyreels_v2_infer.runtime import Placement

KNOWN_FPS = (16, 24)  # frame rates of the training videos


class Session:
    """Holds everything that is expensive to set up, for any number of videos.

    Args:
        checkpoint: the model's files; loaded when the first video is made.
        place: device and precision.
        team: the processes that share the work.
        holding: which weights are on the device when, and whether the VAE computes in tiles.
        vae_dtype: of the VAE, by name.
        attention: the requested kernel, or "auto".
        loras: files and strengths.
        loras_change: whether strengths differ between windows.
        compiled: compile the transformer's blocks.
        quantize: round the blocks' weights to "fp8" or "int8". dequantize: expand stored quantised weights once.
        check: called regularly; raises once the process has to stop.
        progress: of each video: (check, lines) -> a `VideoProgress`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        place: Placement,
        team: Team,
        *,
        holding: Holding = Holding(),  # noqa: B008  frozen
        vae_dtype: str = "float32",
        attention: str = "auto",
        loras: Sequence[LoraPlan] = (),
        loras_change: bool = False,
        compiled: bool = False,
        quantize: str | None = None,
        dequantize: bool = False,
        check: Callable[[], object] = lambda: None,
        progress: Callable[..., VideoProgress] = VideoProgress,
    ):
        self.checkpoint, self.place, self.team, self.check = checkpoint, place, team, check
        self.progress = progress
        self.holding, self.vae_dtype, self.compiled = holding, vae_dtype, compiled
        self.loras, self.loras_change = loras, loras_change
        self.quantize, self.dequantize = quantize, dequantize
        from skyreels_v2_infer.modules.attention import choose_attention

        config = checkpoint.transformer_config
        self.attention = choose_attention(
            place.device, place.dtype, config["dim"] // config["num_heads"], attention, say
        )
        self.loading = 0.0  # seconds, until the next video has recorded them
        self.coming: Sequence[str] = ()  # texts of the videos that follow, to be encoded together
        self._texts: TextMemory | None = None
        self._pipeline: VideoPipeline | None = None
        self._ranks: dict[Layout, Ranks] = {}

    def make(self, plan: Plan, inputs: Inputs, video: Video | None) -> Path | None:
        """Makes one video, or the rest of an interrupted one.

        Args:
            plan: with a seed.
            inputs: the images and frames that the plan uses.
            video: its files; None on all ranks but the first.

        Returns:
            the video's path; None on all ranks but the first.
        """
        resume = self._resume(self.team.same(None if video is None else video.state()))
        self.load()
        hooks = self._hooks(plan)
        if video is not None:
            hooks = replace(hooks, look=video.pictures)
        parts = self.execute(plan, inputs, resume, hooks)
        if video is not None:
            video.add_details(self.details())
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

    def details(self) -> dict:
        """Fields for the manifest: attention kernel, compilation, and a report for each LoRA."""
        found: dict = {"attention": str(self.attention), "compiled": self.compiled, "offload": self.holding.offload}
        if self.loras:
            found["loras"] = [report.as_dict() for report in self.lora_reports]
        return found

    def load(self) -> None:
        """Loads the model, unless it is loaded."""
        if self._pipeline is not None:
            return
        from skyreels_v2_infer import embedded, pipelines
        from skyreels_v2_infer.runtime import DTYPES, has_bfloat16

        kind = "Image2VideoPipeline" if self.checkpoint.is_image_to_video else "DiffusionForcingPipeline"
        model, began = embedded.name_of(self.checkpoint.model_id), time.perf_counter()
        with doing(f"loading {model}"):
            self._pipeline = getattr(pipelines, kind)(
                self.checkpoint,
                device=self.place,
                offload=self.holding,
                vae_dtype=DTYPES[self.vae_dtype],
                loras=[(lora.path, lora.strength) for lora in self.loras],
                loras_change=self.loras_change,
                compiled=self.compiled,
                quantize=self.quantize,
                dequantize=self.dequantize,
            )
        self.loading = time.perf_counter() - began
        dtype = str(self.place.dtype).removeprefix("torch.")
        say(f"loaded {model} on {self.place.device} in {dtype}, {self.loading:.1f} s")
        if self.place.device.type == "cuda":
            say(f"attention: {self.attention}; blocks {'compiled' if self.compiled else 'not compiled'}")
        for report in self.lora_reports:
            say(report.line())
        if dtype == "bfloat16" and not has_bfloat16(self.place.device):
            say("--dtype bfloat16: this GPU has no fast attention for it, only one that needs much memory; try float16")

    @property
    def lora_reports(self) -> list:
        """For each LoRA a report of matched tensors, and of skipped ones with the reason."""
        return [] if self._pipeline.loras is None else self._pipeline.loras.reports

    def _hooks(self, plan: Plan) -> Hooks:
        from skyreels_v2_infer.modules.caches.planned import planned_cache
        from skyreels_v2_infer.pipelines.hooks import Hooks
        from skyreels_v2_infer.pipelines.prompts import TextMemory

        if self._pipeline.transformer.inject_sample_info and plan.fps not in KNOWN_FPS:
            fps = f"{plan.fps:g}"
            say(f"--fps {fps}: this model knows 16 and 24 and gets 24 as input; the video plays at {fps}")
        self._texts = self._texts or TextMemory()
        self._texts.coming = self.coming
        ranks = self._shared(plan.sharing or Layout())
        return Hooks(partial(self.progress, self.check, lines=True), planned_cache(plan.cache), ranks, self._texts)

    def _shared(self, layout: Layout) -> Ranks:
        """The callables with which ranks share a video; set up once per layout."""
        from skyreels_v2_infer.pipelines.hooks import Ranks

        if layout not in self._ranks:
            self._ranks[layout] = Ranks.of(self.team.share(layout, self.attention))
            if layout.ranks == 1:
                return self._ranks[layout]
            halves = "conditional and unconditional pass in parallel, " if layout.guidance == 2 else ""
            say(f"{layout.ranks} processes: {halves}each frame over {layout.ulysses} (ulysses) x {layout.ring} (ring)")
        return self._ranks[layout]

    def _write(self, parts: Iterator[Finished], video: Video, denoised: bool) -> Path:
        """Writes finished windows while the following frames are computed.

        A worker thread stores a window's latents before the window is decoded, and converts, measures and encodes its
        frames while the next frames are decoded and the next window is denoised.

        Args:
            denoised: whether the first window's latents are on the disk already.
        """
        worker, waited = Worker(), time.perf_counter()
        try:
            for part in parts:
                if not denoised:
                    worker.drain()  # latents belong to the piece that comes next on the disk
                    video.journal.keep_latents(part.whole.cpu().numpy())  # before decoding, the peak of memory
                denoised, sampled = False, time.perf_counter()
                worker.put(video.begin_piece)
                for frames in part.pieces:
                    worker.put(partial(video.write, on_host(frames)))
                    self.check()
                state = part.history.state()
                seconds = {"sampling": sampled - waited, "decoding": time.perf_counter() - sampled}
                worker.put(partial(video.end_piece, None if state is None else state.numpy(), seconds))
                waited = time.perf_counter()
                self.check()
            with doing("encoding the last frames"):
                worker.finish()
        finally:
            try:
                worker.close(video.stop_writing)  # an interrupted run does not wait for an encoder that is stuck
            finally:
                video.give_up_piece()
        loading, self.loading = self.loading, 0.0
        with doing("writing the video"):
            return video.finish(loading)


def on_host(frames) -> Callable:
    """Returns a function for another thread that returns frames on the host.

    On a GPU the copy is queued now, right behind the work that makes the frames, so that the other thread does not wait
    for work that is queued later.

    Args:
        frames: float32 ``[B, 3, t, H, W]`` in -1..1.

    Returns:
        ``() -> uint8 [t, H, W, 3]``, the frames of the first video of the batch.
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
