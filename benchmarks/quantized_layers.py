"""Quantised linear layers of the 14B's size on a GPU: time to expand, time and memory of a forward pass.

``python benchmarks/quantized_layers.py`` also compares every format's expansion with the CPU's, which tests compare
with the gguf package: the numbers must be the same.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer.modules.quantized import BYTE_FORMATS, GGUF, Quantized, QuantizedLinear

ROWS, COLUMNS, TOKENS = 13824, 5120, 32_760  # ffn.0 of the 14B, on 81 frames of 480 x 832
REPEATS = 10


def random_matrix(form: str, rows: int, columns: int, device: str = "cpu") -> Quantized:
    """Random bytes; in byte formats with a scale for each row."""
    if form in GGUF:
        numbers, size, _ = GGUF[form]
        return Quantized(
            form, torch.randint(0, 100, (rows, columns // numbers * size), dtype=torch.uint8, device=device)
        )
    stored = torch.randint(0, 100, (rows, columns), dtype=torch.uint8, device=device)
    return Quantized(form, stored, torch.rand(rows, 1, device=device))


def milliseconds(run) -> float:
    run()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(REPEATS):
        run()
    torch.cuda.synchronize()
    return 1000 * (time.perf_counter() - began) / REPEATS


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(torch.cuda.get_device_name(), torch.__version__)
    x = torch.randn(1, TOKENS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    dense = torch.randn(ROWS, COLUMNS, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        print(f"dense: forward {milliseconds(lambda: F.linear(x, dense)):.2f} ms")
        for form in [*BYTE_FORMATS, *GGUF]:
            small = random_matrix(form, 512, 1024)
            ours, cpus = small.to("cuda").dequantize(torch.float32).cpu(), small.dequantize(torch.float32)
            same = torch.equal(ours.nan_to_num(), cpus.nan_to_num())
            layer = QuantizedLinear(random_matrix(form, ROWS, COLUMNS, "cuda"), None, torch.bfloat16)
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            size = layer.dequantize().nbytes
            peak = (torch.cuda.max_memory_allocated() - before) / size
            expand, forward = milliseconds(layer.dequantize), milliseconds(lambda layer=layer: layer(x))
            print(
                f"{form:14} {'as' if same else 'NOT as'} on the CPU; expand {expand:6.2f} ms, "
                f"forward {forward:6.2f} ms, "
                f"peak while expanding {peak:.2f} of the layer",
                flush=True,
            )


if __name__ == "__main__":
    main()
