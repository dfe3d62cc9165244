"""A chat model behind an OpenAI-compatible endpoint (``POST .../chat/completions``)."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.client import HTTPException
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, OpenerDirector, ProxyHandler, Request, build_opener

from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError, first_line

if TYPE_CHECKING:
    import numpy as np

KEY = "OPENAI_API_KEY"  # environment variable
SECONDS = 300.0  # without any data
MOST_ANSWER = 2**22  # bytes
TRIES = 4
LONGEST_WAIT = 60.0  # seconds between two tries, whatever the endpoint asks for
AGAIN = frozenset({408, 429, 500, 502, 503, 504, 529})
OF_ONE = frozenset({400, 413, 422})  # may be about one request alone, such as a filter of contents
LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})
QUALITY = 95  # of frames as JPEG


class _NoRedirect(HTTPRedirectHandler):
    """A redirect would carry the key to another address."""

    def redirect_request(self, *args: Any) -> None:
        return None


class RefusedError(InputError):
    """An endpoint refuses a request; `code`: its HTTP status."""

    code = 0


class Endpoint:
    """A chat model, see `Talker`, that also sees clips, see `captioner.caption.Captioner`.

    Args:
        url: of the API, as ``http://localhost:8000/v1``.
        model: its name there.
        key: sent over https, and to this machine; "": none.
        temperature: published: 0.1 for fusion, 0.05 for captions.
        seconds: without any data, after which a request is tried again.
        wait: sleeps for some seconds; raises once the process has to stop.
    """

    def __init__(
        self,
        url: str,
        model: str,
        key: str = "",
        temperature: float = 0.1,
        seconds: float = SECONDS,
        wait: Callable[[float], object] = time.sleep,
    ):
        self.url, self.model, self.temperature, self.seconds, self.wait = (
            url.rstrip("/"),
            model,
            temperature,
            seconds,
            wait,
        )
        parts = urlsplit(url)
        self.key = key if parts.scheme == "https" or parts.hostname in LOCAL else ""
        direct = [ProxyHandler({})] if parts.hostname in LOCAL else []  # no proxy of the environment reaches these
        self.answered = False  # whether it has answered any request
        self.opener: OpenerDirector = build_opener(_NoRedirect, *direct)

    def say(self, user: str = "", system: str = "", tokens: int = 512, stop: str | None = None) -> Reply:
        turns = [("system", system), ("user", user)]
        messages = [{"role": role, "content": text} for role, text in turns if text]
        more = {} if stop is None else {"stop": [stop]}
        (reply,) = self._replies(lambda: self.ask(messages, tokens, self.temperature, **more))
        return reply

    def describe(self, clips: Sequence[np.ndarray], question: str, tokens: int, attempt: int = 0) -> list[Reply]:
        """One answer for each clip; requests are made at the same time.

        A clip is sent as vLLM takes a sequence of frames: as JPEGs in one ``video/jpeg``.
        """
        warmer = self.temperature if not attempt else 0.35 * attempt

        def one(clip: np.ndarray) -> Reply:
            video = {"type": "video_url", "video_url": {"url": data_url(clip)}}
            return self.ask([{"role": "user", "content": [video, {"type": "text", "text": question}]}], tokens, warmer)

        return self._replies(*(partial(one, clip) for clip in clips))

    def _replies(self, *requests: Callable[[], Reply]) -> list[Reply]:
        """The replies to requests that are made at the same time.

        Where others are answered, a request that is refused for what is in it has a reply as well, which says so.
        """

        def one(request: Callable[[], Reply]) -> Reply | RefusedError:
            try:
                reply = request()
            except RefusedError as error:
                if error.code not in OF_ONE:
                    raise
                return error
            self.answered = True
            return reply

        found = in_parallel(one, requests)
        for error in found:
            if isinstance(error, RefusedError) and not self.answered:
                raise error
        return [Reply("", False, f"the endpoint {r.legal}") if isinstance(r, RefusedError) else r for r in found]

    def ask(self, messages: list[dict], tokens: int, temperature: float, **more: Any) -> Reply:
        """One request, repeated while it fails for a passing reason.

        Raises:
            InputError: for --endpoint: it refuses the request.
            OSError: it cannot be reached, or answers nothing usable.
        """
        body = {"model": self.model, "messages": messages, "max_tokens": tokens, "temperature": temperature} | more
        reason = ""
        for number in range(TRIES):
            pause = min(2.0**number, LONGEST_WAIT)
            try:
                return reply_in(self._post(json.dumps(body).encode()))
            except HTTPError as error:
                reason = f"status {error.code}{said_in(error)}"
                if error.code not in AGAIN:
                    raise self._refused(error.code, reason) from None
                pause = asked_pause(error, pause)
            except (OSError, HTTPException, ValueError) as error:  # URLError is an OSError
                cause = error.reason if isinstance(error, URLError) and isinstance(error.reason, Exception) else error
                reason = first_line(cause, 120) or type(cause).__name__
            if number + 1 < TRIES:
                self.wait(pause)
        raise OSError(f"--endpoint {self.url}: no usable answer in {TRIES} tries ({reason})")

    def _post(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "User-Agent": "skyreels_v2_infer"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = Request(f"{self.url}/chat/completions", body, headers, method="POST")
        with self.opener.open(request, timeout=self.seconds) as answer:
            content = self._read(answer)
            declared = answer.headers.get("Content-Length", "")
        if declared.isdecimal() and len(content) < int(declared):
            raise ValueError("the answer ends early")
        if len(content) > MOST_ANSWER:
            raise ValueError(f"the answer has more than {MOST_ANSWER >> 20} MB")
        return content

    def _read(self, answer) -> bytes:
        """The content of an answer, at most one byte above `MOST_ANSWER`; all within `seconds`."""
        content, began = bytearray(), time.monotonic()
        while len(content) <= MOST_ANSWER and (some := answer.read1(MOST_ANSWER + 1 - len(content))):
            content += some
            if time.monotonic() - began > self.seconds:
                raise TimeoutError("the answer takes too long")
        return bytes(content)

    def _refused(self, code: int, reason: str) -> RefusedError:
        hint = f"; its key is read from the environment variable {KEY}" if code in (401, 403) else ""
        if code in range(300, 400):
            hint = "; redirects are not followed"
        error = RefusedError("endpoint", self.url, f"refuses the request with {reason}{hint}")
        error.code = code
        return error

    def free(self) -> None:
        """Holds nothing on this machine."""


def key_in_environment() -> str:
    """The key, "" if there is none; InputError, without the key, if it cannot be sent."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise InputError("endpoint", None, f"the environment variable {KEY} has characters that no key has")
    return key


def reply_in(content: bytes) -> Reply:
    """The reply in a completion.

    Raises:
        ValueError: it is none.
    """
    try:
        choice = json.loads(content)["choices"][0]
        text = choice["message"]["content"]
        cut_off = choice.get("finish_reason") == "length"
        if isinstance(text, list):  # in parts
            text = "".join(part.get("text") or "" for part in text)
        if text is not None and not isinstance(text, str):
            raise TypeError
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise ValueError("the answer is no chat completion") from None
    return Reply(text or "", cut_off)


def said_in(error: HTTPError) -> str:
    """The message in a refusal, in brackets; "" if there is none."""
    try:
        message = json.loads(error.read(2**16))
        message = message.get("error", message)
        message = message.get("message") if isinstance(message, dict) else message
    except (OSError, HTTPException, ValueError, AttributeError, RecursionError):
        return ""
    return f" ({first_line(ValueError(message), 120)})" if isinstance(message, str) and message.strip() else ""


def asked_pause(error: HTTPError, otherwise: float) -> float:
    """Seconds that the endpoint asks to wait, at most `LONGEST_WAIT`."""
    asked = error.headers.get("Retry-After") or ""
    return min(float(asked), LONGEST_WAIT) if re.fullmatch(r"\d{1,6}(\.\d+)?", asked) else otherwise


def data_url(clip: np.ndarray) -> str:
    """The frames of a clip, uint8 RGB ``[T, H, W, 3]``, as JPEGs."""
    from PIL import Image

    frames = []
    for frame in clip:
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=QUALITY, subsampling=0)
        frames.append(base64.b64encode(file.getvalue()).decode())
    return f"data:video/jpeg;base64,{','.join(frames)}"


def in_parallel(work: Callable, items: Sequence) -> list:
    """`work` of each item, in threads that do not keep the process from ending; the first error is raised."""
    results: list = [None] * len(items)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = work(items[index])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,), daemon=True) for i in range(len(items))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
