"""Expands short prompts with a language model into captions like those that SkyReels-V2 was trained on.

Those captions (SkyReels-V2, section 3.1) describe the shot, the subject's appearance, actions and their order, the
surroundings, the light and the camera movement; the instruction asks for these.

``python skyreels_v2_infer/pipelines/prompt_enhancer.py --prompt "A dog in the park"`` prints the result.
"""

import argparse
import re
import sys
from pathlib import Path

if not __package__:  # run as a script; the package may not be installed
    sys.path[0] = str(Path(__file__).parents[2])

from skyreels_v2_infer.chat.local import Chat
from skyreels_v2_infer.errors import InputError, first_line

DEFAULT_MODEL = "Qwen/Qwen2.5-32B-Instruct"
MOST_TOKENS = 400  # of an answer; together with MOST_WORDS it stays within the video models' 512 tokens
MOST_WORDS = 220
FEWEST_WORDS = 5
FEWEST_DIFFERENT = 0.25  # share of distinct words; below it the answer repeats itself

INSTRUCTION = """\
You turn a short idea for a video into the caption that a careful viewer of the finished video would write.

Cover, in flowing English sentences and in this order:
1. the type of shot: close-up, medium, wide or aerial, and the angle of the camera;
2. the subject: what or who it is, with visible attributes such as age, colours, clothes, material, expression;
3. the action over a few seconds: what moves first, what follows, how fast, and where things end up;
4. the surroundings: the place, what is in front and behind, weather or season where they can be seen;
5. the light and the look: where the light comes from, its colour, the mood, the visual style;
6. the movement of the camera: still, panning, following, rising, approaching; only one, and simple.

Keep everything that the idea says, its subject, number and style above all; add only what can be seen and goes with
it. No sounds, no text on screen, no names of persons or brands that the idea does not have. Answer with the caption
alone, one paragraph of 80 to 150 words, without a title, quotation marks or remarks. If the idea is in another
language, translate it."""


class PromptEnhancer:
    """A language model that expands prompts.

    Args:
        model_name: a chat model for transformers, as a hub id or a folder.
        device_map: see transformers; "auto" fills all GPUs, then host memory.

    Raises:
        InputError: the model cannot be loaded.
    """

    def __init__(self, model_name: str = DEFAULT_MODEL, device_map: str = "auto"):
        self.model_name = model_name
        self.chat = Chat(model_name, "prompt_enhancer_model", device_map)

    def __call__(self, prompt: str) -> str:
        """The expanded prompt, one paragraph; the prompt unchanged if the answer is unusable.

        Decoding is greedy, so the same prompt always gives the same result.
        """
        return cleaned(self.chat.say(prompt, INSTRUCTION, MOST_TOKENS).text) or prompt

    def free(self) -> None:
        """Frees the model's memory; the enhancer cannot be used afterwards."""
        self.chat.free()


def cleaned(answer: str) -> str | None:
    """The caption in an answer: whole sentences, without reasoning, title and quotation marks; None if unusable."""
    text = re.sub(r"<think>.*?(</think>|$)", " ", answer, flags=re.DOTALL)
    text = re.sub(r"```\w*|\*\*|^#+ .*$", " ", text, flags=re.MULTILINE)
    # "Here is the caption:", "Caption:" and the like, at the beginning of a line of its own or of the first sentence
    text = re.sub(
        r"^\s*((sure|certainly|of course|here)\b[^\n.:!]*[.:!]|[\w ]{0,30}(caption|prompt|description):)",
        " ",
        text,
        flags=re.IGNORECASE,
    )
    text = re.sub(r"\s+", " ", text).strip(" \"'`“”‘’«»")
    words = text.split()
    if len(words) > MOST_WORDS:
        words, text = words[:MOST_WORDS], " ".join(words[:MOST_WORDS])
    # A truncated answer is cut after its last whole sentence, if there is one.
    if text and text[-1] not in ".!?。！？":
        ends = [match.end() for match in re.finditer(r"[.!?。！？](?=\s|$|[\"”’])", text)]
        text = text[: ends[-1]] if ends else text
    return text if is_text(text) else None


def is_text(text: str) -> bool:
    """Whether a text can be a caption: enough words, mostly letters, not repetitive."""
    letters = sum(c.isalpha() for c in text)
    words = text.lower().split()
    if "\N{REPLACEMENT CHARACTER}" in text or letters < 0.6 * len(text.replace(" ", "")):
        return False
    if all(c.isascii() for c in text) and len(words) < FEWEST_WORDS:
        return False
    return len(set(words)) >= FEWEST_DIFFERENT * len(words) and letters >= FEWEST_WORDS


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m skyreels_v2_infer.pipelines.prompt_enhancer",
        description="Expand a short prompt, as --prompt_enhancer does.",
    )
    parser.add_argument("--prompt", required=True, help="short description, in any language")
    parser.add_argument(
        "--prompt_enhancer_model", metavar="ID", default=DEFAULT_MODEL, help="chat model (default: %(default)s)"
    )
    args = parser.parse_args()
    try:
        print(PromptEnhancer(args.prompt_enhancer_model)(args.prompt))
    except InputError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{parser.prog}: failed: {first_line(error)}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
