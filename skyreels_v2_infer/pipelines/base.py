"""What the three pipelines have in common: their parts, prompts, one window, and what comes out."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.attention import WHOLE
from skyreels_v2_infer.modules.caches.teacache import TeaCache
from skyreels_v2_infer.modules.transformer import Around, PromptContext
from skyreels_v2_infer.pipelines.conditioning import latent_shape, to_frames
from skyreels_v2_infer.pipelines.denoise import Guided, both_branches, denoise, model_rows
from skyreels_v2_infer.pipelines.history import Finished, History, LatentHistory
from skyreels_v2_infer.plan.plan import Plan, WindowPlan, is_guided
from skyreels_v2_infer.runtime import GeneratorNoise, Noise, NoiseSource, Offload, Placement
from skyreels_v2_infer.scheduler.unipc import FlowUniPCMultistepScheduler

OUTPUT_TYPES = ("np", "pt", "latent")

# (index of the window, windows, rows) -> a context whose value is called after every row
Progress = Callable[[int, int, int], AbstractContextManager[Callable[[], None]]]


def itself(x: torch.Tensor) -> torch.Tensor:
    return x


def always_there(module: torch.nn.Module, memory: dict | None = None) -> AbstractContextManager[None]:
    return nullcontext()


def no_progress(window: int, windows: int, rows: int) -> AbstractContextManager[Callable[[], None]]:
    return nullcontext(lambda: None)


@dataclass(frozen=True)
class Prompts:
    """Prompt and negative prompt as the transformer's blocks read them; negative is None without guidance."""

    batch: int
    positive: PromptContext
    negative: PromptContext | None
    guidance_scale: float


class VideoPipeline:
    """Parts and stages; a subclass says in which order.

    Args:
        model_path: folder or hub id with all parts.
        dit_path: folder or hub id of the transformer, if it is another; `model_path` needs none then.
        device: None: CUDA if there is such a GPU, else the CPU.
        weight_dtype: of the transformer and the encoders; None: float32 on the CPU, else bfloat16. The VAE is float32.
        use_usp: share the work with the other ranks of torch.distributed's default group, which has to be there.
        offload: keep weights in the host's memory, and on the device only what computes now.

    Attributes:
        device: what computes; the latents are there.
        progress: what shows how far a window is, see `Progress`; by default nothing.
        cache: wraps the transformer's blocks, see `TeaCache.window`; None: they run in every row.
        sequence: what splits tokens over ranks. branches: what asks both branches of guidance. agree: makes a tensor
            the same on all ranks. See `share`; by default there are no other ranks.
        at_work: is handed a part, and what it remembers if it does, and returns a context inside which it computes, see
            `Offload`. Encoders, whose weights are needed for moments only, come to the device for it; with `offload`
            all parts do. Parts that a caller has put together stay where they are.
    """

    takes_image_channels = False

    def __init__(
        self, model_path, dit_path=None, device=None, weight_dtype=None, use_usp: bool = False, offload: bool = False
    ):
        from skyreels_v2_infer.modules import get_image_encoder, get_text_encoder, get_transformer, get_vae
        from skyreels_v2_infer.weights.locate import PARTS, Checkpoint

        place = Placement.choose(device, weight_dtype)
        host = torch.device("cpu")
        home = host if offload else place.device
        if dit_path in (None, model_path):
            checkpoint = dit = Checkpoint.open(model_path)
        else:
            others = [p for p in PARTS if p != "transformer" and (p != "image_encoder" or self.takes_image_channels)]
            checkpoint, dit = Checkpoint.open(model_path, tuple(others)), Checkpoint.open(dit_path, ("transformer",))
        if dit.is_image_to_video != self.takes_image_channels:
            raise InputError("model_id", dit.folder, self._needs("i2v" if dit.is_image_to_video else "t2v"))
        self._set_parts(
            get_transformer(dit, home, place.dtype),
            get_vae(checkpoint, home),
            get_text_encoder(checkpoint, host, place.dtype),
            get_image_encoder(checkpoint, host, place.dtype) if self.takes_image_channels else None,
            place.device,
        )
        offloading = Offload(place.device)
        self.at_work = offloading.at_work
        if offload:
            offloading.by_blocks(self.transformer)
        if use_usp:
            self._share_with_all()

    @classmethod
    def from_parts(cls, transformer, vae, text_encoder=None, image_encoder=None):
        """A pipeline of loaded parts, which stay on the devices they are on.

        Args:
            transformer: a `WanModel`.
            vae: a `WanVAE`.
            text_encoder: a `TextEncoder`; not needed by calls that bring `prompt_embeds`.
            image_encoder: an `ImageEncoder`; for image-to-video models.
        """
        pipeline = cls.__new__(cls)
        pipeline._set_parts(transformer, vae, text_encoder, image_encoder, transformer.device)
        return pipeline

    def _set_parts(self, transformer, vae, text_encoder, image_encoder, device: torch.device) -> None:
        if (transformer.model_type == "i2v") != self.takes_image_channels:
            raise ValueError(f"transformer: {self._needs(transformer.model_type)}")
        self.transformer, self.vae = transformer, vae
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.device = device
        self.progress: Progress = no_progress
        self.cache: TeaCache | None = None
        self.sequence, self.branches, self.agree = WHOLE, both_branches, itself
        self.at_work: Callable[..., AbstractContextManager] = always_there

    def share(self, shared) -> None:
        """Works with other ranks from now on; `shared` is what `xdit_context_parallel.share` returns."""
        self.sequence, self.agree = shared.sequence, shared.agree
        self.branches = shared.branches or both_branches

    def _share_with_all(self) -> None:
        from skyreels_v2_infer.distributed.xdit_context_parallel import share
        from skyreels_v2_infer.plan.sharing import choose_layout

        ranks = torch.distributed.get_world_size()
        # Whether the tokens of a frame can be split is known with the video's size; see `SharedSequence.split`.
        self.share(share(choose_layout(ranks, self.transformer.num_heads, ranks, guided=True)))

    @classmethod
    def _needs(cls, model_type: str) -> str:
        wanted = "an image-to-video" if cls.takes_image_channels else "a text-to-video or diffusion-forcing"
        return f"{cls.__name__} needs {wanted} model, this one is of type {model_type}"

    # Three ways to ask for a video: whole, frame by frame, or with the latents of every window

    def __call__(self, *args, output_type: str = "np", **kwargs):
        """The whole video; arguments as for `generate`, results as for `collect`."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r}: must be one of {', '.join(OUTPUT_TYPES)}")
        # Published code wraps the call in autocast, which would lower what has to be float32, the VAE above all.
        with torch.autocast(self.device.type, enabled=False):
            return collect(self.generate(*args, **kwargs), output_type)

    def stream(self, *args, **kwargs) -> Iterator[np.ndarray]:
        """The frames of one video, uint8 ``[t, H, W, 3]``, as they are finished; arguments as for `generate`."""
        return without_autocast(frames_of(self.generate(*args, **kwargs)), self.device.type)

    def generate(self, *args, **kwargs) -> Iterator[Finished]:
        """Plans, then yields what is finished, window by window."""
        raise NotImplementedError

    # Prompts

    def _encode_prompts(
        self, prompt, negative_prompt, prompt_embeds, negative_prompt_embeds, guidance_scale: float, clip_fea=None
    ) -> Prompts:
        asked = {"prompt": (prompt, prompt_embeds)}
        if is_guided(guidance_scale):
            asked["negative_prompt"] = negative_prompt or "", negative_prompt_embeds
        positive, *others = self._embeds(asked)
        batch = len(positive)
        negative = None
        if others:
            (negative,) = others
            if len(negative) not in (1, batch):
                raise ValueError(f"negative_prompt: {len(negative)} of them, but {batch} prompts")
            negative = self._context(negative.expand(batch, -1, -1), clip_fea)
        return Prompts(batch, self._context(positive, clip_fea), negative, guidance_scale)

    def _embeds(self, asked: dict[str, tuple]) -> list[torch.Tensor]:
        """Of each name's (text, embeds) the latter if given; the text encoder is brought once for all texts."""
        texts = {name: text for name, (text, embeds) in asked.items() if embeds is None}
        for name, text in texts.items():
            if text is None:
                raise ValueError(f"{name}: give it as text, or as {name}_embeds")
            if self.text_encoder is None:
                raise ValueError(f"{name}: this pipeline has no text encoder; give {name}_embeds")
        encoded = {}
        if texts:
            with self.at_work(self.text_encoder):
                encoded = {k: self.text_encoder.encode(text, self.transformer.text_len) for k, text in texts.items()}
        return [encoded.get(name, embeds).to(self.device) for name, (_, embeds) in asked.items()]

    def _context(self, embeds: torch.Tensor, clip_fea: torch.Tensor | None) -> PromptContext:
        if clip_fea is not None:
            clip_fea = clip_fea.to(self.device).expand(len(embeds), -1, -1)
        return self.transformer.prepare_context(embeds, clip_fea, self.at_work)

    # One window

    def _initial_latents(
        self, prompts: Prompts, window: WindowPlan, height: int, width: int, noise: Noise, latents=None
    ) -> torch.Tensor:
        """The noise a window starts from ``[B, 16, F, H/8, W/8]``: the caller's `latents` or drawn."""
        shape = latent_shape(prompts.batch, self.vae.z_dim, window.latents - window.end_latents, height, width)
        if latents is None:
            latents = noise.latents(window.window.index, shape)
        if tuple(latents.shape) != shape:
            raise ValueError(f"latents {list(latents.shape)}: must be {list(shape)} for these settings")
        latents = latents.to(self.device, torch.float32, copy=True)  # given ones will be written into it
        if window.end_latents:  # they are given, so what stands there now does not matter
            latents = torch.cat([latents, latents.new_zeros(*latents.shape[:2], 1, *latents.shape[3:])], dim=2)
        return latents

    def _denoise_window(
        self, plan: Plan, window: WindowPlan, prompts: Prompts, latents, *, fps=24, show=None, callback=None, **kw
    ) -> torch.Tensor:
        """Runs the rows of one window; `kw` goes to the transformer (y, causal_block_size)."""

        if self.transformer.inject_sample_info:
            kw["fps"] = torch.full((prompts.batch,), 0 if fps == 16 else 1, device=self.device)
        around_branch = self._cached(window, show, **kw)

        def branch(context: PromptContext | None):
            if context is None:
                return None
            around = around_branch()
            return lambda x, t: self.transformer(x, t, context, around=around, sequence=self.sequence, **kw)

        latents = self.agree(latents)
        velocity = Guided(branch(prompts.positive), branch(prompts.negative), prompts.guidance_scale, self.branches)
        solver = FlowUniPCMultistepScheduler()
        solver.set_timesteps(plan.num_inference_steps, shift=plan.shift)
        rows = window.schedule.timesteps
        with self.progress(window.window.index, len(plan.windows), len(rows)) as advance:

            def on_row(row: int, latents: torch.Tensor) -> torch.Tensor:
                advance()
                if callback is None:
                    return latents
                shown = {"latents": latents.clone()}  # the solver goes on in place
                replaced = callback(self, row, torch.from_numpy(rows[row]), shown)
                return (replaced or {}).get("latents", latents)

            done = denoise(velocity, solver, window.schedule, latents, show, on_row, kw.get("causal_block_size"))
        if not done.isfinite().all():  # it would be a black picture
            way_out = "try --dtype float32, or less --guidance_scale"
            raise FloatingPointError(f"window {window.window.index + 1}: what the model makes is not finite; {way_out}")
        return done

    def _cached(
        self, window: WindowPlan, show, fps: torch.Tensor | None = None, causal_block_size: int | None = None, **_others
    ) -> Callable[[], Around | None]:
        """Makes what wraps the blocks in one branch of a window."""
        if self.cache is None:
            return lambda: None
        rows = model_rows(window.schedule, self.device, show, causal_block_size)
        embed = partial(self.transformer.embed_time, fps=None if fps is None else fps[:1])
        with self.at_work(self.transformer.time_layers):  # before the first forward, which brings them otherwise
            return self.cache.window(rows, embed, self.agree)

    @torch.no_grad()
    def _decode_on(self, new: torch.Tensor, skip: int, history: LatentHistory) -> Iterator[torch.Tensor]:
        """The frames of latents ``[B, 16, F, H/8, W/8]`` that follow on those decoded before, from `skip` on."""
        with self.at_work(self.vae, history.memory):
            for piece in self.vae.decode_stream(new, history.memory):
                shown = piece[:, :, skip:]
                skip = max(0, skip - piece.shape[2])
                if shown.shape[2]:
                    yield shown
        history.add(new)

    @torch.no_grad()
    def _decode(self, window: WindowPlan, latents: torch.Tensor, history: History) -> Iterator[torch.Tensor]:
        """The new frames of a window's latents ``[B, 16, F, H/8, W/8]``, piece by piece; `history` sees them pass."""
        skip = window.window.history_frames
        with self.at_work(self.vae):
            for piece in self.vae.decode_stream(latents):
                new = piece[:, :, skip:]
                skip = max(0, skip - piece.shape[2])
                if new.shape[2]:
                    history.add(new)
                    yield new


def collect(finished: Iterator[Finished], output_type: str):
    """A whole video in the form that the caller asked for.

    Returns:
        "np": a list of uint8 ``[F, H, W, 3]``, one for each prompt; "pt": float32 ``[B, F, 3, H, W]`` in 0..1;
        "latent": float32 ``[B, 16, F, H/8, W/8]``.
    """
    if output_type == "latent":
        return torch.cat([part.latents for part in finished if part.latents is not None], dim=2)
    pieces = (piece for part in finished for piece in part.pieces)
    if output_type == "pt":
        return torch.cat([piece.cpu() for piece in pieces], dim=2).transpose(1, 2).add(1).div_(2)
    return list(np.concatenate([to_frames(piece) for piece in pieces], axis=1))


def without_autocast(items: Iterator, device_type: str) -> Iterator:
    """The same items, made without autocast, which stays as it is for whoever takes them."""
    nothing = object()
    while True:
        with torch.autocast(device_type, enabled=False):
            item = next(items, nothing)
        if item is nothing:
            return
        yield item


def frames_of(finished: Iterator[Finished]) -> Iterator[np.ndarray]:
    """uint8 ``[t, H, W, 3]`` of the first prompt's video, as soon as they are decoded."""
    for part in finished:
        for piece in part.pieces:
            yield to_frames(piece[:1])[0]


def choose_noise(generator: torch.Generator | None, seed: int | None, agree=itself, device=None) -> Noise:
    """The caller's generator, or noise from a seed; from one that torch's own generator draws if there is neither.

    Args:
        agree: makes a tensor on `device` the same on all ranks.
    """
    if generator is not None:
        if isinstance(generator, (list, tuple)):
            raise ValueError("generator: one for all videos of a call")
        return GeneratorNoise(generator)
    if seed is None:
        seed = int(agree(torch.randint(2**63 - 1, (1,)).to(device)))
    return NoiseSource(seed)
