"""One run of a plan: texts, then window by window the given frames, denoising and decoding."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

import torch

from skyreels_v2_infer.modules.caches.base import CONDITIONAL, UNCONDITIONAL, WindowCache, WindowRows
from skyreels_v2_infer.modules.transformer import PromptContext
from skyreels_v2_infer.pipelines.conditioning import NoisedHistory, latent_shape, to_video
from skyreels_v2_infer.pipelines.denoise import Guided, Row, both_branches, denoise, estimate, rows_of
from skyreels_v2_infer.pipelines.history import Finished, LatentHistory, PixelHistory, Resume
from skyreels_v2_infer.pipelines.hooks import Hooks, Progress
from skyreels_v2_infer.pipelines.one_batch import OneBatch, is_small
from skyreels_v2_infer.pipelines.prompts import Texts
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan, WindowPlan
from skyreels_v2_infer.runtime import GeneratorNoise, Noise, NoiseSource
from skyreels_v2_infer.scheduler import SOLVERS
from skyreels_v2_infer.scheduler.diffusion_forcing import Schedule

if TYPE_CHECKING:
    from skyreels_v2_infer.pipelines.base import VideoPipeline


class Execution:
    """A run of a plan; arguments as for `VideoPipeline.execute`.

    Args:
        pipeline: has the model's parts.
        progress: told of every window and row.
    """

    def __init__(
        self, pipeline: VideoPipeline, plan: Plan, inputs: Inputs, resume: Resume, hooks: Hooks, progress: Progress
    ):
        self.pipeline, self.plan, self.inputs, self.resume = pipeline, plan, inputs, resume
        self.hooks, self.progress = hooks, progress
        self.noise = self._noise()
        with progress.doing("encoding the prompt"):
            self.texts = Texts(pipeline, plan, inputs, resume, hooks.ranks, hooks.texts)
        self.codec = pipeline.codec
        self.history = self._history()

    def _noise(self) -> Noise:
        """Noise from the caller's generator, or from the plan's seed, or from a seed drawn by torch."""
        if self.inputs.generator is not None:
            return GeneratorNoise(self.inputs.generator)
        if self.plan.seed is None:
            drawn = torch.randint(2**63 - 1, (1,)).to(self.pipeline.device)
            return NoiseSource(int(self.hooks.ranks.agree(drawn)))
        return NoiseSource(self.plan.seed)

    def _history(self) -> PixelHistory | LatentHistory:
        """The history of the first window that has to be made."""
        plan, resume = self.plan, self.resume
        history = PixelHistory(self.codec, plan.longest_history)
        if plan.history != "pixel":
            kept = max(self.pipeline.vae.decoder_memory, plan.most_history_latents)
            history = LatentHistory(self.codec, kept, history)
        if resume.window and resume.history is not None:
            history.restore(resume.history, plan.windows[: resume.window])
        elif resume.history is not None:
            history.add(resume.history)
        elif self.inputs.prefix is not None:
            newest = to_video(self.inputs.prefix[-plan.longest_history :], torch.device("cpu"))
            history.add(newest.expand(self.texts.batch, -1, -1, -1, -1))
        return history

    def windows(self) -> Iterator[Finished]:
        """Yields each window once it is denoised."""
        plan, resume = self.plan, self.resume
        for window in plan.windows[resume.window :]:
            index = window.window.index
            if index == resume.window and resume.latents is not None:
                done = resume.latents.to(self.pipeline.device)
            else:
                done = self._denoised(window)
            pieces = self.progress.decoding(index, self.history.decode(window, done))
            yield Finished(done[:, :, window.window.history_latents :], pieces, index, done, self.history)
            if window is not plan.windows[-1]:
                for _ in pieces:  # decodes unread frames so that the history is complete
                    pass

    def _denoised(self, window: WindowPlan) -> torch.Tensor:
        """The latents of a window, its history included, its end image not."""
        pipeline, plan = self.pipeline, self.plan
        noise = self.noise if window.seed is None else NoiseSource(window.seed)
        if plan.loras:
            pipeline.set_strengths(window.lora_strengths)
        with self.progress.doing(f"preparing window {window.window.index + 1}/{len(plan.windows)}"):
            start = self._start(window, noise)
            channels = pipeline.image_channels(plan, self.inputs)
        with pipeline.transformer_at_work():
            done = self._denoise(window, start, noise, channels)
        return done[:, :, : window.latents - window.end_latents]

    def _start(self, window: WindowPlan, noise: Noise) -> torch.Tensor:
        """Initial latents of a window, float32 ``[B, 16, F, H/8, W/8]``: noise, with given frames at either end."""
        plan, inputs, device = self.plan, self.inputs, self.pipeline.device
        frames = window.latents - window.end_latents
        shape = latent_shape(self.texts.batch, self.pipeline.vae.z_dim, frames, plan.height, plan.width)
        latents = inputs.latents if window.window.index == 0 else None
        if latents is None:
            latents = noise.latents(window.window.index, shape)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents {list(latents.shape)}: must be {list(shape)} for these settings")
        latents = latents.to(device, torch.float32, copy=True)  # given latents are written into the copy
        given = self.history.given(window)
        if given is None and window.given_latents:
            given = self.codec.encode(to_video(inputs.image[None], device))
        if given is not None:
            latents[:, :, : window.given_latents] = given.to(device)
        if window.end_latents:
            end = self.codec.encode(to_video(inputs.end_image[None], device))
            latents = torch.cat([latents, end.expand(self.texts.batch, -1, -1, -1, -1)], dim=2)
        return latents

    def _denoise(
        self, window: WindowPlan, latents: torch.Tensor, noise: Noise, channels: torch.Tensor | None
    ) -> torch.Tensor:
        """Runs the rows of one window.

        Args:
            channels: see `VideoPipeline.image_channels`.
        """
        plan, hooks, transformer = self.plan, self.hooks, self.pipeline.transformer
        positive, negative = self.texts.contexts(window)
        noised = None
        if plan.addnoise and window.given_latents:
            noised = NoisedHistory(noise, window.window.index, window.given_latents, plan.addnoise)
        rows = rows_of(window.schedule, latents.device, plan.causal_block_size, noised)
        options = self._options(channels)
        cached = self._cached(window.schedule, rows, options.get("fps"))

        around = [cached.blocks(number) for number in (CONDITIONAL, UNCONDITIONAL)[: 1 + window.is_guided]]

        def branch(context: PromptContext | None, number: int):
            if context is None:
                return None
            return lambda x, t: transformer(x, t, context, around=around[number], **options)

        passes, branches = (branch(positive, CONDITIONAL), branch(negative, UNCONDITIONAL)), hooks.ranks.branches
        if branches is both_branches and window.is_guided and not any(around) and is_small(transformer, latents):
            branches = OneBatch(transformer, positive, negative, options)
        velocity = Guided(*passes, window.guidance_scale, branches, cached.velocities)
        solver = SOLVERS[plan.solver](plan.sigmas)
        look = None
        if hooks.look is not None:

            def look(row: int, before: torch.Tensor, v: torch.Tensor) -> None:
                found = partial(estimate, window.schedule, plan.sigmas, row, before, v)
                hooks.look(window.window.index, row, len(rows), found)

        with self.progress.rows(window.window.index) as advance:

            def on_row(row: int, latents: torch.Tensor) -> torch.Tensor:
                advance()
                return self._called_back(row, window, latents)

            latents = hooks.ranks.agree(latents)
            shape = tuple(latents.shape)
            drawn = partial(noise.step, window.window.index, shape=shape)
            done = denoise(velocity, solver, window.schedule, rows, latents, noised, on_row, drawn, look)
        if not done.isfinite().all():  # would be decoded to black frames
            hint = "try --dtype float32, or less --guidance_scale"
            raise FloatingPointError(f"window {window.window.index + 1}: model output contains NaN or Inf; {hint}")
        return done

    def _options(self, channels: torch.Tensor | None) -> dict:
        """Arguments of the transformer's forward that are the same in all rows and both passes."""
        plan, ranks = self.plan, self.hooks.ranks
        options = {"sequence": ranks.sequence}
        if plan.causal_block_size is not None:
            options["causal_block_size"] = plan.causal_block_size
        if channels is not None:
            options["y"] = ranks.agree(channels.expand(self.texts.batch, -1, -1, -1, -1))
        if self.pipeline.transformer.inject_sample_info:
            options["fps"] = torch.full((1,), 0 if plan.fps == 16 else 1, device=self.pipeline.device)
        return options

    def _cached(self, schedule: Schedule, rows: list[Row], fps: torch.Tensor | None) -> WindowCache:
        """What wraps the computation of a window's rows."""
        if self.hooks.cache is None:
            return WindowCache()
        transformer = self.pipeline.transformer
        about = WindowRows(rows, schedule, lambda t: transformer.embed_time(t, fps), self.hooks.ranks.agree)
        with self.pipeline.at_work(transformer.time_layers):  # a cache may need them before the first forward
            return self.hooks.cache.window(about)

    def _called_back(self, row: int, window: WindowPlan, latents: torch.Tensor) -> torch.Tensor:
        """The latents that the caller's `callback_on_step_end` makes of these; without one these."""
        callback = self.inputs.callback
        if callback is None:
            return latents
        shown = {"latents": latents.clone()}  # a copy, since the solver works in place
        timesteps = torch.from_numpy(window.schedule.timesteps[row])
        replaced = (callback(self.pipeline, row, timesteps, shown) or {}).get("latents")
        if replaced is None:
            return latents
        if replaced.shape != latents.shape:
            legal = f"must return latents {list(latents.shape)}"
            raise ValueError(f"callback_on_step_end: returned {list(replaced.shape)}, {legal}")
        return replaced.to(latents)  # the callback may return another precision or device
