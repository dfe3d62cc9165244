"""Chat models from strangers: nothing in a folder runs for ever, takes all memory or chooses code; one line each."""

import json
import os
import shutil
import time

import pytest
import tiny_talkers
from safetensors.torch import load_file, save_file
from script_runs import FORCING, run

from skyreels_v2_infer.chat import foreign
from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.errors import InputError

LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWTH = "{% set n = namespace(x='x') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return tiny_talkers.write_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "model")


def refusal(folder, talk: bool = False) -> str:
    began = time.monotonic()
    with pytest.raises(InputError) as caught:
        chat = Chat(str(folder), "prompt_enhancer_model", "cpu")
        assert talk
        chat.say("a dog", "Say more.", 8)
    assert time.monotonic() - began < 120
    line = str(caught.value)
    assert line.startswith(f"--prompt_enhancer_model {folder}: ") and "\n" not in line
    return line


def changed(file, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (LOOP, "takes more than"),
        (GROWTH, "takes more than"),
        ("{{ 'x' * 10000000000 }}", "takes more than"),
        ("{{ 'x' * 2000000 }}", "makes too much"),
        ('{"a":' * 2000, "makes too much"),  # as text, which a model took minutes to read
        ("{% if false %}{% endif %}", "makes nothing"),
        ("{% for", "cannot be used"),
        ("{{ messages.no.such }}", "cannot be used"),
    ],
)
def test_templates(folder, template, why):
    (folder / "chat_template.jinja").write_text(template)
    assert f"its chat template {why}" in refusal(folder, talk=True)


def test_of_the_default_model_the_template_is_run_in_this_process(folder, monkeypatch):
    """Which takes no second, and gives the same text."""
    tokenizer = Chat(str(folder), "model_id", "cpu").tokenizer
    talks = [[{"role": "system", "content": "a"}], [{"role": "user", "content": "b"}]]
    text = foreign.conversation(tokenizer, talks, "model_id", str(folder))
    monkeypatch.setattr(foreign, "_written", lambda *given: pytest.fail("a process"))
    assert foreign.conversation(tokenizer, talks, "model_id", foreign.ENHANCER) == text
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}c"
    assert foreign.conversation(tokenizer, talks, "model_id", foreign.ENHANCER) == "c"


def test_nothing_is_imported_from_the_folder_where_a_template_is_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("json", "jinja2", "transformers", "resource"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(f'{__name__} was run')")
    assert Chat(str(folder), "model_id", "cpu").tokenized("a dog")["input_ids"].shape[1] > 5


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer_config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json"]
)
def test_large_files(folder, name):
    os.truncate(folder / name, 3 * 2**30)
    assert f"its {name} has 3,221,225,472 bytes" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.json"])
def test_tokenizers_in_other_forms(folder, name):
    """transformers would read them with sentencepiece or tiktoken, or make an empty tokenizer."""
    (folder / "tokenizer.json").rename(folder / name)
    assert "has no tokenizer.json" in refusal(folder)


def test_a_tokenizer_with_an_odd_limit_is_used(folder):
    changed(folder / "tokenizer_config.json", model_max_length={"a": 1})
    assert Chat(str(folder), "model_id", "cpu").tokenized("a dog")["input_ids"].numel()


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers 1000000000"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers 1000000000.0"),
        ({"num_labels": 10**9}, "num_labels 1000000000"),
        ({"num_attention_heads": 10**9}, "num_attention_heads 1000000000"),
        ({"vision_config": {"depth": 10**9}}, "depth 1000000000"),
        ({"text": [{"num_experts": 10**400}]}, "num_experts 1000000"),
    ],
)
def test_counts_that_no_model_has(folder, values, name):
    """transformers would make a list of so many entries, or build as many layers."""
    changed(folder / "config.json", **values)
    assert f"its config.json has {name}" in refusal(folder)


def test_an_adapter_cannot_choose_the_model(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    assert "is an adapter" in refusal(folder)


@pytest.mark.parametrize(
    "values",
    [
        {"eos_token_id": 10**400},
        {"num_beams": 10**6},
        {"min_new_tokens": 10**9},
        {"cache_implementation": "quantized"},
        {"dola_layers": "high"},
        {"stop_strings": ["a"]},
        {"custom_generate": "someone/code"},
        {"repetition_penalty": -1.0},
    ],
)
def test_other_ways_of_decoding_are_not_taken(folder, values):
    changed(folder / "generation_config.json", **values)
    plain = Chat(str(folder), "model_id", "cpu")
    assert len(plain.say("a dog", tokens=4).text) <= 16


def test_ends_and_the_penalty_are_taken(folder):
    ends = json.loads((folder / "generation_config.json").read_text()).get("eos_token_id")
    changed(folder / "generation_config.json", repetition_penalty=1.05, temperature=0.5)
    config = Chat(str(folder), "model_id", "cpu").model.generation_config
    assert config.repetition_penalty == 1.05 and config.eos_token_id == ends and config.temperature != 0.5


def test_weights_of_another_model_are_one_line(folder, tmp_path):
    """transformers logs a table of them."""
    changed(folder / "config.json", hidden_size=32)
    refusal(folder)
    flags = ("--prompt_enhancer", "--prompt_enhancer_model", folder, "--prompt", "a dog", "--device", "cpu")
    ended = run(FORCING, "--model_id", "tiny", *flags, cwd=tmp_path)
    assert ended.code == 2 and len(ended.lines) == 1


def test_tensors_that_are_missing_are_not_made_up(folder, capfd):
    """transformers fills them with random numbers, and logs a table of them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert "its files lack 1 of its tensors (model.layers.1.mlp.up_proj.weight" in refusal(folder)
    assert "MISSING" not in capfd.readouterr().err


def test_a_tokenizer_with_more_words_than_the_model(folder):
    changed(folder / "config.json", vocab_size=40)
    refusal(folder, talk=True)
