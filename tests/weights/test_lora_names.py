"""What of a LoRA file fits a model: names, reports, and files that are refused."""

import json

import pytest
import torch
from lora_files import IMAGE, LINEAR, RANK, STRENGTH, draw, full_pairs, kohya, lora_in, output, pairs, written_ours
from peers import peer_transformer, small_model
from safetensors.torch import save_file
from torch import nn

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.weights.lora import LoraFile, apply, identity, targets

Q = "blocks.0.self_attn.q"


def test_every_parameter_is_found_by_its_own_name_however_it_is_spelled(tmp_path):
    """Names with `_` are unambiguous; prefixes and diffusers' names touch none of ours."""
    for task in ("t2v", "i2v", "df"):
        model = small_model(task=task if task == "i2v" else "t2v", inject_sample_info=task == "df")
        shapes, packed = targets(model)
        assert not packed
        for prefix, spelling in (("", str), ("diffusion_model.", str), ("lora_unet_", kohya), ("lora_unet__", kohya)):
            named = {}
            for name, shape in shapes.items():
                module, _, leaf = name.rpartition(".")
                ends = {"weight": ".diff", "bias": ".diff_b", "modulation": ".diff_m"}
                named[prefix + spelling(module) + ends[leaf]] = (name, shape)
            lora = LoraFile(tmp_path / "x", {key: shape for key, (_, shape) in named.items()}, None, {})
            report = lora.matched(shapes)
            assert {next(iter(c.tensors.values())): c.parameter for c in report.changes} == {
                key: name for key, (name, _) in named.items()
            }


# Reports


def test_an_image_to_video_file_on_a_diffusion_forcing_model(tmp_path):
    tensors = full_pairs("i2v")
    df = small_model(inject_sample_info=True)
    report = apply(df, [(lora_in(tmp_path, tensors), 1.0)]).reports[0]
    image = [name for name in tensors if "_img" in name or "img_emb" in name]
    (patches,) = (names for reason, names in report.skipped.items() if reason.startswith("shape"))
    (absent,) = (names for reason, names in report.skipped.items() if "image" in reason)
    assert patches == ("patch_embedding.diff",)
    assert sorted(absent) == sorted(image)
    assert len(report.skipped) == 2
    assert report.applied == len(tensors) - len(image) - 1
    line = report.line()
    assert "\n" not in line
    for part in (f"{report.applied} of {len(tensors)}", f"{len(image)} skipped", "1 skipped", "36", "16"):
        assert part in line
    manifest = json.loads(json.dumps(report.as_dict()))
    assert sum(map(len, manifest["skipped"].values())) + manifest["applied"] == manifest["tensors"] == len(tensors)
    assert manifest["parameters"] == report.parameters


def test_a_text_file_on_an_image_to_video_model(tmp_path):
    """Its change of the patches is of the noise, which is the first of the input channels."""
    tensors, model = full_pairs("t2v"), small_model(task="i2v")
    applied = apply(model, [(lora_in(tmp_path, tensors), 1.0)])
    (report,) = applied.reports
    assert not report.skipped
    assert report.partial == {"patch_embedding.weight": "the first 16 of 36 input channels"}
    assert "the first 16 of 36 input channels" in report.line()
    change = model.patch_embedding.weight - small_model(task="i2v").patch_embedding.weight
    assert torch.allclose(change[:, :16], tensors["patch_embedding.diff"], atol=1e-6)
    assert not change[:, 16:].any()


def test_what_has_no_role_or_no_partner_is_reported(tmp_path):
    tensors = full_pairs("t2v") | {
        f"{Q}.weight": draw(64, 64),
        "blocks.0.cross_attn.q.lora_up.weight": draw(64, RANK),
        "blocks.9.self_attn.q.diff_b": draw(64),
        "head.modulation.alpha": torch.tensor(1.0),
        "text_embedding.2.diff_b": draw(63),
    }
    del tensors["blocks.0.cross_attn.q.lora_down.weight"]
    report = LoraFile.matched(lora_in(tmp_path, tensors), targets(small_model())[0])
    assert {name for names in report.skipped.values() for name in names} == {
        f"{Q}.weight",
        "blocks.0.cross_attn.q.lora_up.weight",
        "blocks.9.self_attn.q.diff_b",
        "head.modulation.alpha",
        "text_embedding.2.diff_b",
    }
    assert len(report.skipped) == 4
    assert report.applied + 5 == len(tensors)


# Refusals


def refused(folder, tensors: dict, model: nn.Module | None = None, name: str = "some.safetensors") -> str:
    with pytest.raises(InputError) as error:
        apply(small_model() if model is None else model, [(lora_in(folder, tensors, name), 1.0)])
    assert error.value.name == "lora"
    assert str(folder / name) in str(error.value)
    assert "\n" not in str(error.value)
    return error.value.legal


def test_a_file_of_another_width_is_refused_with_both_widths(tmp_path):
    """Even if some of it fits: the last layer's bias has the same size in all models."""
    small = written_ours(pairs(small_model(head_size=8), LINEAR)) | {"head.head.diff_b": draw(64)}
    legal = refused(tmp_path, small)
    assert "32" in legal
    assert "64" in legal


def test_files_that_are_no_loras_are_refused(tmp_path):
    checkpoint = dict(small_model().state_dict())
    assert "checkpoint" in refused(tmp_path, checkpoint)
    assert "checkpoint" in refused(tmp_path, {f"model.diffusion_model.{n}": t for n, t in checkpoint.items()})
    assert "checkpoint" in refused(tmp_path, dict(peer_transformer(small_model()).state_dict()))
    some = full_pairs("t2v")
    assert "dwpose_embedding" in refused(tmp_path, some | {"dwpose_embedding.0.weight": draw(4, 4)})
    assert "q_loras" in refused(tmp_path, some | {"blocks.0.self_attn.q_loras.down.weight": draw(4, 64)})
    control = {"patch_embedding.lora_A.weight": draw(4, 32 * 4), "patch_embedding.lora_B.weight": draw(64, 4)}
    control["patch_embedding.reshape_weight"] = torch.tensor([64, 32, 1, 2, 2])
    legal = refused(tmp_path, some | control)
    assert "32" in legal
    assert "16" in legal


def test_a_file_of_which_nothing_fits_is_refused(tmp_path):
    legal = refused(tmp_path, {"lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight": draw(8, 4)})
    assert "none of its 1 tensors" in legal
    assert "none of its 2 tensors" in refused(tmp_path, {"encoder.a": draw(2), "encoder.b": draw(2)})
    assert "none of its 0 tensors" in refused(tmp_path, {})
    image_only = written_ours(pairs(small_model(task="i2v"), IMAGE))
    assert "image" in refused(tmp_path, image_only)
    integers = {name: (100 * t).to(torch.int8) for name, t in written_ours(pairs(small_model(), [Q])).items()}
    assert "int8" in refused(tmp_path, integers)


def test_a_reshape_to_the_shape_that_is_there_changes_nothing(tmp_path):
    tensors = written_ours(pairs(small_model(), [Q])) | {f"{Q}.reshape_weight": torch.tensor([64, 64])}
    report = apply(small_model(), [(lora_in(tmp_path, tensors), 1.0)]).reports[0]
    assert not report.skipped


def test_archives(tmp_path):
    """A .pth file, also with its tensors a level down, is what the safetensors file of its tensors is."""
    tensors = full_pairs("t2v")
    expected = small_model()
    apply(expected, [(lora_in(tmp_path, tensors), STRENGTH)])
    for name, content in (("a.pth", tensors), ("b.bin", {"state_dict": tensors})):
        torch.save(content, tmp_path / name)
        model = small_model()
        apply(model, [(LoraFile.open(tmp_path / name), STRENGTH)])
        assert torch.equal(output(model), output(expected))


def test_files_that_cannot_be_read(tmp_path):
    whole = tmp_path / "whole.safetensors"
    save_file(full_pairs("t2v"), whole)
    (tmp_path / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    (tmp_path / "text.safetensors").write_text("version https://git-lfs.github.com/spec/v1")
    (tmp_path / "text.pth").write_text("no archive")
    torch.save({"a": "text"}, tmp_path / "words.pth")
    torch.save({"a": torch.nn.Linear(2, 2)}, tmp_path / "code.pth")
    (tmp_path / "lora.txt").write_text("")
    (tmp_path / "folder").mkdir()
    bad = ["cut.safetensors", "text.safetensors", "text.pth", "words.pth", "code.pth", "lora.txt", "folder", "none"]
    for name in bad:
        with pytest.raises(InputError) as error:
            LoraFile.open(tmp_path / name)
        assert error.value.name == "lora"
        assert name in str(error.value)
        assert "\n" not in str(error.value)


def test_identity_is_content_and_strength(tmp_path):
    made = identity([(tmp_path / "a.safetensors", 1)], lambda path: path.name.upper())
    assert made == [{"file": "a.safetensors", "fingerprint": "A.SAFETENSORS", "strength": 1.0}]
