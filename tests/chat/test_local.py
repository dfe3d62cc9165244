"""A small chat model that transformers loads: conversations, limits and the text that ends an answer."""

import pytest
import tiny_talkers

from skyreels_v2_infer.chat import local
from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.chat.reply import Reply


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = tiny_talkers.write_chat_model(tmp_path_factory.mktemp("chat") / "model", "A dog runs.\n\nThe end.")
    return Chat(str(folder), "fusion_model", "cpu")


def test_an_answer_ends_with_the_models_end_or_at_the_limit_or_at_a_text(chat):
    assert chat.say("Who?") == Reply("A dog runs.\n\nThe end.", cut_off=False)
    assert chat.say("Who?", tokens=1).cut_off
    assert chat.say("Who?", stop="\n\n") == Reply("A dog runs.", cut_off=False)


def test_turns_without_a_text_are_left_out(chat):
    def text(*turns):
        return chat.tokenizer.decode(chat.tokenized(*turns)["input_ids"][0])

    assert text("a", "b") == "<system>b\n<user>a\n<assistant>"
    assert text("a") == "<user>a\n<assistant>"
    assert text("", "b") == "<system>b\n<assistant>"


def test_only_the_default_models_tokenizers_are_used_untried(tmp_path, monkeypatch):
    tried = []
    monkeypatch.setattr(local, "check_tokenizer", lambda file, texts, flag, model: tried.append(str(model)))
    folder = tiny_talkers.write_chat_model(tmp_path / "Qwen" / "Qwen2.5-32B-Instruct")
    local.check_file_of(str(folder), ["a"], "fusion_model")
    monkeypatch.chdir(tmp_path)  # where the hub's name is a folder
    local.check_file_of("Qwen/Qwen2.5-32B-Instruct", ["a"], "fusion_model")
    monkeypatch.chdir("/")
    local.check_file_of("Qwen/Qwen2.5-32B-Instruct", ["a"], "fusion_model")
    assert tried == [str(folder), "Qwen/Qwen2.5-32B-Instruct"]


def test_a_freed_model_is_gone(tmp_path):
    chat = Chat(str(tiny_talkers.write_chat_model(tmp_path / "model")), "fusion_model", "cpu")
    chat.free()
    assert not hasattr(chat, "model")
