"""Tokenizers without a ``tokenizer.json``: sentencepiece models (``spiece.model``, or in a file of ComfyUI's), and GGUF
metadata (llama.cpp).

Both hold a vocabulary with log probabilities for a unigram tokenizer. It is built here as umT5's ``tokenizer.json`` has
it; transformers 5 would make a T5 tokenizer with another number for unknown words. sentencepiece itself is not needed.
"""

import struct
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from skyreels_v2_infer.media.files import read_small

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of words, in sentencepiece and in GGUF
SPACE = "▁"
GGUF_MODEL = "t5"  # what GGUF metadata calls a unigram vocabulary
END, PADDING = "</s>", "<pad>"
MOST_FIELDS = 2**20  # of a sentencepiece model; umT5's has 256,304
PIECE_FIELDS = 16  # that are read of a piece, which has three, and of the normalisation, which has six


def unigram_tokenizer(words: list[str], scores: list[float], kinds: list[int], charsmap: bytes = b""):
    """The `tokenizers.Tokenizer` with a vocabulary, and its word for unknown ones; it ends each text with ``</s>``.

    Args:
        scores: log probabilities. kinds: see above.
        charsmap: sentencepiece's compiled normalisation; empty: none.

    Raises:
        ValueError: the vocabulary cannot be used.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    if not len(words) == len(scores) == len(kinds) or kinds.count(UNKNOWN) != 1:
        raise ValueError("it needs a score and a kind for each word, and one word for unknown ones")
    missing = [word for word in (END, PADDING) if word not in words]
    if missing:
        raise ValueError(f"it lacks {' and '.join(missing)}")
    unknown = kinds.index(UNKNOWN)
    vocabulary = list(zip(words, map(float, scores), strict=True))
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=unknown, byte_fallback=BYTE in kinds))
    steps = [normalizers.Precompiled(charsmap)] if charsmap else []
    steps += [normalizers.Strip(left=False, right=True), normalizers.Replace(Regex(" {2,}"), SPACE)]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {END}", special_tokens=[(END, words.index(END))]
    )
    special = [word for word, kind in zip(words, kinds, strict=True) if kind in (CONTROL, UNKNOWN)]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in special])
    return tokenizer, words[unknown]


def for_transformers(tokenizer, unknown: str):
    """What `unigram_tokenizer` makes, as transformers' `PreTrainedTokenizerFast`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PADDING, eos_token=END, unk_token=unknown)


def read_sentencepiece(file: Path):
    """As `from_sentencepiece`, of a file; OSError if it cannot be read."""
    return from_sentencepiece(read_small(file))


def from_sentencepiece(model: bytes):
    """`unigram_tokenizer` of a sentencepiece model; ValueError if it is none.

    Format: ``sentencepiece_model.proto``: field 1 of the model is a piece (1 text, 2 score, 3 kind), field 3 the
    normalisation, whose field 2 is its compiled table.
    """
    words, scores, kinds, charsmap = [], [], [], b""
    for count, (number, value) in enumerate(protobuf_fields(model)):
        if count == MOST_FIELDS:
            raise ValueError(f"it has more than {MOST_FIELDS:,} fields")
        if number == 1:
            piece = dict(islice(protobuf_fields(value), PIECE_FIELDS))
            words.append(piece.get(1, b"").decode())
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            kinds.append(piece.get(3, NORMAL))
        elif number == 3:
            charsmap = dict(islice(protobuf_fields(value), PIECE_FIELDS)).get(2, b"")
    return unigram_tokenizer(words, scores, kinds, charsmap)


def from_gguf(metadata: dict):
    """`unigram_tokenizer` of the metadata of a GGUF file; None if it has none; ValueError if that is damaged."""
    if metadata.get("tokenizer.ggml.model") != GGUF_MODEL or "tokenizer.ggml.tokens" not in metadata:
        return None
    words, scores, kinds = (
        list(metadata.get(f"tokenizer.ggml.{name}", ())) for name in ("tokens", "scores", "token_type")
    )
    return unigram_tokenizer(words, scores, kinds, bytes(metadata.get("tokenizer.ggml.precompiled_charsmap", b"")))


def protobuf_fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of the fields of a protobuf message: whole numbers, and bytes for all else."""

    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number in it has no end")

    try:
        while at < len(data):
            key = varint()
            if key & 7 == 0:
                yield key >> 3, varint()
                continue
            length = varint() if key & 7 == 2 else {1: 8, 5: 4}[key & 7]
            if length > len(data) - at:
                raise ValueError("it ends within a field")
            yield key >> 3, data[at : at + length]
            at += length
    except (IndexError, KeyError) as error:
        raise ValueError("it is no protobuf message") from error
