"""Names of the files that a run writes."""

import re
import unicodedata
import zlib


def output_stem(prompt: str, seed: int | str) -> str:
    """A file name without extension, from prompt and seed: at most 60 characters of ``a-z 0-9 - _``.

    A prompt without such letters is represented by its checksum. The name ends in ``_seed``, so it is neither reserved
    on Windows nor does it end in a dot.
    """
    # Compatibility decomposition keeps the letters of "naïve" and of full-width Latin.
    letters = "".join(c for c in unicodedata.normalize("NFKD", prompt.lower()) if not unicodedata.combining(c))
    words = re.findall("[a-z0-9]+", re.sub("['’]", "", letters))
    if not re.search("[a-z]", "".join(words)):
        return f"video-{zlib.crc32(prompt.encode()):08x}_{seed}"
    slug = words[0][:40]
    for word in words[1:]:
        if len(slug) + 1 + len(word) > 40:
            break
        slug += f"-{word}"
    return f"{slug}_{seed}"
