"""A chat model that transformers loads."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skyreels_v2_infer.chat.foreign import bounded_generation, check_model, conversation, without_remarks
from skyreels_v2_infer.chat.reply import Reply
from skyreels_v2_infer.errors import InputError, first_line
from skyreels_v2_infer.hub import UnreachableError, only_local
from skyreels_v2_infer.plan.models import CAPTIONER, ENHANCER
from skyreels_v2_infer.plan.tokenizer_check import check_tokenizer

LONGEST = 10**30  # what transformers takes where a tokenizer states no limit


class Chat:
    """A chat model, see `Talker`. Decoding is greedy: the same texts always get the same answer.

    Args:
        model: for transformers, as a hub id or a folder.
        flag: that names it, for messages.
        device_map: see transformers; "auto" fills all GPUs, then host memory.

    Raises:
        InputError: the model cannot be loaded, or is no chat model.
    """

    def __init__(self, model: str, flag: str, device_map: str = "auto"):
        from transformers import AutoModelForCausalLM

        self.name, self.flag = model, flag
        with loading(flag, model), without_remarks():
            local = only_local(model, flag)
            config, self.tokenizer = config_and_tokenizer(model, flag, local)
            kinds = {"dtype": "auto", "device_map": device_map, "trust_remote_code": False, "local_files_only": local}
            kinds["output_loading_info"] = True
            self.model = whole(AutoModelForCausalLM.from_pretrained(model, config=config, **kinds), flag, model).eval()
            # The model's own could ask for other ways of decoding, packages and any amount of memory.
            self.model.generation_config = bounded_generation(self.model.generation_config, config.vocab_size)
        if self.tokenizer.chat_template is None:
            raise InputError(flag, model, "is no chat model: its tokenizer has no chat template")

    def say(self, user: str = "", system: str = "", tokens: int = 512, stop: str | None = None) -> Reply:
        import torch

        asked = self.tokenized(user, system).to(self.model.device)
        limits = {} if stop is None else {"stop_strings": [stop], "tokenizer": self.tokenizer}
        with torch.no_grad(), answering(self.flag, self.name):
            told = self.model.generate(
                **asked,
                max_new_tokens=tokens,
                do_sample=False,
                pad_token_id=self.tokenizer.pad_token_id or self.tokenizer.eos_token_id,
                **limits,
            )
        return reply_of(told[0, asked["input_ids"].shape[1] :], self.tokenizer, tokens, stop)

    def tokenized(self, user: str, system: str = ""):
        """The tokens of a conversation, as far as the answer, as transformers' ``BatchEncoding``."""
        turns = [("system", system), ("user", user)]
        talk = [{"role": role, "content": text} for role, text in turns if text]
        whole = [{"role": "user", "content": "\n\n".join(text for _, text in turns if text)}]
        text = conversation(self.tokenizer, [talk, whole], self.flag, self.name)  # some models have no system role
        check_file_of(self.name, [text], self.flag)
        asked = self.tokenizer(text, add_special_tokens=False, return_tensors="pt")
        ids = asked["input_ids"]
        if not ids.numel() or ids.max() >= self.model.config.vocab_size:
            raise InputError(self.flag, self.name, "its tokenizer belongs to another model")
        return asked

    def free(self) -> None:
        del self.model
        empty_memory()


@contextmanager
def loading(flag: str, model: str) -> Iterator[None]:
    """Context manager: any error of loading a model becomes an InputError for its flag."""
    try:
        yield
    except (InputError, UnreachableError):
        raise
    except Exception as error:  # missing, damaged or unknown models raise exceptions of many types
        reason = first_line(error, 150)
        if "ignore_mismatched_sizes" in reason:  # an argument that a user cannot give
            reason = "its weights do not fit its config.json"
        raise InputError(flag, model, f"cannot be loaded ({reason})") from error


def whole(loaded: tuple, flag: str, model: str):
    """The model that transformers has loaded, if all of its tensors were in its files: it makes up those that were not.

    Args:
        loaded: of ``from_pretrained(..., output_loading_info=True)``.
    """
    found, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise InputError(flag, model, f"its files lack {len(missing)} of its tensors ({missing[0]}, ...)")
    return found


@contextmanager
def answering(flag: str, model: str) -> Iterator[None]:
    """Context manager: an error in a model's answer becomes an InputError for its flag, unless memory is the reason."""
    try:
        with without_remarks():
            yield
    except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if "memory" in str(error):
            raise
        raise InputError(flag, model, f"cannot answer ({first_line(error, 150)})") from error


def config_and_tokenizer(model: str, flag: str, local: bool = False) -> tuple:
    """(config, tokenizer) of a model; neither runs code of the model, nor asks whether it may.

    Args:
        local: the hub is not asked, see `hub.only_local`.
    """
    from transformers import AutoConfig, AutoTokenizer

    check_model(model, flag, local)
    # Unset, transformers asks on stdin whether it may run the code that comes with a model.
    config = AutoConfig.from_pretrained(model, trust_remote_code=False, local_files_only=local)
    config._attn_implementation = None  # or a config could name a kernel to be fetched from the hub
    check_file_of(model, [], flag)
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=local)
    tokenizer.model_max_length = LONGEST  # of anything else in its files, only remarks would depend on it
    return config, tokenizer


def check_file_of(model: str, texts: list[str], flag: str) -> None:
    """Raises an `InputError` if the model's tokenizer cannot be used on these texts; the default models' is not tried.

    That takes about a second.
    """
    from transformers.utils import cached_file

    if model in (CAPTIONER, ENHANCER) and not os.path.exists(model):
        return
    # It was downloaded by `check_model`.
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    file = cached_file(model, "tokenizer.json", local_files_only=True, **missing)
    if file is not None:
        check_tokenizer(Path(file), texts, flag, model)


def reply_of(answer, tokenizer, most: int, stop: str | None = None) -> Reply:
    """The reply in generated tokens ``[n]``, which may be padded behind their end.

    Args:
        most: limit on tokens that generation had.
    """
    ends = tokenizer.eos_token_id
    tokens = answer.tolist()
    cut_off = len(tokens) >= most and tokens[-1] not in (ends, tokenizer.pad_token_id)
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    if stop is not None and stop in text:
        text, cut_off = text[: text.index(stop)], False
    return Reply(text, cut_off)


def empty_memory() -> None:
    """Returns freed memory to the device."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
