"""The base of the three pipelines: the model's parts and where they are, and the ways to get a video."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from skyreels_v2_infer import embedded
from skyreels_v2_infer.console import say
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules.compiled import compile_blocks, is_compiled, restore_blocks
from skyreels_v2_infer.modules.linear import quantize_blocks
from skyreels_v2_infer.modules.vae import compile_norms
from skyreels_v2_infer.pipelines.conditioning import to_frames
from skyreels_v2_infer.pipelines.execution import Execution
from skyreels_v2_infer.pipelines.history import Codec, Finished, Resume
from skyreels_v2_infer.pipelines.hooks import Hooks, Ranks
from skyreels_v2_infer.plan.cost import Holding
from skyreels_v2_infer.plan.inputs import Inputs
from skyreels_v2_infer.plan.plan import Plan
from skyreels_v2_infer.plan.sharing import choose_layout
from skyreels_v2_infer.plan.work import work_of
from skyreels_v2_infer.progress import VideoProgress
from skyreels_v2_infer.runtime import Offload, Placement

if TYPE_CHECKING:
    from skyreels_v2_infer.weights.lora import Applied

OUTPUT_TYPES = ("np", "pt", "latent")


def always_there(module: torch.nn.Module, memory: dict | None = None) -> AbstractContextManager[None]:
    """`Offload.at_work` for modules that stay on their device."""
    return nullcontext()


def holding_of(offload: bool | Holding) -> Holding:
    if isinstance(offload, Holding):
        return offload
    return Holding("blocks" if offload else "none")


class VideoPipeline:
    """Holds a model's parts and executes plans; subclasses make plans from the published arguments.

    Args:
        model_path: folder or hub id with all parts; ``tiny``: the embedded model.
        dit_path: folder or hub id of the transformer, if it is elsewhere; `model_path` then needs none.
        device: None: CUDA if available, else the CPU. A `Placement` decides both device and dtype.
        weight_dtype: of the transformer and the encoders; None: see `usual_dtype`.
        use_usp: share the work with the other ranks of torch.distributed's default group, which has to exist.
        offload: keep weights in host memory, and on the device only the module that computes, of the transformer one
            block and the next one in transfer. A `Holding` chooses in detail, and whether the VAE computes in tiles.
        hooks: default for `execute`.
        vae_dtype: of the VAE.
        loras: files and strengths, see `load_lora`.
        loras_change: whether strengths will be set again, window by window.
        compiled: compile the transformer's blocks, see `modules.compiled`, and on a GPU the VAE's norms.
        quantize: "fp8" or "int8", see `modules.linear.quantize_blocks`. dequantize: see `get_transformer`.

    Attributes:
        loras: `weights.lora.Applied`; None: no LoRA.
        device: where latents are and modules compute.
        at_work: context manager that keeps a module, and optionally its cached features, on the device while it
            computes, see `Offload`. Encoders are on the device only inside it; with `offload` all parts are.
    """

    takes_image_channels = False

    def __init__(
        self,
        model_path,
        dit_path=None,
        device=None,
        weight_dtype=None,
        use_usp: bool = False,
        offload: bool | Holding = False,
        hooks: Hooks = Hooks(),  # noqa: B008  frozen
        vae_dtype: torch.dtype = torch.float32,
        loras: Sequence[tuple[Path | str, float]] = (),
        loras_change: bool = False,
        compiled: bool = False,
        quantize: str | None = None,
        dequantize: bool = False,
    ):
        from skyreels_v2_infer.modules import get_image_encoder, get_text_encoder, get_transformer, get_vae
        from skyreels_v2_infer.weights.layouts import PARTS
        from skyreels_v2_infer.weights.locate import Checkpoint

        if model_path == embedded.NAME:
            model_path = embedded.folder(self.takes_image_channels)
        dit_path = None if dit_path == embedded.NAME else dit_path
        place = device if isinstance(device, Placement) else Placement.choose(device, weight_dtype)
        host = torch.device("cpu")
        holding = holding_of(offload)
        home = place.device if holding.offload == "none" else host
        if dit_path in (None, model_path):
            checkpoint = dit = Checkpoint.open(model_path)
        else:
            others = [p for p in PARTS if p != "transformer" and (p != "image_encoder" or self.takes_image_channels)]
            checkpoint, dit = Checkpoint.open(model_path, tuple(others)), Checkpoint.open(dit_path, ("transformer",))
        if dit.is_image_to_video != self.takes_image_channels:
            raise InputError("model_id", dit.folder, self._needs("i2v" if dit.is_image_to_video else "t2v"))
        # LoRAs are added to weights before these are rounded, in host memory, since the device may have no room for
        # weights that are not. Strengths that will be set again are added in the forward pass, to rounded layers.
        late = quantize if loras and not loras_change else None
        self._set_parts(
            get_transformer(dit, home, place.dtype, None, dequantize, quantize, place.device)
            if late is None
            else get_transformer(dit, host, place.dtype, dequantize=True),
            get_vae(checkpoint, home, vae_dtype),
            get_text_encoder(checkpoint, host, place.dtype),
            get_image_encoder(checkpoint, host, place.dtype) if self.takes_image_channels else None,
            place.device,
        )
        if loras:
            self._apply_loras([(Path(path), strength) for path, strength in loras], loras_change)
            if late is not None:
                quantize_blocks(self.transformer, late, place.device)
                self.transformer.to(home)
        if compiled:
            compile_blocks(self.transformer, say)
            if place.device.type == "cuda":
                compile_norms(self.vae, say)
        self._hold(holding)
        self.hooks = hooks
        if use_usp:
            self.hooks = replace(hooks, ranks=self._all_ranks())

    @classmethod
    def from_parts(
        cls,
        transformer,
        vae,
        text_encoder=None,
        image_encoder=None,
        hooks: Hooks = Hooks(),  # noqa: B008  frozen
        device: torch.device | None = None,
        offload: bool | Holding = False,
    ):
        """A pipeline of loaded parts.

        Args:
            transformer: a `WanModel`.
            vae: a `WanVAE`.
            text_encoder: a `TextEncoder`; not needed with `prompt_embeds`.
            image_encoder: an `ImageEncoder`; for image-to-video models.
            hooks: default for `execute`.
            device: what computes. None: parts stay on their devices and compute there.
            offload: as in the constructor, for parts in host memory; only with a device.
        """
        pipeline = cls.__new__(cls)
        pipeline._set_parts(transformer, vae, text_encoder, image_encoder, device or transformer.device)
        if device is not None:
            pipeline._hold(holding_of(offload))
        pipeline.hooks = hooks
        return pipeline

    def _set_parts(self, transformer, vae, text_encoder, image_encoder, device: torch.device) -> None:
        if (transformer.model_type == "i2v") != self.takes_image_channels:
            raise ValueError(f"transformer: {self._needs(transformer.model_type)}")
        self.transformer, self.vae = transformer, vae
        self.text_encoder, self.image_encoder = text_encoder, image_encoder
        self.device = device
        self.at_work: Callable[..., AbstractContextManager] = always_there
        self.loras: Applied | None = None
        self._holding, self._by_layers, self._offloading = Holding(), always_there, Offload(device)

    def _hold(self, holding: Holding) -> None:
        """From now on parts are on the device only when `holding` says so."""
        self._holding = holding
        self.at_work, self._by_layers = self._offloading.at_work, self._offloading.at_work_by_layers
        if holding.offload == "blocks":
            self._offloading.by_blocks(self.transformer)

    def set_progress_bar_config(self, disable: bool = False, **_tqdm) -> None:
        """As diffusers' pipelines have it: whether calls show no bars. Other settings of bars are ignored."""
        self.hooks = replace(self.hooks, progress=partial(VideoProgress, shown=not disable))

    def encoder_at_work(self, encoder: torch.nn.Module) -> AbstractContextManager[None]:
        """`at_work` for the text or the image encoder."""
        return self._by_layers(encoder) if self._holding.layers else self.at_work(encoder)

    def transformer_at_work(self) -> AbstractContextManager[None]:
        """For the rows of a window: `at_work` for the transformer, unless it is there or comes block by block."""
        return self.at_work(self.transformer) if self._holding.offload == "parts" else nullcontext()

    @property
    def codec(self) -> Codec:
        """The VAE, which is on the device while it computes."""
        return Codec(self.vae, self.at_work, self.device, self._holding.tiled)

    def load_lora(self, path: str | Path, strength: float = 1.0):
        """Applies a LoRA to the transformer, in addition to earlier ones -> report of matched and skipped tensors.

        Args:
            path: file or folder in any of the usual key styles.
            strength: any finite number.

        Raises:
            InputError: it does not fit the model.
            ValueError: the transformer is offloaded; pass `loras` to the constructor. Or an error interrupted a change
                of the strengths of earlier ones.
        """
        if self._holding.offload == "blocks":
            raise ValueError("load_lora: the transformer is offloaded; give loras to the constructor")
        before = []
        if self.loras is not None:
            if self.loras.strengths is None:
                raise ValueError("load_lora: an error interrupted a change of strengths; make the pipeline anew")
            before = list(zip((lora.path for lora in self.loras.loras), self.loras.strengths, strict=True))
            self.loras.remove()
        compiled = is_compiled(self.transformer)
        if compiled:  # or the compiled code would not know of changes that are added in the forward pass
            restore_blocks(self.transformer)
            torch._dynamo.reset()
        self._apply_loras([*before, (Path(path), strength)], changeable=True)
        if compiled:
            compile_blocks(self.transformer, say)
        return self.loras.reports[-1]

    def _apply_loras(self, loras: list[tuple[Path, float]], changeable: bool) -> None:
        from skyreels_v2_infer.weights.lora import apply
        from skyreels_v2_infer.weights.lora_file import LoraFile

        opened = [(LoraFile.open(path), strength) for path, strength in loras]
        self.loras = apply(self.transformer, opened, changeable=changeable)

    def set_strengths(self, strengths: Sequence[float]) -> None:
        """Sets the strengths of the LoRAs, in their order; a pipeline made with `loras_change`."""
        if self.loras.strengths != list(strengths):
            self._offloading.settle()
            self.loras.set_strengths(strengths)

    def _all_ranks(self) -> Ranks:
        from skyreels_v2_infer.distributed.xdit_context_parallel import share

        size = torch.distributed.get_world_size()
        # Whether a frame's tokens can be split depends on the video's size, and is checked by `SharedSequence.split`.
        return Ranks.of(share(choose_layout(size, self.transformer.num_heads, size, guided=True)))

    @classmethod
    def _needs(cls, model_type: str) -> str:
        wanted = "an image-to-video" if cls.takes_image_channels else "a text-to-video or diffusion-forcing"
        return f"{cls.__name__} needs {wanted} model, this one is of type {model_type}"

    # Three ways to get a video: whole, frame by frame, or window by window with latents

    def __call__(self, *args, output_type: str = "np", **kwargs):
        """Makes the whole video; arguments as for `generate`, results as for `collect`."""
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type {output_type!r}: must be one of {', '.join(OUTPUT_TYPES)}")
        # Published code wraps the call in autocast, which would lower the precision of what has to be float32, such as
        # the VAE.
        with torch.autocast(self.device.type, enabled=False):
            return collect(self.generate(*args, **kwargs), output_type)

    def stream(self, *args, **kwargs) -> Iterator[np.ndarray]:
        """Yields the frames of one video, uint8 ``[t, H, W, 3]``, once decoded; arguments as for `generate`."""
        return without_autocast(frames_of(self.generate(*args, **kwargs)), self.device.type)

    def generate(self, *args, **kwargs) -> Iterator[Finished]:
        """Makes a plan from the published arguments and executes it; yields one `Finished` per window."""
        raise NotImplementedError

    # The execution of a plan

    @torch.no_grad()
    def execute(
        self, plan: Plan, inputs: Inputs, resume: Resume | None = None, hooks: Hooks | None = None
    ) -> Iterator[Finished]:
        """Makes the windows of a plan and yields each once it is denoised.

        The next window starts after all frames of the one before are decoded, by the caller or else here.

        Args:
            plan: its seed must be set, unless `inputs` has a generator.
            inputs: the images and frames that the plan uses.
            resume: state of an interrupted run; earlier windows are skipped.
            hooks: None: the pipeline's.

        Raises:
            FloatingPointError: the model's output contains NaN or Inf.
        """
        hooks, resume = hooks or self.hooks, resume or Resume()
        progress = hooks.progress()
        with progress.video(work_of(plan), resume.window):
            yield from Execution(self, plan, inputs, resume, hooks, progress).windows()

    def image_channels(self, plan: Plan, inputs: Inputs) -> torch.Tensor | None:
        """Mask and image latents ``[1, 20, F, H/8, W/8]``, inputs of image-to-video models; None for other models."""
        return None

    def image_features(self, inputs: Inputs) -> torch.Tensor | None:
        """Features ``[1, tokens, img_dim]`` for an image-to-video model's cross attention; None for other models."""
        return None


def collect(finished: Iterator[Finished], output_type: str):
    """A whole video in the requested form.

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
    """Yields the items, each computed without autocast; the consumer's own autocast stays active."""
    nothing = object()
    while True:
        with torch.autocast(device_type, enabled=False):
            item = next(items, nothing)
        if item is nothing:
            return
        yield item


def frames_of(finished: Iterator[Finished]) -> Iterator[np.ndarray]:
    """Yields frames of the first prompt's video, uint8 ``[t, H, W, 3]``, once they are decoded."""
    for part in finished:
        for piece in part.pieces:
            yield to_frames(piece[:1])[0]
