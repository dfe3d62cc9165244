"""Tokenizers without a ``tokenizer.json``: sentencepiece models (``spiece.model``, or in a file of ComfyUI's), and GGUF
metadata (llama.cpp).

Both hold a vocabulary with log probabilities for a unigram tokenizer. It is built here as umT5's ``tokenizer.json`` has
it; transformers 5 would make a T5 tokenizer with another number for unknown words. sentencepiece itself is not needed.
"""

import struct
import unicodedata
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
TRAINER_FIELDS = 2**12  # that are read of the training's settings: some fifty, one for each user-defined word
UNIGRAM = 1  # model_type
LONGEST = 100  # characters of a user-defined word
BONUS = 0.1  # score of a user-defined word, for each byte after its first


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
    used = {word for word, kind in zip(words, kinds, strict=True) if kind != UNUSED}
    missing = [word for word in (END, PADDING) if word not in used]
    if missing:
        raise ValueError(f"it lacks {' and '.join(missing)}")
    changed = [word for word, kind in zip(words, kinds, strict=True) if kind == USER_DEFINED and is_normalised(word)]
    if changed:  # sentencepiece exempts them
        raise ValueError(f"its normalisation changes its user-defined word {changed[0][:LONGEST]!r}")
    unknown = kinds.index(UNKNOWN)
    vocabulary = list(as_searched(words, scores, kinds))
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


def as_searched(words: list[str], scores: list[float], kinds: list[int]) -> Iterator[tuple[str, float]]:
    """(word, score) with which the search for the most probable words finds those that sentencepiece's finds.

    It gives user-defined words a score of their own, never takes unused ones, and an unknown character costs 10 more
    than the least probable of the normal words; tokenizers' search takes the least probable of all. Measured on
    sentencepiece 0.2.3.
    """
    normal = [float(score) for score, kind in zip(scores, kinds, strict=True) if kind == NORMAL]
    least = min(normal, default=0.0)
    for word, score, kind in zip(words, scores, kinds, strict=True):
        if kind == USER_DEFINED:
            yield word, BONUS * (len(word.encode()) - 1)
        elif kind == UNUSED:
            yield f" {word}", least  # a space is never searched for: it has been replaced
        else:
            yield word, max(float(score), least)


def is_normalised(word: str) -> bool:
    """Whether umT5's normalisation (spaces, control characters, NFKC) changes a user-defined word, or it is too long.

    The compiled table is not asked: the library panics on damaged ones.
    """
    plain = word.strip(SPACE).replace(SPACE, " ")
    if len(plain) > LONGEST or not plain.isprintable() or "  " in plain or plain.endswith(" "):
        return True
    return unicodedata.normalize("NFKC", plain) != plain


def for_transformers(tokenizer, unknown: str):
    """What `unigram_tokenizer` makes, as transformers' `PreTrainedTokenizerFast`."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PADDING, eos_token=END, unk_token=unknown)


def read_sentencepiece(file: Path):
    """As `from_sentencepiece`, of a file; OSError if it cannot be read."""
    return from_sentencepiece(read_small(file))


def from_sentencepiece(model: bytes):
    """`unigram_tokenizer` of a sentencepiece model; ValueError if it is none.

    Format: ``sentencepiece_model.proto``: field 1 of the model is a piece (1 text, 2 score, 3 kind), field 2 the
    settings of its training (3 model_type, 24 treat_whitespace_as_suffix), field 3 the normalisation (2 its compiled
    table, 3 add_dummy_prefix, 5 escape_whitespaces). Repeated spaces count as one whatever its field 4 says, as in
    umT5's tokenizer.json.
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
        elif number == 2:
            trained = dict(islice(protobuf_fields(value), TRAINER_FIELDS))
            if trained.get(3, UNIGRAM) != UNIGRAM or trained.get(24, 0):
                raise ValueError("it is no unigram model with spaces in front of words")
        elif number == 3:
            normal = dict(islice(protobuf_fields(value), PIECE_FIELDS))
            charsmap = normal.get(2, b"")
            check_spaces(normal.get(3, 1) and normal.get(5, 1))
    return unigram_tokenizer(words, scores, kinds, charsmap)


def from_gguf(metadata: dict):
    """`unigram_tokenizer` of the metadata of a GGUF file; None if it has none; ValueError if that is damaged."""
    if metadata.get("tokenizer.ggml.model") != GGUF_MODEL or "tokenizer.ggml.tokens" not in metadata:
        return None
    check_spaces(metadata.get("tokenizer.ggml.add_space_prefix", True))
    words, scores, kinds = (
        list(metadata.get(f"tokenizer.ggml.{name}", ())) for name in ("tokens", "scores", "token_type")
    )
    return unigram_tokenizer(words, scores, kinds, bytes(metadata.get("tokenizer.ggml.precompiled_charsmap", b"")))


def check_spaces(marked: object) -> None:
    if not marked:
        raise ValueError(f"its words are not marked by {SPACE} for the space in front of each, the first as well")


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
