"""Small chat and captioning models over single bytes, written as folders with transformers' own classes.

Their weights are random, or such that they always give the same answer (`say_always`).
"""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel
from transformers import PreTrainedTokenizerFast

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<assistant>"
# The form of Qwen2.5-VL's.
VIDEO_TEMPLATE = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for part in m.content %}{% if part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% else %}{{ part.text }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = (
    "<eos>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def write_tokenizer(folder: Path, template: str, answer: str = "") -> tuple[dict[str, int], list[int]]:
    """A tokenizer of bytes -> (ids of the special tokens, ids of the pieces of `answer`, each a token of its own)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, *SPECIAL])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevel()
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    pieces = pieces_of(answer)
    tokenizer.add_tokens([AddedToken(piece, normalized=False) for piece in pieces])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<eos>")
    fast.chat_template = template
    fast.save_pretrained(folder)
    return {word: fast.convert_tokens_to_ids(word) for word in SPECIAL}, fast.convert_tokens_to_ids(pieces)


def pieces_of(text: str) -> list[str]:
    """A text in pieces of which no two are the same, each longer than a byte."""
    pieces: list[str] = []
    while text:
        length = 12
        while text[:length] in pieces or len(text) - length == 1:
            length += 1
        pieces.append(text[:length])
        text = text[length:]
    return pieces


def say_always(model, embedding: torch.nn.Embedding, first: int, answer: list[int], end: int) -> None:
    """Changes a model so that token `first` is followed by `answer` and `end`: layers add nothing, and the output's row
    of each token is the embedding of the one before it."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")) and "visual" not in name:
                weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in zip([first, *answer], [*answer, end], strict=True):
            model.lm_head.weight[after] = embedding.weight[before]


def write_chat_model(folder: Path, answer: str = "") -> Path:
    """A Qwen2 with random weights, or one that always answers `answer`."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    ids, pieces = write_tokenizer(folder, TEMPLATE, answer)
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size = 256 + len(SPECIAL) + len(pieces)
    eos = {"eos_token_id": ids["<eos>"], "initializer_range": 0.5, "tie_word_embeddings": False}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=size, num_key_value_heads=1, **eos, **sizes))
    if answer:
        last = sorted(pre_tokenizers.ByteLevel.alphabet()).index(">")  # of <assistant>
        say_always(model, model.model.embed_tokens, last, pieces, ids["<eos>"])
    model.save_pretrained(folder)
    return folder


def write_captioner(folder: Path, answer: str = "") -> Path:
    """A Qwen2.5-VL with random weights, or one that always answers `answer`."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids, pieces = write_tokenizer(folder, VIDEO_TEMPLATE, answer)
    text = {
        "hidden_size": 64,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(SPECIAL) + len(pieces),
        "initializer_range": 0.5,
        "max_position_embeddings": 8192,
        "eos_token_id": ids["<eos>"],
        "pad_token_id": ids["<eos>"],
        "bos_token_id": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [4, 6, 6]},
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
        "initializer_range": 0.2,
    }
    names = {"image": "<|image_pad|>", "video": "<|video_pad|>", "vision_start": "<|vision_start|>"}
    names["vision_end"] = "<|vision_end|>"
    tokens = {f"{name}_token_id": ids[word] for name, word in names.items()}
    torch.manual_seed(0)
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False, **tokens)
    model = Qwen2_5_VLForConditionalGeneration(config)
    if answer:
        newline = sorted(pre_tokenizers.ByteLevel.alphabet()).index("Ċ")
        say_always(model, model.model.language_model.embed_tokens, newline, pieces, ids["<eos>"])
    model.save_pretrained(folder)
    return folder
