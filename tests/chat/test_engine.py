"""vLLM, of which a stub takes the place: what it is asked, with which settings, and what becomes of its answers."""

import sys
import types

import numpy as np
import pytest
import tiny_talkers

from skyreels_v2_infer.chat.engine import CAPTIONS, FUSION, Engine
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError


@pytest.fixture
def vllm(monkeypatch):
    """A module with the two classes that are used; keeps what they were given."""
    module = types.ModuleType("vllm")
    module.made, module.asked = [], []

    class LLM:
        def __init__(self, **settings):
            if settings["model"].endswith("broken"):
                raise RuntimeError("no such architecture\nmore")
            module.made.append(settings)

        def generate(self, requests, how, use_tqdm):
            module.asked.append((requests, vars(how)))
            texts = ["{}" if isinstance(request, dict) else "A woman walks." for request in requests]
            ends = ["length" if number else "stop" for number in range(len(texts))]
            answers = zip(texts, ends, strict=True)
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(text=t, finish_reason=end)]) for t, end in answers
            ]

    module.LLM, module.SamplingParams = LLM, types.SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)
    return module


@pytest.fixture(scope="module")
def captioner(tmp_path_factory):
    return tiny_talkers.write_captioner(tmp_path_factory.mktemp("engine") / "captioner")


def test_clips_with_the_published_settings(vllm, captioner):
    engine = Engine(str(captioner), "model_id", CAPTIONS, parallel=2)
    clips = [np.zeros((16, 420, 360, 3), np.uint8), np.ones((16, 420, 360, 3), np.uint8)]
    assert engine.describe(clips, "Describe it.", 2048) == [Reply("{}", False), Reply("{}", True)]
    (made,) = vllm.made
    assert made == {
        "model": str(captioner),
        "tensor_parallel_size": 2,
        "gpu_memory_utilization": 0.6,
        "max_model_len": 31920,
        "trust_remote_code": False,
    }
    ((requests, how),) = vllm.asked
    assert how == {"temperature": 0.05, "max_tokens": 2048, "stop": None}
    assert [request["multi_modal_data"]["video"] is clip for request, clip in zip(requests, clips, strict=True)] == [
        True
    ] * 2
    assert requests[0]["mm_processor_kwargs"] == {"fps": 2.0}
    assert requests[0]["prompt"].count("<|video_pad|>") == 1 and "Describe it." in requests[0]["prompt"]
    engine.describe(clips[:1], "Describe it.", 2048, attempt=2)
    assert vllm.asked[-1][1]["temperature"] == 0.7
    engine.free()
    assert not hasattr(engine, "llm")


def test_a_text_with_the_published_settings(vllm, tmp_path):
    folder = tiny_talkers.write_chat_model(tmp_path / "chat")
    engine = Engine(str(folder), "fusion_model", FUSION)
    assert engine.say(system="Write.", tokens=512, stop="\n\n") == Reply("A woman walks.", False)
    assert (vllm.made[0]["gpu_memory_utilization"], vllm.made[0]["max_model_len"]) == (0.9, 4096)
    assert vllm.asked == [(["<system>Write.\n<assistant>"], {"temperature": 0.1, "max_tokens": 512, "stop": ["\n\n"]})]


def test_a_model_that_vllm_does_not_know(vllm, captioner, tmp_path):
    broken = tmp_path / "broken"
    broken.symlink_to(captioner)
    with pytest.raises(InputError, match=r"--model_id .*: cannot be loaded .no such architecture."):
        Engine(str(broken), "model_id", CAPTIONS)
