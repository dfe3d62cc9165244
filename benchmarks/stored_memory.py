"""Memory of the 14B at 540P by the form of its transformer, as ``--dry_run`` estimates it.

``python benchmarks/stored_memory.py`` writes files that have the headers of such weights and no data (sparse, so that
they take no space), and prints a row for each. Needs gguf.
"""

import json
import math
import re
import sys
import tempfile
from pathlib import Path

import gguf
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.modules.transformer import WanModel
from skyreels_v2_infer.plan.models import architecture
from skyreels_v2_infer.run.dry_run import described
from skyreels_v2_infer.weights.headers import SIZES
from skyreels_v2_infer.weights.key_tables import BLOCK_LINEAR

MODEL = "Skywork/SkyReels-V2-DF-14B-540P"
PUBLISHED = Path(__file__).parents[1] / "tests" / "data" / "state_dict_shapes.json"
TEXT_LINEAR = re.compile(r"^blocks\.\d+\.(attn|ffn)\..*weight$")
GGUF_FORMS = ("Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K")


def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in WanModel(**architecture(MODEL)).named_parameters()}


def text_encoder_shapes() -> dict[str, tuple[int, ...]]:
    published = json.loads(PUBLISHED.read_text())["models_t5_umt5-xxl-enc-bf16.pth"]
    layers = {name: re.search(r"<(\d+)>", name) for name in published}
    return {
        re.sub(r"<\d+>", str(i), name): tuple(shape)
        for name, shape in published.items()
        for i in range(int(layers[name][1]) if layers[name] else 1)
    }


def write_safetensors(path: Path, shapes: dict, linear: str, pattern: re.Pattern, scales: bool = False) -> None:
    """A file with the weights that match a pattern in one dtype and all else in bfloat16, without data."""
    header, end = {}, 0
    tensors = {name: (shape, linear if pattern.search(name) else "BF16") for name, shape in shapes.items()}
    if scales:
        for name in [name for name in tensors if pattern.search(name)]:
            tensors[name.replace(".weight", ".scale_weight")] = (), "F32"
    for name, (shape, dtype) in tensors.items():
        first, end = end, end + math.prod(shape) * SIZES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [first, end]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    with path.open("r+b") as file:
        file.truncate(8 + len(text) + end)


def write_gguf(path: Path, form: str) -> None:
    """A file with the blocks' linear weights in one format, other matrices in F16, all else in F32, without data."""
    writer = gguf.GGUFWriter(path, "wan")
    for name, shape in shapes().items():
        kind = gguf.GGMLQuantizationType[form if BLOCK_LINEAR.search(name) else "F16" if len(shape) == 2 else "F32"]
        numbers, size = gguf.GGML_QUANT_SIZES[kind]
        dtype = {"F32": "float32", "F16": "float16"}.get(kind.name, "uint8")
        nbytes = math.prod(shape) // numbers * size
        stored = shape if dtype != "uint8" else (*shape[:-1], shape[-1] // numbers * size)
        writer.add_tensor_info(name, stored, getattr(gguf.gguf_writer.np, dtype)(0).dtype, nbytes, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    (file,) = writer.fout
    start = file.tell() + (-file.tell() % 32)
    *_, last = writer.tensors[0].values()
    total = sum(writer.ggml_pad(info.nbytes, 32) for info in writer.tensors[0].values()) - (-last.nbytes % 32)
    file.truncate(start + total)
    writer.close()


def gib(*flags: object) -> str:
    about = described(parse_diffusion_forcing(["--model_id", MODEL, "--prompt", "a swan", *map(str, flags)]))
    return f"{about['weights_gib'] + about['activations_gib']:.1f}"


def main() -> None:
    print("| transformer | file, GB | peak, GiB | umT5 in float8, too |")
    print("|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        forms = {"bfloat16": "BF16", "float8": "F8_E4M3", "float8 with scales": "F8_E4M3"}
        files = [(form, Path(folder, f"{form}.safetensors")) for form in forms]
        for form, path in files:
            write_safetensors(path, shapes(), forms[form], BLOCK_LINEAR, "scales" in form)
        for form in GGUF_FORMS:
            files.append((f"GGUF {form}", Path(folder, f"{form}.gguf")))
            write_gguf(files[-1][1], form)
        encoder = Path(folder, "umt5.safetensors")
        write_safetensors(encoder, text_encoder_shapes(), "F8_E4M3", TEXT_LINEAR, scales=True)
        rows = [(form, f"{path.stat().st_size / 1e9:.1f}", ("--dit_path", path)) for form, path in files]
        rows += [(f"`--quantize {kind}`", "28.6", ("--quantize", kind)) for kind in ("fp8", "int8")]
        for form, size, flags in rows:
            small = (*flags, "--text_encoder_path", encoder)
            print(f"| {form} | {size} | {gib(*flags)} | {gib(*small)} |")


if __name__ == "__main__":
    main()
