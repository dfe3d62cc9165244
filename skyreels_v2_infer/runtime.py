"""Device and precision, offloading of weights, and sources of noise."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

import numpy as np
import torch
from torch import nn

from skyreels_v2_infer.errors import InputError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LARGE = 2**26  # bytes of weights; see `Offload.at_work_by_layers`
OFFLOAD_DIFFUSERS = "0.41"  # up to 0.36 a layer that runs before the first forward is never moved to the device again


@dataclass(frozen=True)
class Placement:
    """The device that computes and the dtype of the transformer's and the encoders' weights."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None) -> "Placement":
        """A placement; device None: CUDA if available, else the CPU; dtype None: the device's `usual_dtype`.

        Raises:
            InputError: the device cannot be used on this machine.
        """
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

    def free_gib(self) -> float | None:
        """Memory of the GPU that is free now, in GiB; None for other devices."""
        return torch.cuda.mem_get_info(self.device)[0] / 2**30 if self.device.type == "cuda" else None

    def with_dtype(self, dtype: str) -> "Placement":
        return Placement(self.device, DTYPES[dtype])

    def check_ring(self) -> None:
        """Raises an `InputError` if ring attention has no kernel for this device and dtype."""
        if self.device.type == "cpu":
            return
        if self.dtype == torch.float32:
            raise InputError("dtype", "float32", "a ring of GPUs needs bfloat16 or float16")
        if not has_bfloat16(self.device):
            raise InputError("use_usp", None, "a ring needs GPUs of compute capability 8.0 or above; try --offload")

    def make_current(self) -> None:
        """Makes this GPU torch's current one: new streams and memory statistics refer to that."""
        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)


def usual_dtype(device: torch.device) -> torch.dtype:
    """float32 on a CPU; elsewhere bfloat16, or float16 on GPUs without fast bfloat16."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if has_bfloat16(device) else torch.float16


def has_bfloat16(device: torch.device) -> bool:
    """Whether attention in bfloat16 has a kernel that does not store the matrix of all pairs of tokens.

    On CUDA from compute capability 8.0; `torch.cuda.is_bf16_supported` counts emulation as well.
    """
    if device.type != "cuda" or torch.version.hip:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def check_offload(device: torch.device) -> None:
    """Raises an `InputError` if a package that `Offload` needs is missing or too old; a CPU needs none."""
    from packaging.version import Version

    if device.type == "cpu":
        return
    try:
        version("accelerate")  # not among diffusers' requirements, but its hooks need it
        fits = Version(version("diffusers")) >= Version(OFFLOAD_DIFFUSERS)
    except PackageNotFoundError:
        fits = False
    if not fits:
        need = f"needs accelerate and diffusers {OFFLOAD_DIFFUSERS} or later"
        raise InputError("offload", None, f"{need}: pip install -U diffusers accelerate")


def layers_of(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that `Offload.at_work_by_layers` brings to the device one by one."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        elif next(child.children(), None) is not None:
            yield from layers_of(child)
        elif sum(tensor.nbytes for tensor in (*child.parameters(), *child.buffers())) >= LARGE:
            yield child


class Offload:
    """Keeps weights in host memory and moves those that compute to the device. Does nothing on a CPU.

    Args:
        device: where modules compute.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self._at_rest: list[tuple[torch.Tensor, torch.Tensor]] = []  # with `by_blocks`, and the copies in host memory

    @contextmanager
    def at_work(self, module: nn.Module, memory: dict[nn.Module, torch.Tensor] | None = None) -> Iterator[None]:
        """Context manager that keeps the module's weights on the device. They are constant, so none is copied back.

        Args:
            memory: features that the module caches between calls; moved to the device and, updated, back to the host.
        """
        if self.device.type == "cpu":
            yield
            return
        memory = {} if memory is None else memory
        with self._there([*module.parameters(), *module.buffers()]):
            try:
                memory.update({layer: past.to(self.device) for layer, past in memory.items()})
                yield
            finally:
                memory.update({layer: past.to(torch.device("cpu")) for layer, past in memory.items()})

    @contextmanager
    def at_work_by_layers(self, module: nn.Module) -> Iterator[None]:
        """As `at_work` for a module of many layers, each of which is on the device only while it computes.

        Layers are the items of lists of modules, and large modules without children, such as embeddings. All others
        stay on the device. Every forward pass transfers all layers again, and the device waits for them.
        """
        if self.device.type == "cpu":
            yield
            return
        layers = list(dict.fromkeys(layers_of(module)))  # tied ones once
        apart = {id(tensor) for layer in layers for tensor in (*layer.parameters(), *layer.buffers())}
        others = [tensor for tensor in (*module.parameters(), *module.buffers()) if id(tensor) not in apart]
        with ExitStack() as hooks, self._there(others):
            for layer in layers:
                there = ExitStack()

                def bring(layer, args, there=there):
                    there.enter_context(self._there([*layer.parameters(), *layer.buffers()]))

                def leave(layer, args, output, there=there):
                    there.close()

                hooks.callback(layer.register_forward_pre_hook(bring).remove)
                hooks.callback(layer.register_forward_hook(leave, always_call=True).remove)
            yield

    @contextmanager
    def _there(self, tensors: list[torch.Tensor]) -> Iterator[None]:
        """Context manager that keeps tensors on the device, without a copy back."""
        at_rest = [tensor.data for tensor in tensors]
        try:
            for tensor in tensors:
                tensor.data = tensor.data.to(self.device)
            yield
        finally:
            for tensor, data in zip(tensors, at_rest, strict=True):
                tensor.data = data

    def by_blocks(self, model: nn.Module) -> None:
        """Makes the model's forward keep one block on the device at a time and transfer the next one meanwhile.

        Raises:
            InputError: a package is missing, see `check_offload`.
        """
        check_offload(self.device)
        if self.device.type == "cpu":
            return
        from diffusers.hooks import apply_group_offloading

        # diffusers creates its stream on the current GPU, which may be another one.
        current = nullcontext() if self.device.index is None else torch.cuda.device(self.device)
        # With `record_stream` the host would not wait for a block before freeing it: it would run far ahead of the GPU,
        # and every block that it has queued by then holds memory of its own.
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
        self._at_rest = [(tensor, tensor.data) for tensor in (*model.parameters(), *model.buffers())]

    def settle(self) -> None:
        """Brings back the block that `by_blocks` has transferred ahead; before weights are written to.

        The first block is transferred when a forward pass begins. If a cache then skips the blocks, it stays on the
        device, and what is written there is lost with the next transfer.
        """
        for tensor, data in self._at_rest:
            tensor.data = data


class Noise(Protocol):
    """Source of noise for the pipelines: float32 tensors of `shape`, on any device."""

    def latents(self, window: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Initial latents of a window."""

    def history(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise added to the history in a row of a window."""

    def step(self, window: int, row: int, shape: tuple[int, ...]) -> torch.Tensor:
        """Noise that a stochastic solver adds in a row of a window."""


class NoiseSource:
    """Noise that is a function of (seed, window, purpose, row).

    Drawn on the CPU, so that it depends neither on the device nor on the number of ranks; a window's noise can be drawn
    without that of earlier windows.

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
    """Noise from a caller's generator, in the order of the calls, on the generator's device."""

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
