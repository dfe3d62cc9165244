"""Encoders and VAE from single files: every naming, precision and tokenizer that such files come with."""

import io
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable

import gguf
import numpy as np
import pytest
import sentencepiece
import small_checkpoints as small
import torch
from safetensors.torch import save_file
from script_runs import FORCING, run
from sentencepiece import sentencepiece_model_pb2

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import get_image_encoder, get_text_encoder, get_vae
from skyreels_v2_infer.modules.quantized import QuantizedEmbedding, QuantizedLayer, QuantizedLinear
from skyreels_v2_infer.weights import vocabulary
from skyreels_v2_infer.weights.gguf_header import gguf_header

TEXTS = ["a swan on the water", "the cat", "éß ... Qx  and 7 of them", ""]


def refusal(call, *arguments, **keywords) -> str:
    with pytest.raises(InputError) as caught:
        call(*arguments, **keywords)
    line = str(caught.value)
    assert "\n" not in line and line.startswith("--") and len(line) < 900
    return line


def text(path, dtype=torch.float32, **keywords):
    return get_text_encoder(path, "cpu", dtype, **keywords)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small.write_original(tmp_path_factory.mktemp("model"), "i2v")


@pytest.fixture(scope="module")
def encoder(folder):
    return text(folder)


def encoded(encoder) -> torch.Tensor:
    for tensor in [*encoder.parameters(), *encoder.buffers()]:
        tensor.data = tensor.data.clone()  # products depend on the alignment of their factors
    return encoder.encode(TEXTS, 24)


# umT5


def theirs() -> dict[str, torch.Tensor]:
    """The text encoder in transformers' names."""
    return {n: t.clone() for n, t in small.transformers_text_encoder().state_dict().items() if "embed_tokens" not in n}


def llama_names(tensors: dict) -> dict:
    rows = (
        (r"^shared\.", "token_embd."),
        (r"^encoder\.final_layer_norm\.", "enc.output_norm."),
        (r"^encoder\.block\.(\d+)\.layer\.0\.layer_norm\.", r"enc.blk.\1.attn_norm."),
        (r"^encoder\.block\.(\d+)\.layer\.1\.layer_norm\.", r"enc.blk.\1.ffn_norm."),
        (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.([qkvo])\.", r"enc.blk.\1.attn_\2."),
        (r"^encoder\.block\.(\d+)\.layer\.0\.SelfAttention\.relative_attention_bias\.", r"enc.blk.\1.attn_rel_b."),
        (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_0\.", r"enc.blk.\1.ffn_gate."),
        (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wi_1\.", r"enc.blk.\1.ffn_up."),
        (r"^encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.wo\.", r"enc.blk.\1.ffn_down."),
    )
    for pattern, new in rows:
        tensors = {re.sub(pattern, new, name): tensor for name, tensor in tensors.items()}
    known = {template for names in gguf.TENSOR_NAMES.values() for template in [names]}
    assert all(re.sub(r"\.\d+\.", ".{bid}.", n).removesuffix(".weight") in known for n in tensors)
    return tensors


@pytest.mark.parametrize("names", ("original", "transformers"))
@pytest.mark.parametrize("suffix", (".safetensors", ".pth"))
def test_text_encoders_in_both_namings(tmp_path, folder, encoder, names, suffix):
    tensors = small.random_weights(small.text_encoder_shapes(), 0) if names == "original" else theirs()
    path = tmp_path / f"t5{suffix}"
    save_file(tensors, path) if suffix == ".safetensors" else torch.save(tensors, path)
    words = folder / "google" / "umt5-xxl"
    assert torch.equal(encoded(text(path, tokenizer=words)), encoded(encoder))
    assert "without a tokenizer" in refusal(text, path)
    assert "holds no tokenizer" in refusal(text, path, tokenizer=tmp_path)
    shutil.copytree(words, tmp_path / "google" / "umt5-xxl")
    assert torch.equal(encoded(text(path)), encoded(encoder))


def test_scaled_float8_text_encoder_with_its_tokenizer_inside(tmp_path, folder, pieces):
    model, words = pieces
    tensors, meant = {"spiece_model": torch.frombuffer(bytearray(model), dtype=torch.uint8)}, {}
    tensors["scaled_fp8"] = torch.zeros(1, dtype=torch.float8_e4m3fn)
    for name, tensor in theirs().items():
        tensors[name] = meant[name] = tensor
        if tensor.ndim == 2 and "relative" not in name and name != "shared.weight":
            scale = tensor.abs().max() / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".scale_weight")] = scale
            meant[name] = tensors[name].float() * scale
    save_file(tensors, tmp_path / "t5.safetensors")
    save_file(meant, tmp_path / "dense.safetensors")
    (tmp_path / "tokenizer").mkdir()
    kept = text(tmp_path / "t5.safetensors")
    assert sum(isinstance(module, QuantizedLinear) for module in kept.modules()) == 7 * small.TEXT_LAYERS
    kept.tokenizer.save_pretrained(tmp_path / "tokenizer")
    assert torch.equal(encoded(kept), encoded(text(tmp_path / "dense.safetensors")))
    half = text(tmp_path / "t5.safetensors", torch.float16)  # whose last product is made in float32
    assert half.encode(TEXTS, 24).dtype == half.dtype == torch.float16 and half.device.type == "cpu"
    assert (half.encode(TEXTS, 24).float() - encoded(kept)).abs().max() < 0.02 * encoded(kept).abs().max()
    assert [kept.tokenizer(t).input_ids for t in TEXTS] == [[*words.encode(t), words.eos_id()] for t in TEXTS]


@pytest.mark.parametrize("form", ("Q8_0", "F16"))
def test_gguf_text_encoder(tmp_path, folder, form, pieces):
    _, words = pieces
    kind = gguf.GGMLQuantizationType[form]
    writer = gguf.GGUFWriter(tmp_path / "t5.gguf", "t5encoder")
    types = [words.is_unknown(i) * 2 or words.is_control(i) * 3 or 1 for i in range(len(words))]
    writer.add_tokenizer_model("t5")
    writer.add_token_list([words.id_to_piece(i) for i in range(len(words))])
    writer.add_token_scores([words.get_score(i) for i in range(len(words))])
    writer.add_token_types(types)
    writer.add_precompiled_charsmap(b"")
    meant = {}
    for (name, tensor), old in zip(llama_names(theirs()).items(), theirs(), strict=True):
        quantised = tensor.ndim == 2 and "rel_b" not in name and tensor.shape[1] % 32 == 0
        data = gguf.quants.quantize(tensor.numpy(), kind if quantised else gguf.GGMLQuantizationType.F32)
        writer.add_tensor(name, data, raw_dtype=kind if quantised else None)
        meant[old] = torch.from_numpy(gguf.quants.dequantize(data, kind).copy()) if quantised else tensor
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    kept = text(tmp_path / "t5.gguf")
    assert isinstance(kept.model.shared, QuantizedEmbedding) == (form == "Q8_0")
    assert kept.model.encoder.embed_tokens is kept.model.shared
    kept.tokenizer.save_pretrained(tmp_path / "tokenizer")
    save_file(meant, tmp_path / "dense.safetensors")
    assert torch.equal(encoded(kept), encoded(text(tmp_path / "dense.safetensors")))
    assert torch.equal(encoded(text(tmp_path / "t5.gguf", dequantize=True)), encoded(kept))
    assert [kept.tokenizer(t).input_ids for t in TEXTS] == [[*words.encode(t), words.eos_id()] for t in TEXTS]


# Tokenizers


def trained(**more) -> bytes:
    """A sentencepiece model like umT5's: 0 pads, 1 ends, 3 is unknown; no larger than the small text encoder knows."""
    rng = random.Random(0)
    words = ["swan", "cat", "water", "on", "the", "a", "of", "in", "and", "running", "them"]
    lines = [" ".join(rng.choices(words, k=8)) for _ in range(300)]
    model = io.BytesIO()
    given = {"model_type": "unigram", "normalization_rule_name": "nmt_nfkc"} | more
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=60,
        hard_vocab_limit=False,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        minloglevel=2,
        **given,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def pieces():
    """(`trained`, sentencepiece's processor of it)."""
    model = trained()
    return model, sentencepiece.SentencePieceProcessor(model_proto=model)


def with_kinds(model: bytes, words: Callable[[list[str]], list[str]], kind: int, score: float) -> bytes:
    """A sentencepiece model, some of whose normal words are of another kind."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    chosen = words([piece.piece for piece in proto.pieces if piece.type == vocabulary.NORMAL])
    for piece in proto.pieces:
        if piece.piece in chosen:
            piece.type, piece.score = kind, score
    return proto.SerializeToString()


KINDS = {
    "user-defined words in training": lambda model: trained(user_defined_symbols=["at", "<x>", "é€"]),
    "user-defined words": lambda model: with_kinds(model, lambda words: words[2::4], vocabulary.USER_DEFINED, -9.0),
    "improbable unused words": lambda model: with_kinds(model, lambda words: words[1::3], vocabulary.UNUSED, -90.0),
    "probable unused words": lambda model: with_kinds(model, lambda words: words[:9], vocabulary.UNUSED, 0.0),
}


@pytest.mark.parametrize("how", KINDS)
def test_words_of_other_kinds_are_found_as_by_sentencepiece(pieces, how):
    model = KINDS[how](pieces[0])
    theirs, ours = (
        sentencepiece.SentencePieceProcessor(model_proto=model),
        vocabulary.for_transformers(*vocabulary.from_sentencepiece(model)),
    )
    rng = random.Random(1)
    parts = [*"swancter ofthidg ", "<x>", "at", "swan", "water", "é€", " ", " the "]
    for _ in range(300):
        sample = "".join(rng.choices(parts, k=rng.randrange(25))).strip()
        assert ours(sample).input_ids == [*theirs.encode(sample), 1], sample


@pytest.mark.parametrize(
    "more",
    [
        {"model_type": "bpe"},
        {"treat_whitespace_as_suffix": True},
        {"add_dummy_prefix": False},
        {"user_defined_symbols": ["ﬁ"]},
        {"user_defined_symbols": ["x" * 200]},
    ],
)
def test_what_another_tokenizer_would_do_is_refused(more):
    with pytest.raises(ValueError, match=r"^its? "):
        vocabulary.from_sentencepiece(trained(**more))


def test_spaces_that_are_kept_and_an_end_that_is_unused_are_refused(pieces):
    proto = sentencepiece_model_pb2.ModelProto.FromString(pieces[0])
    proto.normalizer_spec.escape_whitespaces = False
    with pytest.raises(ValueError, match="its words are not marked"):
        vocabulary.from_sentencepiece(proto.SerializeToString())
    proto.normalizer_spec.escape_whitespaces, proto.pieces[1].type = True, vocabulary.UNUSED
    with pytest.raises(ValueError, match="it lacks </s>"):
        vocabulary.from_sentencepiece(proto.SerializeToString())
    with pytest.raises(ValueError, match="its words are not marked"):
        about = {"model": "t5", "tokens": ["<unk>"], "add_space_prefix": False}
        vocabulary.from_gguf({f"tokenizer.ggml.{name}": value for name, value in about.items()})


def test_a_sentencepiece_model_becomes_the_same_tokenizer(pieces):
    model, words = pieces
    ours = vocabulary.for_transformers(*vocabulary.from_sentencepiece(model))
    rng = random.Random(1)
    alphabet = "swancter ofthidg  ﬁＡé'\u3000,"
    texts = [*TEXTS, *("".join(rng.choices(alphabet, k=rng.randrange(40))) for _ in range(300))]
    for sample in texts:
        sample = sample.strip()
        assert ours(sample).input_ids == [*words.encode(sample), 1], sample
    assert (ours.pad_token_id, ours.eos_token_id, ours.unk_token_id) == (0, 1, 3) and len(ours) == len(words)


@pytest.mark.parametrize("damage", ("cut", "text", "empty", "random", "huge"))
def test_a_damaged_sentencepiece_model(tmp_path, pieces, damage):
    model = {
        "cut": pieces[0][:-7],
        "text": b"<html>404</html>",
        "empty": b"",
        "random": np.random.default_rng(0).bytes(400),
        "huge": b"\x0a" + b"\xff" * 9 + b"\x01",
    }[damage]
    tensors = theirs() | {"spiece_model": torch.frombuffer(bytearray(model or b"\0"), dtype=torch.uint8)}
    save_file(tensors, tmp_path / "t5.safetensors")
    assert "tokenizer" in refusal(text, tmp_path / "t5.safetensors")


SPOILED = {
    "cut": lambda file, model: file.write_bytes(model[:-7]),
    "half": lambda file, model: file.write_bytes(model[: len(model) // 2]),
    "text": lambda file, model: file.write_bytes(b"<html>404</html>"),
    "empty": lambda file, model: file.write_bytes(b""),
    "random": lambda file, model: file.write_bytes(np.random.default_rng(0).bytes(4000)),
    "no end": lambda file, model: file.write_bytes(b"\x0a" + b"\xff" * 9 + b"\x01"),
    "pipe": lambda file, model: os.mkfifo(file),
    "device": lambda file, model: file.symlink_to("/dev/zero"),
    "folder": lambda file, model: file.mkdir(),
    "large": lambda file, model: (file.touch(), os.truncate(file, 3 * 2**30)),
    "many": lambda file, model: file.write_bytes(b"\x0a\0" * 2**23),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_damaged_spiece_model_is_one_line(tmp_path, pieces, how):
    """It is read here, not by sentencepiece, whose C++ could end the process."""
    folder = small.write_original(tmp_path / "m")
    place = folder / "google" / "umt5-xxl"
    (place / "tokenizer.json").unlink()
    SPOILED[how](place / "spiece.model", pieces[0])
    began = time.monotonic()
    assert "umt5-xxl/" in refusal(get_text_encoder, folder, "cpu") and time.monotonic() - began < 20
    given = ("--model_id", folder, "--prompt", "a swan", "--negative_prompt", "", "--device", "cpu")
    if how in ("cut", "pipe"):
        ended = run(FORCING, *given, cwd=tmp_path)
        assert ended.code == 2 and len(ended.lines) == 1 and "umt5-xxl/" in ended.err


def test_a_table_in_a_spiece_model_on_which_the_library_panics(tmp_path, pieces):
    folder = small.write_original(tmp_path / "m")
    place = folder / "google" / "umt5-xxl"
    (place / "tokenizer.json").unlink()
    table = b"\x90\1\0\0" + b"\xff" * 400
    names = b"\x12" + bytes([len(table) & 127 | 128, len(table) >> 7]) + table
    pieces = pieces[0] + b"\x1a" + bytes([len(names) & 127 | 128, len(names) >> 7]) + names
    (place / "spiece.model").write_bytes(pieces)
    ended = run(FORCING, "--model_id", folder, "--prompt", "a swan", "--device", "cpu", cwd=tmp_path)
    assert ended.code == 2 and len(ended.lines) == 1 and "spiece.model" in ended.err


def test_a_table_on_which_the_library_panics_is_not_asked_about_user_defined_words(pieces, capfd):
    proto = sentencepiece_model_pb2.ModelProto.FromString(pieces[0])
    proto.pieces[9].type = vocabulary.USER_DEFINED
    proto.normalizer_spec.precompiled_charsmap = b"\x90\1\0\0" + b"\xff" * 400
    vocabulary.from_sentencepiece(proto.SerializeToString())
    assert capfd.readouterr().err == ""


def test_a_folder_with_a_spiece_model_alone(tmp_path, pieces):
    folder = small.write_original(tmp_path / "m")
    place = folder / "google" / "umt5-xxl"
    (place / "tokenizer.json").unlink()
    (place / "spiece.model").write_bytes(pieces[0])
    words = get_text_encoder(folder, "cpu").tokenizer
    assert [words(text).input_ids for text in TEXTS] == [[*pieces[1].encode(text), 1] for text in TEXTS]


def test_a_large_vocabulary_is_read_quickly(tmp_path):
    """The gguf package takes seconds and half a gigabyte for it."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "t5encoder")
    writer.add_token_list([f"w{i}" for i in range(256_384)])
    writer.add_token_scores([float(-i) for i in range(256_384)])
    writer.add_tensor("a", np.ones((2, 3), np.float32))
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    began = time.process_time()
    header = gguf_header(tmp_path / "a.gguf", "a")
    assert time.process_time() - began < 2
    assert header.metadata["tokenizer.ggml.tokens"][256_383] == "w256383"
    assert header.metadata["tokenizer.ggml.scores"][9] == -9 and header.entries["a"].shape == (2, 3)


# CLIP


@pytest.mark.parametrize("names", ("original", "transformers", "bare"))
def test_image_encoders_in_every_naming(tmp_path, folder, names):
    if names == "original":
        tensors = small.random_weights(small.image_encoder_shapes(), 0)
    else:
        tensors = small.transformers_image_encoder(projection=names == "transformers").state_dict()
        tensors = {name.removeprefix("vision_model."): tensor.clone() for name, tensor in tensors.items()}
        if names == "transformers":
            tensors = {n if "projection" in n else f"vision_model.{n}": tensor for n, tensor in tensors.items()}
            tensors["vision_model.embeddings.position_ids"] = torch.arange(257)
    save_file({n: t.contiguous() for n, t in tensors.items()}, tmp_path / "clip.safetensors")
    ours, wanted = (get_image_encoder(p, "cpu", torch.float32) for p in (tmp_path / "clip.safetensors", folder))
    ours, wanted = ours.state_dict(), wanted.state_dict()
    assert ours.keys() == wanted.keys() and all(torch.equal(ours[name], wanted[name]) for name in ours)


def test_a_fused_projection_in_float8(tmp_path):
    tensors, meant = {}, {}
    for name, tensor in small.random_weights(small.image_encoder_shapes(), 0).items():
        tensors[name] = meant[name] = tensor
        if name.endswith("to_qkv.weight"):
            scale = tensor.abs().amax(1, keepdim=True) / 448
            tensors[name] = (tensor / scale).to(torch.float8_e4m3fn)
            tensors[name.replace(".weight", ".weight_scale")] = scale
            meant[name] = tensors[name].float() * scale
    torch.save(tensors, tmp_path / "a.pth")
    torch.save(meant, tmp_path / "b.pth")
    kept, dense = (get_image_encoder(tmp_path / name, "cpu", torch.float32) for name in ("a.pth", "b.pth"))
    assert sum(isinstance(module, QuantizedLayer) for module in kept.modules()) == 3 * (small.CLIP_LAYERS - 1)
    image = torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    assert (kept.encode(image) - dense.encode(image)).abs().max() < 1e-5


# VAE


@pytest.mark.parametrize("prefix", ("", "model.", "vae.", "first_stage_model."))
@pytest.mark.parametrize("names", ("original", "diffusers"))
def test_vae_files(tmp_path, folder, names, prefix):
    tensors = small.random_weights(small.vae_shapes(), 0)
    if names == "diffusers":
        tensors = small.diffusers_vae().state_dict()
    save_file({prefix + n: t.clone() for n, t in tensors.items()}, tmp_path / "vae.safetensors")
    ours, wanted = (get_vae(p, "cpu") for p in (tmp_path / "vae.safetensors", folder))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), wanted.parameters(), strict=True))
    # The config.json of the transformer, which the original layout has in that place, is none of a VAE.
    shutil.copy(folder / "config.json", tmp_path)
    get_vae(tmp_path / "vae.safetensors", "cpu")


def test_the_statistics_of_a_vae_file_come_from_a_config(tmp_path):
    save_file(small.random_weights(small.vae_shapes(), 0), tmp_path / "vae.safetensors")
    mean = [i / 10 for i in range(16)]
    config = {"_class_name": "AutoencoderKLWan", "latents_mean": mean}
    assert get_vae(tmp_path / "vae.safetensors", "cpu", config=config).latents_mean == tuple(mean)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert get_vae(tmp_path / "vae.safetensors", "cpu").latents_mean == tuple(mean)
    std = [1.0] * 16
    for name, bad in (
        ("latents_std", [*std[:-1], 0.0]),
        ("latents_std", [*std[:-1], float("nan")]),
        ("latents_std", [*std[:-1], -1.0]),
        ("latents_mean", [*std[:-1], float("inf")]),
        ("latents_mean", [*std[:-1], "1"]),
        ("latents_mean", 1.0),
        ("latents_mean", {"0": 1.0}),
        ("latents_std", [*std[:-1], 10**400]),
    ):
        assert name in refusal(get_vae, tmp_path / "vae.safetensors", "cpu", config=config | {name: bad})


@pytest.mark.parametrize("value", (float("nan"), float("-inf")))
@pytest.mark.parametrize("name", ("decoder.head.2.bias", "encoder.middle.0.residual.2.weight"))
def test_a_vae_that_is_not_finite(tmp_path, name, value):
    tensors = small.random_weights(small.vae_shapes(), 0)
    tensors[name].view(-1)[-1] = value
    torch.save(tensors, tmp_path / "vae.pth")
    assert name in refusal(get_vae, tmp_path / "vae.pth", "cpu")


def test_the_vae_of_wan22(tmp_path):
    tensors = small.random_weights(small.vae_shapes(), 0)
    tensors["decoder.upsamples.0.upsamples.0.residual.2.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "vae.safetensors")
    assert "Wan 2.2" in refusal(get_vae, tmp_path / "vae.safetensors", "cpu")


# Which argument a message names


def test_messages_name_the_argument_that_a_file_was_given_as(tmp_path, folder, monkeypatch):
    from huggingface_hub import errors

    from skyreels_v2_infer.weights.layouts import Given
    from skyreels_v2_infer.weights.locate import Checkpoint, read_transformer_config
    from skyreels_v2_infer.weights.verify import check_files

    (tmp_path / "a.safetensors").write_bytes(b"12345678")
    for get, argument in ((get_vae, "vae_path"), (get_text_encoder, "text_encoder_path")):
        line = refusal(get, Given(tmp_path / "a.safetensors", argument), "cpu")
        assert line.startswith(f"--{argument} {tmp_path}/a.safetensors: ")
    checkpoint = Checkpoint.open(Given(folder, "dit_path"), ("transformer",))
    (folder / "model.safetensors").rename(folder / "kept")
    (folder / "model.safetensors").write_bytes(b"12345678")
    assert refusal(check_files, checkpoint).startswith("--dit_path ")
    (folder / "kept").rename(folder / "model.safetensors")
    assert "dim" not in refusal(read_transformer_config, Given(tmp_path / "a.safetensors", "dit_path"))

    def fail(*_, **__):
        raise errors.LocalEntryNotFoundError("no")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(OSError, match=r"--vae_path owner/name/vae\.pth: .* cannot be reached"):
        get_vae(Given("owner/name/vae.pth", "vae_path"), "cpu")
