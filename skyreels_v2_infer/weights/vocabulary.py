"""Tokenizers that come inside a weight file: as a sentencepiece model (ComfyUI) or as GGUF metadata (llama.cpp).

Both hold a vocabulary with log probabilities for a unigram tokenizer. It is built here as umT5's ``tokenizer.json`` has
it; transformers 5 would make a T5 tokenizer with another number for unknown words.
"""

import struct
from collections.abc import Iterator

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of words, in sentencepiece and in GGUF
SPACE = "▁"
GGUF_MODEL = "t5"  # what GGUF metadata calls a unigram vocabulary
END, PADDING = "</s>", "<pad>"


def unigram_tokenizer(words: list[str], scores: list[float], kinds: list[int], charsmap: bytes = b""):
    """The tokenizer with a vocabulary, as transformers' `PreTrainedTokenizerFast`; it ends each text with ``</s>``.

    Args:
        scores: log probabilities. kinds: see above.
        charsmap: sentencepiece's compiled normalisation; empty: none.

    Raises:
        ValueError: the vocabulary cannot be used.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

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
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PADDING, eos_token=END, unk_token=words[unknown]
    )


def from_sentencepiece(model: bytes):
    """The tokenizer of a sentencepiece model; ValueError if it is none.

    Format: ``sentencepiece_model.proto``: field 1 of the model is a piece (1 text, 2 score, 3 kind), field 3 the
    normalisation, whose field 2 is its compiled table.
    """
    words, scores, kinds, charsmap = [], [], [], b""
    for number, value in protobuf_fields(model):
        if number == 1:
            piece = dict(protobuf_fields(value))
            words.append(piece.get(1, b"").decode())
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            kinds.append(piece.get(3, NORMAL))
        elif number == 3:
            charsmap = dict(protobuf_fields(value)).get(2, b"")
    return unigram_tokenizer(words, scores, kinds, charsmap)


def from_gguf(metadata: dict):
    """The tokenizer in the metadata of a GGUF file; None if there is none of this kind; ValueError if it is damaged."""
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
