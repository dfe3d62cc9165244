"""An OpenAI-compatible endpoint, against a server on this machine that answers well, late, badly or not at all."""

import base64
import io
import json
import socket
import time

import numpy as np
import pytest
from loopback import completion, server
from PIL import Image

from skyreels_v2_infer.chat.endpoint import TRIES, Endpoint
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError


def endpoint(url, **more):
    waited = []
    found = Endpoint(url, "some/model", wait=waited.append, **more)
    found.waited = waited
    return found


def test_a_question_and_its_answer():
    with server(completion()) as (url, requests):
        found = endpoint(url + "/", key="secret", temperature=0.1)
        assert found.say(system="Write.", tokens=99, stop="\n\n") == Reply("A woman walks.", False)
    ((headers, body, path),) = requests
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret"
    assert body == {
        "model": "some/model",
        "messages": [{"role": "system", "content": "Write."}],
        "max_tokens": 99,
        "temperature": 0.1,
        "stop": ["\n\n"],
    }


def test_clips_are_sent_as_frames_and_answers_keep_their_order():
    clips = [np.full((16, 56, 84, 3), level, np.uint8) for level in (10, 200)]
    with server(completion("{}", "length")) as (url, requests):
        replies = endpoint(url, temperature=0.05).describe(clips, "Describe it.", 2048)
    assert replies == [Reply("{}", True)] * 2
    levels = set()
    for _, body, _ in requests:
        (message,) = body["messages"]
        video, text = message["content"]
        assert text == {"type": "text", "text": "Describe it."} and body["temperature"] == 0.05
        kind, _, data = video["video_url"]["url"].partition(",")
        assert (video["type"], kind) == ("video_url", "data:video/jpeg;base64")
        frames = [np.array(Image.open(io.BytesIO(base64.b64decode(frame)))) for frame in data.split(",")]
        assert len(frames) == 16 and frames[0].shape == (56, 84, 3)
        levels.add(round(frames[0].mean()))
    assert levels == {10, 200}


def test_order_of_parallel_answers():
    class Echo(Endpoint):
        def ask(self, messages, tokens, temperature, **more):
            level = len(messages[0]["content"][0]["video_url"]["url"])
            time.sleep(0.05 if level > 3000 else 0)
            return Reply(str(level), False)

    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (n, 28, 28, 3), np.uint8) for n in (4, 1, 2)]
    sizes = [int(reply.text) for reply in Echo("http://127.0.0.1:1", "m").describe(clips, "?", 9)]
    assert sizes[0] > sizes[2] > sizes[1]


def test_a_busy_endpoint_is_asked_again_after_the_time_that_it_names():
    busy = (429, {"Retry-After": "7"}, b"{}")
    with server(busy, (503, {}, b""), completion()) as (url, requests):
        found = endpoint(url)
        assert found.say("Who?").text == "A woman walks."
    assert found.waited == [7.0, 2.0] and len(requests) == 3
    with server((429, {"Retry-After": "99999"}, b"{}")) as (url, requests):
        found = endpoint(url)
        with pytest.raises(OSError, match=r"no usable answer in 4 tries .status 429"):
            found.say("Who?")
    assert found.waited == [60.0] * (TRIES - 1) and len(requests) == TRIES


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"<html>", "no chat completion"),
        (b"", "no chat completion"),
        (b"[]", "no chat completion"),
        (b'{"choices": []}', "no chat completion"),
        (b'{"choices": [{"message": {"content": 3}}]}', "no chat completion"),
        (b"\xff\xfe" * 50, "no chat completion"),
        (completion()[:30], "no chat completion"),
        ((200, {"Content-Length": "500"}, completion()), "ends early|IncompleteRead"),
        (b" " * (2**22 + 1), "more than 4 MB"),
        (0.6, "timed out"),
    ],
    ids=["html", "nothing", "list", "no choice", "number", "bytes", "half", "cut", "large", "late"],
)
def test_no_usable_answer_ends_the_run_after_some_tries(answer, reason):
    with server(answer) as (url, requests):
        found = endpoint(url, seconds=0.2 if isinstance(answer, float) else 20)
        with pytest.raises(OSError, match=f"no usable answer in 4 tries .*({reason})"):
            found.say("Who?")
    assert len(requests) == TRIES and found.waited == [1.0, 2.0, 4.0]


def test_one_bad_answer_is_not_the_end():
    with server(b"<html>", 0.6, completion()) as (url, _):
        assert endpoint(url, seconds=0.2).say("Who?").text == "A woman walks."


def test_content_in_parts_and_empty_content():
    parts = json.dumps({"choices": [{"message": {"content": [{"type": "text", "text": "A"}, {"text": "B"}]}}]}).encode()
    with server(parts, completion(None)) as (url, _):
        assert [endpoint(url).say("Who?").text for _ in range(2)] == ["AB", ""]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((401, {}, b'{"error": {"message": "Invalid key"}}'), r"status 401 \(Invalid key\).*OPENAI_API_KEY"),
        ((404, {}, b'{"message": "no model\\nof that name"}'), r"status 404 \(no model\)$"),
        ((400, {}, b"\xff"), "status 400"),
        ((302, {"Location": "http://127.0.0.1:1/"}, b""), "status 302; redirects are not followed"),
        ((307, {"Location": "http://127.0.0.1:1/"}, b""), "status 307; redirects are not followed"),
    ],
)
def test_a_refusal_is_an_input_error(answer, reason):
    with server(answer) as (url, requests):
        with pytest.raises(InputError, match=f"--endpoint {url}: refuses the request with {reason}"):
            endpoint(url, key="secret").say("Who?")
        assert len(requests) == 1


def test_nobody_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        endpoint(f"http://127.0.0.1:{port}").say("Who?")


def test_a_key_goes_over_https_or_stays_on_this_machine():
    assert [endpoint(url, key="k").key for url in ("https://a.example/v1", "http://localhost:1", "http://[::1]:1")] == [
        "k"
    ] * 3
    assert endpoint("http://a.example/v1", key="k").key == ""


def test_a_clip_that_is_refused_among_others_is_no_end_of_the_run():
    """Such as by a filter of contents; the first of a run, though, where the whole command may be wrong."""
    refusal = (400, {}, b'{"error": {"message": "against our policy"}}')
    clips = [np.zeros((1, 28, 28, 3), np.uint8)] * 2
    with server(refusal, completion("one"), refusal) as (url, _):
        found = endpoint(url)
        replies = found.describe(clips, "?", 9)
        assert sorted(reply.text for reply in replies) == ["", "one"]
        assert {reply.refused for reply in replies} == {
            "",
            "the endpoint refuses the request with status 400 (against our policy)",
        }
        assert found.say("Who?").refused
        with pytest.raises(InputError, match="against our policy"):
            endpoint(url).describe(clips, "?", 9)
    with server(completion(), (401, {}, b"")) as (url, _):
        found = endpoint(url)
        found.say("Who?")
        with pytest.raises(InputError, match="status 401"):
            found.say("Who?")


def test_an_answer_that_trickles_has_a_limit():
    class Trickle:
        def read1(self, most):
            time.sleep(0.01)
            return b" "

    with pytest.raises(TimeoutError, match="too long"):
        endpoint("http://127.0.0.1:1", seconds=0.05)._read(Trickle())
