"""Prompts to embeddings, against transformers' own encoder padded to full length."""

import json
import shutil
from functools import cache

import pytest
import small_checkpoints as small
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.modules import get_text_encoder, image_encoder, text_encoder
from skyreels_v2_infer.modules.text_encoder import clean

SENTENCE = "a swan and the cat on water, 7 of them in the wind"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    return {"original": small.write_original(root / "o"), "diffusers": small.write_diffusers(root / "d")}


@pytest.fixture(scope="module")
def encoders(folders):
    return {k: get_text_encoder(path, device="cpu", weight_dtype=torch.float32) for k, path in folders.items()}


@pytest.fixture(scope="module")
def encoder(encoders):
    return encoders["original"]


@cache
def whole_model():
    return small.transformers_text_encoder()


def reference(tokenizer, prompts: list[str], text_len: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The published way: pad to text_len, encode everything, zero what is padding -> (embeddings, tokens of each)."""
    tokens = tokenizer(prompts, padding="max_length", truncation=True, max_length=text_len, return_tensors="pt")
    with torch.no_grad():
        embeddings = whole_model()(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return embeddings * tokens.attention_mask.unsqueeze(-1), tokens.attention_mask.sum(1)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).norm() / theirs.norm()).item()


@pytest.mark.parametrize("layout", ("original", "diffusers"))
@pytest.mark.parametrize("text_len", (1, 7, 64, 512))
@pytest.mark.parametrize("repeats", (0, 1, 3, 40))
def test_equals_the_padded_reference(encoders, layout, text_len, repeats):
    encoder = encoders[layout]
    prompts = [" ".join([SENTENCE] * repeats), "cat"]
    theirs, lengths = reference(encoder.tokenizer, prompts, text_len)
    ours = encoder.encode(prompts, text_len)
    assert ours.shape == (2, text_len, small.TEXT_DIM) and ours.dtype == torch.float32
    assert relative_error(ours, theirs) <= 1e-5
    for row, length in zip(ours, lengths, strict=True):
        assert row[:length].abs().sum(-1).min() > 0 and not row[length:].any()


@pytest.mark.parametrize("words", range(24))
def test_every_length(encoder, words):
    prompt = " ".join(["cat"] * words)
    theirs, _ = reference(encoder.tokenizer, [prompt], 32)
    assert relative_error(encoder.encode(prompt, 32), theirs) <= 1e-5


def test_computes_the_tokens_of_the_longest_prompt_only(encoder):
    seen = []
    hook = encoder.model.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0].shape))
    encoder.encode(["cat", SENTENCE])
    hook.remove()
    longest = len(encoder.tokenizer(SENTENCE).input_ids)
    assert seen == [(2, longest)] and longest < 64


@pytest.mark.parametrize("prompt", ["a cat 🦊", "天", "a cat </s> swan", "a ▁ cat", "a swan"])
def test_tokens_are_those_of_the_file(encoders, folders, prompt):
    """Also where a letter is unknown, which is 3 in umT5 and 2 in the class that its configuration names."""
    places = {"original": "google/umt5-xxl", "diffusers": "tokenizer"}
    for layout, encoder in encoders.items():
        file = Tokenizer.from_file(str(folders[layout] / places[layout] / "tokenizer.json"))
        assert encoder.tokenizer(prompt).input_ids == file.encode(prompt).ids
    assert not {"🦊", "天"} & set(prompt) or 3 in encoders["original"].tokenizer(prompt).input_ids


def test_a_prompt_does_not_depend_on_its_batch(encoder):
    alone, together = encoder.encode("a cat"), encoder.encode([SENTENCE, "a cat"])
    assert relative_error(together[1:], alone) <= 1e-6
    assert relative_error(together[:1], alone) > 0.1


def test_a_long_prompt_is_cut_to_its_first_tokens(encoder):
    long = " ".join([SENTENCE] * 50)
    assert torch.equal(encoder.encode(long, 16), encoder.encode(long + " and the cat", 16))
    assert encoder.encode(long, 16).abs().sum(-1).min() > 0


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("  a \t swan\n\non  water ", "a swan on water"),
        ("Tom &amp;amp; Jerry", "Tom & Jerry"),
        ("<i>Tom &amp;amp; Jerry", "<i>Tom & Jerry"),  # ftfy leaves entities alone where there are tags
        ("&amp;lt;b&amp;gt;", "<b>"),
        ("a&nbsp;b", "a b"),
        ("Ã©tÃ©", "été"),
        ("“quoted”", '"quoted"'),
        ("天鹅", "天鹅"),
        ("", ""),
    ],
)
def test_cleaning(raw, cleaned):
    assert clean(raw) == cleaned


def test_prompts_are_cleaned(encoder):
    assert torch.equal(encoder.encode("a&amp;nbsp;cat \n on  water"), encoder.encode("a cat on water"))


def test_moves_and_casts(folders, encoder):
    half = get_text_encoder(folders["original"], device="cpu", weight_dtype=torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16} and half.dtype == torch.bfloat16
    assert half.device == torch.device("cpu") and half.to("cpu") is half and not half.training
    assert not any(tensor.is_meta for tensor in [*half.parameters(), *half.buffers()])
    ours = half.encode(SENTENCE)
    assert ours.dtype == torch.bfloat16 and not ours.requires_grad
    assert relative_error(ours.float(), encoder.encode(SENTENCE)) < 0.03


@pytest.mark.parametrize("names", (["shared.weight"], ["encoder.embed_tokens.weight"], None))
def test_the_tied_embedding_under_either_name_or_both(folders, tmp_path, encoder, names):
    folder = shutil.copytree(folders["diffusers"], tmp_path / "d")
    file = folder / "text_encoder" / "model.safetensors"
    weights = load_file(file)
    embedding = weights.pop("shared.weight")
    names = names or ["shared.weight", "encoder.embed_tokens.weight"]
    save_file(weights | {name: embedding.clone() for name in names}, file)
    ours = get_text_encoder(folder, device="cpu", weight_dtype=torch.float32)
    assert torch.equal(ours.encode("a cat"), encoder.encode("a cat"))
    save_file(weights, file)
    with pytest.raises(InputError, match=r"1 missing \(shared.weight\)"):
        get_text_encoder(folder, device="cpu")


def test_tokenizers_that_cannot_be_used(folders, tmp_path):
    folder = shutil.copytree(folders["original"], tmp_path / "o")
    file = folder / "google" / "umt5-xxl" / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] += [[f"▁word{i}", -9.0] for i in range(20)]
    file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="belongs to another text encoder") as caught:
        get_text_encoder(folder, device="cpu")
    assert "\n" not in str(caught.value)
    file.write_text("{")
    with pytest.raises(InputError, match=r"umt5-xxl/tokenizer\.json cannot be read") as caught:
        get_text_encoder(folder, device="cpu")
    assert "\n" not in str(caught.value)


def test_config_that_cannot_be_used(folders, tmp_path):
    folder = shutil.copytree(folders["diffusers"], tmp_path / "d")
    file = folder / "text_encoder" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"d_ff": 64}))
    with pytest.raises(InputError, match="6 of another shape"):
        get_text_encoder(folder, device="cpu")
    file.write_text(json.dumps(config | {"num_layers": "two"}))
    with pytest.raises(InputError, match=r"no text encoder can be built from its config.json") as caught:
        get_text_encoder(folder, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("_attn_implementation", "someone/kernel"), ("attn_implementation", "someone/kernel"), ("num_labels", 10**9)],
)
def test_the_config_of_an_encoder_chooses_no_kernel_and_takes_no_memory(key, value):
    """transformers would fetch code from the hub, and make a table of labels."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    assert image_encoder.empty_model(sizes | {key: value}) is not None
    sizes = {"vocab_size": 8, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    assert text_encoder.empty_model(sizes | {key: value}) is not None


@pytest.mark.parametrize(("buckets", "farthest"), [(32, 0), (32, 8), (32, -1), (2, 128), (0, 128)])
def test_buckets_that_no_distance_fits_are_refused(buckets, farthest):
    sizes = {"vocab_size": 8, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    with pytest.raises(ValueError, match="relative_attention_max_distance above a quarter"):
        text_encoder.empty_model(
            sizes | {"relative_attention_num_buckets": buckets, "relative_attention_max_distance": farthest}
        )
