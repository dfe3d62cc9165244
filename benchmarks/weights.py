"""The embedded model from weights in other forms: what the judge of `training` reads, and how near the videos are.

``python benchmarks/weights.py`` writes the transformer of ``tiny`` as single files (float16 with ComfyUI's prefix,
float8 with scales, GGUF), loads each as a user's file would be and makes the same videos with each. Needs gguf.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))

from skyreels_v2_infer import embedded
from skyreels_v2_infer.modules import get_text_encoder, get_transformer, get_vae
from skyreels_v2_infer.pipelines import Text2VideoPipeline
from skyreels_v2_infer.weights.locate import Checkpoint
from training import evaluate, world

FLOAT8 = torch.float8_e4m3fn
GGUF_FORMS = ("Q8_0", "Q5_0", "Q4_0")


def is_block_linear(name: str, tensor: torch.Tensor) -> bool:
    return name.startswith("blocks.") and tensor.ndim == 2


def write_single_file(path: Path, weights: dict) -> None:
    save_file({f"model.diffusion_model.{name}": tensor.half() for name, tensor in weights.items()}, path)


def write_float8(path: Path, weights: dict) -> None:
    tensors = {"scaled_fp8": torch.zeros(0, dtype=FLOAT8)}
    for name, tensor in weights.items():
        tensors[name] = tensor.half()
        if is_block_linear(name, tensor):
            scale = tensor.abs().max() / torch.finfo(FLOAT8).max
            tensors[name] = (tensor / scale).to(FLOAT8)
            tensors[name.replace(".weight", ".scale_weight")] = scale
    save_file(tensors, path)


def write_gguf(path: Path, weights: dict, form: str) -> None:
    writer = gguf.GGUFWriter(path, "wan")
    for name, tensor in weights.items():
        kind = gguf.GGMLQuantizationType[
            form if is_block_linear(name, tensor) else "F16" if tensor.ndim == 2 else "F32"
        ]
        writer.add_tensor(name, gguf.quants.quantize(tensor.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--frames", type=int, default=33)
    args = parser.parse_args()
    checkpoint = Checkpoint.open(embedded.folder(image_to_video=False))
    transformer = get_transformer(checkpoint, "cpu", torch.float32)
    parts = get_vae(checkpoint, "cpu"), get_text_encoder(checkpoint, "cpu", torch.float32)
    weights = transformer.state_dict()
    clips = world.core_prompts(args.prompts, args.frames, "test")
    settings = evaluate.settings(num_frames=args.frames)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_single_file(folder / "single.safetensors", weights)
        write_float8(folder / "float8_scaled.safetensors", weights)
        for form in GGUF_FORMS:
            write_gguf(folder / f"{form}.gguf", weights, form)
        files = [folder / "single.safetensors", folder / "float8_scaled.safetensors"]
        files += [folder / f"{form}.gguf" for form in GGUF_FORMS]
        table, first = {}, None
        for file in [None, *files]:
            if file is not None:
                transformer = get_transformer(file, "cpu", torch.float32, config=checkpoint.transformer_config)
            pipeline = Text2VideoPipeline.from_parts(transformer, *parts)
            made = list(evaluate.in_batches(pipeline, clips, **settings))
            first = first or made
            near = [evaluate.psnr(a, b) for (_, a), (_, b) in zip(made, first, strict=True)]
            size = {} if file is None else {"MB": round(file.stat().st_size / 1e6, 2)}
            found = evaluate.rates(iter(made))
            read = {name: found[name] for name in ("colour", "shape", "direction")}
            psnr = (
                {} if file is None else {"PSNR, median": round(float(np.median(near)), 1), "least": round(min(near), 1)}
            )
            table["folder" if file is None else file.stem] = size | read | psnr
            print(evaluate.markdown(table), flush=True)


if __name__ == "__main__":
    main()
