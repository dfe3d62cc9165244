"""Prompts to embeddings: umT5's encoder (transformers' `UMT5EncoderModel`) and its tokenizer.

B prompts, L text tokens, D model width.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from skyreels_v2_infer.plan.prompts import clean

# What is taken of a config.json: other fields could choose code or take any amount of memory.
SIZES = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
BUCKETS, FARTHEST = "relative_attention_num_buckets", "relative_attention_max_distance"
FIELDS = (*SIZES, BUCKETS, FARTHEST, "layer_norm_epsilon", "feed_forward_proj", "dense_act_fn", "dropout_rate")


class TextEncoder(nn.Module):
    """umT5 with its tokenizer.

    Args:
        model: a `UMT5EncoderModel`.
        tokenizer: what `load_tokenizer` makes of the tokenizer's folder.
    """

    def __init__(self, model: nn.Module, tokenizer):
        super().__init__()
        self.model = model
        self.tokenizer = tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.encoder.final_layer_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.encoder.final_layer_norm.weight.dtype

    @torch.no_grad()
    def encode(self, prompts: str | list[str], text_len: int = 512) -> torch.Tensor:
        """Embeddings ``[B, text_len, D]`` of prompts, on the encoder's device and in its dtype.

        A prompt is cleaned and cut to text_len tokens; the embeddings after its last token are exactly zero. Only as
        many tokens as the longest prompt has are computed: padding is masked out and thrown away anyway.
        """
        tokens = self.tokenize([prompts] if isinstance(prompts, str) else prompts, text_len)
        embeddings = self.embed(*tokens)
        return F.pad(embeddings, (0, 0, 0, text_len - embeddings.shape[1]))

    def tokenize(self, prompts: list[str], text_len: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and mask, int64 ``[B, L]`` on the CPU, L being what the longest prompt has, `text_len` at most."""
        tokens = self.tokenizer(
            [clean(prompt) for prompt in prompts],
            padding="longest",
            truncation=True,
            max_length=text_len,
            return_tensors="pt",
        )
        return tokens.input_ids, tokens.attention_mask

    def embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, L, D]`` of what `tokenize` made; an encoder that is being trained learns from it."""
        mask = mask.to(self.device)
        embeddings = self.model(ids.to(self.device), mask).last_hidden_state
        return embeddings.masked_fill(mask.unsqueeze(-1) == 0, 0)


def config_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Arguments of `UMT5Config` from the shapes of its tensors, for files that come without a config.

    Args:
        shapes: by the names of `UMT5EncoderModel`.

    Raises:
        KeyError: a tensor that a size follows from is missing.
    """
    attention, feed_forward = "encoder.block.0.layer.0.SelfAttention", "encoder.block.0.layer.1.DenseReluDense"
    vocab_size, width = shapes["shared.weight"]
    buckets, heads = shapes[f"{attention}.relative_attention_bias.weight"]
    inner, _ = shapes[f"{attention}.q.weight"]
    ffn, _ = shapes[f"{feed_forward}.wi_1.weight"]
    return {
        "vocab_size": vocab_size,
        "d_model": width,
        "d_kv": inner // heads,
        "d_ff": ffn,
        "num_layers": 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block.")),
        "num_heads": heads,
        "relative_attention_num_buckets": buckets,
    }


def empty_model(config: dict) -> nn.Module:
    """A `UMT5EncoderModel` without weights, on the meta device; `config` as in its config.json."""
    from transformers import UMT5Config, UMT5EncoderModel

    taken = UMT5Config.from_dict({name: config[name] for name in FIELDS if name in config})
    exact = taken.relative_attention_num_buckets // 4  # distances that have a bucket of their own, in either direction
    if not 0 < exact < taken.relative_attention_max_distance:
        raise ValueError(f"{BUCKETS} must be at least 4, and {FARTHEST} above a quarter of it")
    with torch.device("meta"):
        model = UMT5EncoderModel(taken)
    # One module under both names of the tied embedding, so that filling one fills the other.
    model.set_input_embeddings(model.shared)
    return model


def load_tokenizer(folder: Path):
    """The tokenizer of a folder with a tokenizer.json, just as that file has it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
