"""Whatever is in a file's place: the run ends soon, in little memory and in one line, or does not need the file."""

import os
import shutil
from pathlib import Path

import cases
import mutate
import oracle
import pytest

DF = ("--device", "cpu", *cases.SMALL)
FLAGS = {
    "--story": ("story.json", "story.yaml"),
    "--replay": ("made.json", "made.mp4"),
    "--lora": ("lora.safetensors", "lora.pth", "peft/adapter_model.safetensors", "peft/adapter_config.json"),
    "--dit_path": ("dit.safetensors", "dit.gguf", "dit.pth"),
    "--vae_path": ("vae.safetensors", "vae.pth", "vae/config.json"),
    "--text_encoder_path": ("t5.safetensors", "t5.gguf", "t5.pth"),
    "--image": ("pic.png",),
    "--end_image": ("pic.jpg",),
    "--video_path": ("clip.mp4",),
    "--model_id": ("model",),
}
MODELS = {
    "df": (
        *("config.json", "model.safetensors", "model.safetensors.index.json", "Wan2.1_VAE.pth"),
        *("models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json"),
    ),
    "spiece": ("google/umt5-xxl/spiece.model",),
    "i2v": ("models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth",),
    "diffusers": (
        *("transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"),
        *("transformer/diffusion_pytorch_model.safetensors.index.json", "vae/diffusion_pytorch_model.safetensors"),
        *("text_encoder/config.json", "text_encoder/model.safetensors", "tokenizer/tokenizer.json", "teacache.json"),
    ),
    "diffusers-i2v": ("image_encoder/config.json", "image_encoder/model.safetensors"),
}
# Files without which a run can do as well; some of them it does not read at all.
OPTIONAL = {
    "df": ("google/umt5-xxl/special_tokens_map.json", "google/umt5-xxl/added_tokens.json", "model_index.json"),
    "diffusers": (
        *("model_index.json", "scheduler/scheduler_config.json", "text_encoder/generation_config.json"),
        *("tokenizer/tokenizer_config.json", "tokenizer/chat_template.jinja", "tokenizer/special_tokens_map.json"),
    ),
    "diffusers-i2v": ("image_processor/preprocessor_config.json",),
}
# Where nothing, or what is passed over, is as good as no file.
DISPENSABLE = ("df/model.safetensors.index.json", "diffusers/teacache.json", "peft/adapter_config.json")
DISPENSABLE += ("diffusers/transformer/diffusion_pytorch_model.safetensors.index.json",)
ROWS = [
    *((f"{flag} {name}", name, True) for flag, names in FLAGS.items() for name in names),
    *((f"{model}/{name}", f"{model}/{name}", True) for model, names in MODELS.items() for name in names),
    *((f"{model}/{name}", f"{model}/{name}", False) for model, names in OPTIONAL.items() for name in names),
]
QUICK = {
    "--story story.json": "pipe",
    "--replay made.json": "endless",
    "--lora lora.pth": "large",
    "--dit_path dit.gguf": "unreadable",
    "--image pic.png": "large",
    "--video_path clip.mp4": "loop",
    "df/config.json": "deep object",
    "diffusers/teacache.json": "deep",
    "diffusers/tokenizer/tokenizer_config.json": "large",
    "diffusers/vae/config.json": "number",
}


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "template"
    cases.write_files(folder / "inputs")
    peft = folder / "inputs" / "peft"
    peft.mkdir()
    shutil.copy(folder / "inputs" / "lora.safetensors", peft / "adapter_model.safetensors")
    return folder


def command(row: str, path: str) -> cases.Case:
    """The command that reads a file of the inputs."""
    flag, _, name = row.rpartition(" ")
    if flag in ("--lora", "--vae_path") and "/" in name:
        path = path.split("/")[0]
    if flag:
        tiny = () if flag == "--model_id" else cases.TINY
        return cases.Case("parse_diffusion_forcing", [*tiny, *DF, flag, f"../inputs/{path}"], makes=True)
    model = path.split("/")[0]
    given = ["--model_id", f"../inputs/{model}", *DF]
    if path.endswith("teacache.json"):
        given.append("--teacache")
    if model.endswith("i2v"):
        return cases.Case("parse_generate", [*given, "--image", "../inputs/pic.png"], makes=True)
    return cases.Case("parse_diffusion_forcing", given, makes=True)


def check(template: Path, box: Path, row: str, name: str, kind: str, needed: bool) -> None:
    inputs = cases.lay_out(template, box)
    path = inputs / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    mutate.IN_PLACE[kind](path)
    ended = oracle.run(command(row, name), box)
    assert not ended.wrong, (kind, ended.wrong, ended.err)
    if needed and not (name in DISPENSABLE and not path.is_file()):
        assert ended.code == 2, (kind, ended.code, ended.err)
    shutil.rmtree(box)


@pytest.mark.parametrize(("row", "kind"), QUICK.items())
def test_some_files(template, tmp_path, row, kind):
    check(template, tmp_path / "box", *next(found for found in ROWS if found[0] == row)[:2], kind, True)


@pytest.mark.slow
@pytest.mark.parametrize(("row", "name", "needed"), ROWS, ids=[row for row, _, _ in ROWS])
def test_every_kind_of_file(template, tmp_path, row, name, needed):
    for number, kind in enumerate(mutate.IN_PLACE):
        check(template, tmp_path / str(number), row, name, kind, needed)


def test_the_tables_name_files_that_are_there(template):
    """Or tests of a file that no run reads would pass."""
    made = {str(path.relative_to(template / "inputs")) for path in (template / "inputs").rglob("*")}
    named = {f"{model}/{name}" for model, names in MODELS.items() for name in names} - set(DISPENSABLE)
    assert named <= made and os.path.isdir(template / "inputs" / "spiece")
