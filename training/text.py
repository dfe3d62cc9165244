"""The embedded model's text side: a tokenizer of whole words and a small umT5, both of the real classes."""

from pathlib import Path

from skyreels_v2_infer.modules.text_encoder import TextEncoder, clean, load_tokenizer
from training import world

VOCABULARY = 640
SENTENCES = 30_000
TEXT_LEN = 64
CONFIG = {
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "dropout_rate": 0.0,
    "feed_forward_proj": "gated-gelu",
    "pad_token_id": 0,
    "eos_token_id": 1,
    "decoder_start_token_id": 0,
}


def sentences(count: int = SENTENCES, seed: int = 11):
    """Prompts of the training split, of everything the world holds."""
    mix = world.Mix(bounce=0.1, star=0.2, diagonal=0.3, spin=0.2, growth=0.2, camera=0.1, pair=0.1)
    for i in range(count):
        yield clean(world.sample_clip(seed, i, 17, mix).prompt)


def train_tokenizer(folder: Path, count: int = SENTENCES, vocabulary: int = VOCABULARY) -> None:
    """Lowercase byte-pair pieces: whole words of the world's grammar, down to letters for words it never saw."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Replace("-", " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme="always"), pre_tokenizers.Punctuation()]
    )
    tokenizer.decoder = decoders.Metaspace()
    letters = list("▁abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"()")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<pad>", "</s>", "<unk>"],
        initial_alphabet=letters,
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences(count), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=TEXT_LEN
    )
    fast.save_pretrained(folder)


def new_encoder(tokenizer_folder: Path) -> TextEncoder:
    """A small umT5 with random weights, ready to be trained."""
    from transformers import UMT5Config, UMT5EncoderModel

    tokenizer = load_tokenizer(tokenizer_folder)
    model = UMT5EncoderModel(UMT5Config(vocab_size=-(-len(tokenizer) // 8) * 8, **CONFIG))
    return TextEncoder(model, tokenizer)
