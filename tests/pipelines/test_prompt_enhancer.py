"""The prompt enhancer: what becomes of answers, and the whole way with a small random chat model."""

import json
import shutil
import subprocess
import sys

import pytest
import small_checkpoints
import tiny_talkers
from script_runs import GENERATE, ROOT, contents, environment, run

from skyreels_v2_infer import PromptEnhancer
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.pipelines import prompt_enhancer
from skyreels_v2_infer.pipelines.prompt_enhancer import MOST_TOKENS, MOST_WORDS, cleaned

CAPTION = "A medium shot of a brown dog that runs through tall grass. The camera follows it."


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    return tiny_talkers.write_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.mark.parametrize(
    "answer",
    [
        CAPTION,
        f'"{CAPTION}"',
        f"  {CAPTION}\n\n",
        f"Here is the caption:\n\n{CAPTION}",
        f"Sure! {CAPTION}",
        f"**Enhanced prompt:** {CAPTION}",
        f"Caption: {CAPTION}",
        f"# A dog\n{CAPTION}",
        f"```text\n{CAPTION}\n```",
        f"<think>The user wants a dog. So.</think>\n{CAPTION}",
        CAPTION.replace(". The", ".\nThe"),
        f"{CAPTION} It then stops near the",  # cut off
    ],
)
def test_the_caption_alone_is_taken_from_an_answer(answer):
    assert cleaned(answer) == CAPTION


def test_an_endless_answer_ends_with_a_sentence():
    sentences = [f"Item{i} comes after thing{i} near place{i} in light{i}." for i in range(100)]
    text = cleaned(" ".join(sentences))
    assert text.endswith(".") and MOST_WORDS - 10 < len(text.split()) <= MOST_WORDS
    # one sentence without an end is cut at the words that fit
    endless = " ".join(f"word{chr(97 + i % 26)}{chr(97 + i // 26)}" for i in range(500))
    assert len(cleaned(endless).split()) == MOST_WORDS


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n",
        '""',
        "<think>I never come to an end",
        "No.",
        "#### 0101 %% 88 == 1 2 3 4 5 6",
        "a broken \N{REPLACEMENT CHARACTER} answer that has enough words",
        "the dog " * 80,
    ],
)
def test_what_is_no_caption_is_refused(answer):
    assert cleaned(answer) is None


def test_other_scripts_are_text_too():
    caption = "一只棕色的狗在高高的草丛中奔跑。镜头缓缓跟随。"
    assert cleaned(caption) == caption


def test_the_model_is_asked_with_the_instruction_and_its_answer_is_bounded(chat_model, monkeypatch):
    enhancer = PromptEnhancer(str(chat_model), device_map="cpu")
    asked, generate = {}, enhancer.chat.model.generate

    def record(**settings):
        asked.update(settings)
        return generate(**settings)

    monkeypatch.setattr(enhancer.chat.model, "generate", record)
    result = enhancer("a dog in the park")
    text = enhancer.chat.tokenizer.decode(asked["input_ids"][0])
    assert text == f"<system>{prompt_enhancer.INSTRUCTION}\n<user>a dog in the park\n<assistant>"
    assert (asked["max_new_tokens"], asked["do_sample"]) == (MOST_TOKENS, False)
    # A random model answers garbage, and then the prompt stays what it was.
    assert result == "a dog in the park"
    monkeypatch.setattr(enhancer.chat.tokenizer, "decode", lambda tokens, **kw: f"Caption: {CAPTION}")
    assert enhancer("a dog in the park") == CAPTION
    enhancer.free()
    assert not hasattr(enhancer.chat, "model")


def test_a_template_without_a_system_role_gets_the_instruction_from_the_user(chat_model, monkeypatch):
    enhancer = PromptEnhancer(str(chat_model), device_map="cpu")
    picky = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
    monkeypatch.setattr(enhancer.chat.tokenizer, "chat_template", picky + "[{{ m.content }}]{% endfor %}")
    text = enhancer.chat.tokenizer.decode(enhancer.chat.tokenized("a dog", prompt_enhancer.INSTRUCTION)["input_ids"][0])
    assert text == f"[{prompt_enhancer.INSTRUCTION}\n\na dog]"


def copy_of(model, folder, **config):
    shutil.copytree(model, folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | config))
    return folder


def test_no_code_of_a_model_is_run_and_nobody_is_asked(chat_model, tmp_path, monkeypatch):
    """Without a word transformers asks on stdin, where `yes |` answers."""
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.T", None]}
    folder = copy_of(chat_model, tmp_path / "own", auto_map=classes, model_type="own", architectures=["Model"])
    (folder / "own.py").write_text(f"open({str(tmp_path / 'was_run')!r}, 'w')\nraise OSError")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": classes}))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "y")
    with pytest.raises(InputError, match=f"--prompt_enhancer_model {folder}: "):
        PromptEnhancer(str(folder), device_map="cpu")
    assert not asked and not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_config_chooses_no_kernel(chat_model, tmp_path, key):
    folder = copy_of(chat_model, tmp_path / "kernel", **{key: "someone/kernel"})
    assert PromptEnhancer(str(folder), device_map="cpu").chat.model.config._attn_implementation in ("sdpa", "eager")


def test_a_tokenizer_that_panics_is_one_line(chat_model, tmp_path):
    folder = copy_of(chat_model, tmp_path / "panics")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "(([a-z ]+)+)+$"}, "content": "b"}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=rf"--prompt_enhancer_model {folder}: .*tokenizer.json"):
        PromptEnhancer(str(folder), device_map="cpu")("a dog")


def test_a_model_that_cannot_chat_is_refused(chat_model, tmp_path):
    with pytest.raises(InputError, match=f"--prompt_enhancer_model {tmp_path}: cannot be loaded"):
        PromptEnhancer(str(tmp_path), device_map="cpu")
    mute = tmp_path / "mute"
    mute.mkdir()
    for file in chat_model.iterdir():
        if file.name != "chat_template.jinja":
            (mute / file.name).write_bytes(file.read_bytes())
    settings = json.loads((mute / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (mute / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(InputError, match="is no chat model: "):
        PromptEnhancer(str(mute), device_map="cpu")


def test_a_script_shows_both_prompts_and_names_the_file_by_the_first(chat_model, tmp_path):
    small_checkpoints.write_original(tmp_path / "t2v", "t2v")
    result = run(
        *(GENERATE, "--model_id", tmp_path / "t2v", "--height", 32, "--width", 32, "--num_frames", 5),
        *("--inference_steps", 2, "--seed", 1, "--device", "cpu", "--prompt", "a dog in the park"),
        *("--prompt_enhancer", "--prompt_enhancer_model", chat_model, "--outdir", "out"),
        cwd=tmp_path,
    )
    assert result.path.name == "a-dog-in-the-park_1.mp4"
    prompt, enhanced = result.lines[:2]
    assert prompt == "prompt: a dog in the park"
    assert enhanced.startswith("not enhanced: ")


def test_an_enhanced_prompt_is_what_the_video_is_made_from(chat_model, tmp_path):
    """The answer that a random model does not give is put into its mouth."""
    small_checkpoints.write_original(tmp_path / "t2v", "t2v")
    words = "from skyreels_v2_infer.pipelines import prompt_enhancer\nprompt_enhancer.cleaned = lambda answer: "
    (tmp_path / "sitecustomize.py").write_text(f"{words}{CAPTION!r}")
    result = run(
        *(GENERATE, "--model_id", tmp_path / "t2v", "--height", 32, "--width", 32, "--num_frames", 5),
        *("--inference_steps", 2, "--seed", 1, "--device", "cpu", "--prompt", "a dog in the park"),
        *("--prompt_enhancer", "--prompt_enhancer_model", chat_model, "--outdir", "out"),
        cwd=tmp_path,
        PYTHONPATH=f"{tmp_path}:{ROOT}",
    )
    assert result.lines[1] == f"enhanced: {CAPTION}"
    assert result.path.name == "a-dog-in-the-park_1.mp4"
    assert json.loads(result.path.with_suffix(".json").read_text())["settings"]["prompt"] == CAPTION


def test_a_model_that_cannot_be_loaded_ends_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    flags = ("--prompt_enhancer", "--prompt_enhancer_model", "empty", "--device", "cpu")
    result = run(GENERATE, "--model_id", "tiny", *flags, cwd=tmp_path)
    assert result.code == 2
    (line,) = result.lines
    assert line.startswith("generate_video.py: --prompt_enhancer_model empty: cannot be loaded (")
    assert contents(tmp_path) == ["empty"]


def test_it_runs_alone_as_a_file(chat_model, tmp_path):
    file = ROOT / "skyreels_v2_infer" / "pipelines" / "prompt_enhancer.py"
    command = [sys.executable, file, "--prompt", "a dog in the park", "--prompt_enhancer_model"]
    settings = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run([*command, chat_model], **settings)
    assert (done.returncode, done.stdout) == (0, "a dog in the park\n"), done.stderr
    done = subprocess.run([*command, tmp_path], **settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--prompt_enhancer_model" in done.stderr and "cannot be loaded" in done.stderr
