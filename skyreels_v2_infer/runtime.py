"""Where a job runs, in what precision, what of it is on the device, and where its randomness comes from."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import numpy as np
import torch
from torch import nn

from skyreels_v2_infer.errors import InputError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
OFFLOAD_DIFFUSERS = "0.41"  # up to 0.36 a layer that runs before the first forward never comes to the device again


@dataclass(frozen=True)
class Placement:
    """The device that computes and the dtype of the transformer's and the encoders' weights."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> "Placement":
        """Fills in what is None: CUDA if there is such a GPU, else the CPU; and the device's `usual_dtype`."""
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            chosen = torch.device(device)
            torch.empty(0, device=chosen)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError("device", device, f"cannot be used on this machine ({first_line(error, 120)})") from None
        if dtype is None:
            dtype = usual_dtype(chosen)
        return cls(chosen, DTYPES[dtype] if isinstance(dtype, str) else dtype)

    def with_dtype(self, dtype: str) -> "Placement":
        return Placement(self.device, DTYPES[dtype])

    def check_ring(self) -> None:
        """Raises an `InputError` where a ring of GPUs has no attention kernel."""
        if self.device.type == "cpu":
            return
        if self.dtype == torch.float32:
            raise InputError("dtype", "float32", "a ring of GPUs needs bfloat16 or float16")
        if not has_bfloat16(self.device):
            raise InputError("use_usp", None, "a ring needs GPUs of compute capability 8.0 or above; try --offload")

    def make_current(self) -> None:
        """New streams, and what is said of memory, are of the current GPU."""
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)


def usual_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; elsewhere bfloat16, or float16 on GPUs that are too old for it."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if has_bfloat16(device) else torch.float16


def has_bfloat16(device: torch.device) -> bool:
    """Whether attention in bfloat16 has a kernel that needs no memory for all pairs of tokens.

    On CUDA that is from compute capability 8.0 on; `torch.cuda.is_bf16_supported` counts emulation as well.
    """
    if device.type != "cuda" or torch.version.hip:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def check_offload(device: torch.device) -> None:
    """Raises an `InputError` if `Offload` lacks what it needs on a device: on a CPU nothing."""
    from packaging.version import Version

    if device.type == "cpu":
        return
    try:
        version("accelerate")  # which diffusers does not ask for, but its hooks call
        fits = Version(version("diffusers")) >= Version(OFFLOAD_DIFFUSERS)
    except PackageNotFoundError:
        fits = False
    if not fits:
        need = f"needs accelerate and diffusers {OFFLOAD_DIFFUSERS} or later"
        raise InputError("offload", None, f"{need}: pip install -U diffusers accelerate")


class Offload:
    """Weights stay in the host's memory, and only those that compute now are on the device.

    On a CPU there is nothing to do, and nothing is done.

    Args:
        device: what computes.
    """

    def __init__(self, device: torch.device):
        self.device = device

    @contextmanager
    def at_work(self, module: nn.Module, memory: dict[nn.Module, torch.Tensor] | None = None) -> Iterator[None]:
        """The module's weights are on the device inside the block. They are constant, so nothing is copied back.

        Args:
            memory: what the module remembers from one call to the next. It is brought too, and put back as it then is.
        """
        if self.device.type == "cpu":
            yield
            return
        memory = {} if memory is None else memory
        tensors = [*module.parameters(), *module.buffers()]
        at_rest = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.device)
            memory.update({layer: past.to(self.device) for layer, past in memory.items()})
            yield
        finally:
            for tensor, data in zip(tensors, at_rest, strict=True):
                tensor.data = data
            memory.update({layer: past.to(torch.device("cpu")) for layer, past in memory.items()})

    def by_blocks(self, model: nn.Module) -> None:
        """From now on the model's forward has one block on the device at a time, and the next one on its way.

        Raises:
            InputError: diffusers, which does it, or what it needs is not installed.
        """
        check_offload(self.device)
        if self.device.type == "cpu":
            return
        from diffusers.hooks import apply_group_offloading

        # Its stream is made on the current GPU, which need not be this one.
        current = nullcontext() if self.device.index is None else torch.cuda.device(self.device)
        # With `record_stream` the host would not wait for a block before it frees it: it runs far ahead of the GPU, and
        # each of the blocks it has queued by then holds memory of its own.
        with current:
            apply_group_offloading(
                model,
                onload_device=self.device,
                offload_device=torch.device("cpu"),
                offload_type="block_level",
                num_blocks_per_group=1,
                use_stream=self.device.type == "cuda",
                record_stream=False,
            )


class Noise(Protocol):
    """What the pipelines draw from; both draws are float32 on the CPU or on the device of the caller's choice."""

    def latents(self, window: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The noise that a window starts from."""

    def history(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The noise that a row puts on the history."""

    def step(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        """The noise that a stochastic solver adds in a row."""


class NoiseSource:
    """Noise that is a function of (seed, window, purpose, row) alone.

    It is drawn on the CPU, so it depends neither on the device nor on the number of ranks, and a window's noise can be
    drawn without that of the windows before it.

    Args:
        seed: 0 or above.
    """

    LATENTS, HISTORY, STEP = 0, 1, 2

    def __init__(self, seed: int):
        if seed < 0:
            raise ValueError(f"seed {seed}: must be at least 0")
        self.seed = seed

    def _draw(self, key: tuple[int, ...], shape: tuple[int, ...]) -> torch.Tensor:
        state = np.random.SeedSequence(entropy=self.seed, spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.randn(shape, generator=torch.Generator().manual_seed(int(state)))

    def latents(self, window: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self._draw((window, self.LATENTS), shape)

    def history(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self._draw((window, self.HISTORY, row), shape)

    def step(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self._draw((window, self.STEP, row), shape)


class GeneratorNoise:
    """Noise from a caller's generator, in the order in which it is asked for."""

    def __init__(self, generator: torch.Generator):
        self.generator = generator

    def _draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def latents(self, window: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self._draw(shape)

    def history(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self._draw(shape)

    def step(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        return self._draw(shape)
