"""What a run would compute on here, found without torch."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import sys
from contextlib import suppress
from dataclasses import dataclass

LIBRARY = {"win32": "nvcuda.dll"}
CAPABILITY = (75, 76)  # CUDA's numbers of the attributes: compute capability, major and minor


@dataclass(frozen=True)
class Machine:
    """Device and precision that a run chooses here.

    Attributes:
        device: as for --device. dtype: of the weights.
        name: of the GPU. gib: its memory. Both are None where they are not known.
    """

    device: str
    dtype: str
    name: str | None = None
    gib: float | None = None

    def words(self) -> str:
        about = "" if self.name is None else f" ({self.name}, {self.gib:.0f} GiB)"
        return f"{self.device}{about}, {self.dtype}"


def this_machine(device: str | None) -> Machine:
    """The device and precision of a run with --device `device`, as `runtime.Placement` chooses them."""
    kind, _, index = (device or "cuda").partition(":")
    if kind == "cuda":
        gpu = gpu_here(int(index or 0))
        if gpu is not None and not torch_is_for_cpu():
            return gpu
        return Machine("cpu", "float32") if device is None else Machine(device, "bfloat16")
    return Machine(kind, "float32" if kind == "cpu" else "bfloat16")


def torch_is_for_cpu() -> bool:
    from importlib import metadata  # slow to import

    with suppress(metadata.PackageNotFoundError):
        return "+cpu" in metadata.version("torch")
    return False


def gpu_here(index: int) -> Machine | None:
    """A GPU that CUDA_VISIBLE_DEVICES shows, from the driver's own library; None: there is none."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return None
    try:
        cuda = ctypes.CDLL(LIBRARY.get(sys.platform, "libcuda.so.1"))
    except OSError:
        return None
    device, total = ctypes.c_int(), ctypes.c_size_t()
    name, numbers = ctypes.create_string_buffer(100), [ctypes.c_int() for _ in CAPABILITY]
    failed = cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index)
    failed = failed or cuda.cuDeviceGetName(name, len(name), device)
    failed = failed or cuda.cuDeviceTotalMem_v2(ctypes.byref(total), device)
    for number, attribute in zip(numbers, CAPABILITY, strict=True):
        failed = failed or cuda.cuDeviceGetAttribute(ctypes.byref(number), attribute, device)
    if failed:
        return None
    dtype = "bfloat16" if numbers[0].value >= 8 else "float16"
    where = "cuda" if index == 0 else f"cuda:{index}"
    return Machine(where, dtype, name.value.decode(errors="replace"), total.value / 2**30)
