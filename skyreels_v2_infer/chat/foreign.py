"""Chat models from strangers: their files are checked before transformers reads them, and what they choose is bounded.

A chat template is a program: it is run in a process of its own, whose time and memory are limited.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.limited import LimitError, Limits, ProgramError, run_limited
from skyreels_v2_infer.plan.models import CAPTIONER, ENHANCER

LARGEST = 2**24  # bytes of a json file or a template
TOKENIZER = "tokenizer.json"
LARGEST_TOKENIZER = 2**26  # bytes; Gemma's has 33 MB
LIMITS = Limits(seconds=3, patience=120, gib=2)  # of a template
MOST_LAYERS, MOST_COUNT = 2**10, 2**16  # in a config.json; a list with an entry for each may be made of them
LAYERS = re.compile("layer|^depth$|^num_labels$")
MOST_ADDED = 2**12  # characters that a template adds to what is said; published ones add some hundred

IMPORTS = """
import json
from jinja2 import TemplateError
from transformers.utils.chat_template_utils import render_jinja_template
"""
WRITTEN = """
asked = json.load(sys.stdin)
for talk in asked["talks"]:
    try:
        found = render_jinja_template(conversations=[talk], chat_template=asked["template"], add_generation_prompt=True,
                                      **asked["special"])
        break
    except TemplateError:
        if talk is asked["talks"][-1]:
            raise
json.dump(found[0][0][: asked["most"] + 1], sys.stdout)
"""


def check_model(model: str, flag: str, local: bool = False) -> None:
    """Checks files of a chat model, a hub id or a folder, before transformers reads them.

    Args:
        local: the hub is not asked.

    Raises:
        InputError: one is too large to be read, the tokenizer has another form, or it is an adapter, whose
            configuration would choose the model.
    """
    from transformers.utils import cached_file

    def place(name: str) -> Path | None:
        file = cached_file(model, name, local_files_only=local, _raise_exceptions_for_missing_entries=False)
        return None if file is None else Path(file)

    if place("adapter_config.json") is not None:
        raise InputError(flag, model, "is an adapter; a whole chat model is needed")
    config = place("config.json")
    if config is None:
        return  # transformers says so
    if place(TOKENIZER) is None:
        raise InputError(flag, model, f"has no {TOKENIZER}")
    for file in (*config.parent.glob("*.json"), *config.parent.glob("*.jinja"), *config.parent.glob("*/*.jinja")):
        most = LARGEST_TOKENIZER if file.name == TOKENIZER else LARGEST
        if file.is_file() and (size := file.stat().st_size) > most:
            raise InputError(flag, model, f"its {file.name} has {size:,} bytes; at most {most:,} are read")
    check_counts(config, flag, model)


def check_counts(config: Path, flag: str, model: str) -> None:
    """Raises an `InputError` if a config.json has more layers, labels or the like than a model can have."""

    def counts(data: object) -> Iterator[tuple[str, int]]:
        for name, value in data.items() if isinstance(data, dict) else enumerate(data):
            if isinstance(value, dict | list):
                yield from counts(value)
            elif isinstance(name, str) and isinstance(value, int | float):
                yield name, value

    try:
        found = list(counts(json.loads(config.read_bytes())))
    except (OSError, ValueError, RecursionError, TypeError, AttributeError):
        return  # transformers says what is wrong
    for name, value in found:
        most = MOST_LAYERS if LAYERS.search(name) else MOST_COUNT
        if (LAYERS.search(name) or name.startswith("num_")) and value > most:
            raise InputError(flag, model, f"its config.json has {name} {shown_number(value)}; at most {most:,}")


def shown_number(value: float) -> str:
    try:
        return str(value)[:20]
    except ValueError:  # more digits than Python writes
        return "of thousands of digits"


def conversation(tokenizer, talks: Sequence[list[dict]], flag: str, model: str) -> str:
    """A conversation as the tokenizer's chat template writes it, as far as the answer.

    Args:
        talks: the same in several forms; the first that the template accepts is taken (some have no system role).

    Raises:
        InputError: the template accepts none of them, fails, takes too long or too much memory, or writes much more
            than what is said, which a model would have to read.
    """
    if model in (CAPTIONER, ENHANCER) and not os.path.exists(model):  # no strangers
        return _in_this_process(tokenizer, talks)
    special = {name: token for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    most = MOST_ADDED + max(len(json.dumps(talk)) for talk in talks)
    template = tokenizer.get_chat_template()
    return _written(
        json.dumps({"talks": list(talks), "template": template, "special": special, "most": most}), flag, model
    )


def _in_this_process(tokenizer, talks: Sequence[list[dict]]) -> str:
    from jinja2 import TemplateError

    *others, last = talks
    for talk in others:
        with suppress(TemplateError):
            return tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    return tokenizer.apply_chat_template(last, add_generation_prompt=True, tokenize=False)


@lru_cache(maxsize=8)
def _written(asked: str, flag: str, model: str) -> str:
    try:
        written = run_limited(IMPORTS, WRITTEN, LIMITS, asked.encode())
    except LimitError as error:
        raise InputError(flag, model, f"its chat template takes {error}") from None
    except ProgramError as error:
        raise InputError(flag, model, f"its chat template cannot be used ({error})") from None
    text = json.loads(written)
    if not text or len(text) > json.loads(asked)["most"]:
        raise InputError(flag, model, f"its chat template makes {'nothing' if not text else 'too much'} of a prompt")
    return text


def bounded_generation(config, vocabulary: int):
    """Of a model's generation config what a greedy answer depends on, if it can be used: ends, and the penalty."""
    from transformers import GenerationConfig

    def ids(value: object) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return (whole and 0 <= value < vocabulary) or (isinstance(value, list) and bool(value) and all(map(ids, value)))

    kept = {name: value for name in ("bos_token_id", "eos_token_id") if ids(value := getattr(config, name, None))}
    penalty = getattr(config, "repetition_penalty", None)
    if isinstance(penalty, int | float) and math.isfinite(penalty) and penalty > 0:
        kept["repetition_penalty"] = float(penalty)
    return GenerationConfig(**kept)


@contextmanager
def without_remarks() -> Iterator[None]:
    """Context manager: transformers logs nothing, since tables about a damaged model would be more than one line."""
    from transformers import logging

    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logging.set_verbosity(before)
