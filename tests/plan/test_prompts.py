"""Prompts longer than a model takes: what is said of them is what the text encoder cuts off."""

import json

import pytest
from script_runs import FORCING, run

from skyreels_v2_infer import embedded
from skyreels_v2_infer.modules.text_encoder import load_tokenizer
from skyreels_v2_infer.plan.plan import make_plan
from skyreels_v2_infer.plan.prompts import clean, cut_lines

TOKENIZER = embedded.FOLDER / "df/tokenizer"
LIMIT = 64  # of the embedded model
WORDS = "a red circle moves slowly to the right on a black background and then "
LONG = WORDS * 8 + "a blue square stays still"


def test_the_words_named_are_those_that_the_encoder_does_not_read():
    plan = make_plan(5, 1, 3.0, prompt=LONG, negative_prompt=LONG, guidance_scale=2.0)
    lines = cut_lines(plan, TOKENIZER, {"text_len": LIMIT})
    assert len(lines) == 2 and lines[0].startswith("--prompt: ") and lines[1].startswith("--negative_prompt: ")
    tokenizer = load_tokenizer(TOKENIZER)
    whole, kept = (tokenizer(clean(LONG), truncation=cut, max_length=LIMIT).input_ids for cut in (False, True))
    assert f"{len(whole) - len(kept)} of {len(whole)} tokens" in lines[0]
    read = tokenizer.decode(kept, skip_special_tokens=True)
    rest = clean(LONG)[len(read) :].strip()
    assert f'from "{rest[:40]}' in lines[0]


@pytest.mark.parametrize("words", [1, 40, LIMIT - 1])
def test_texts_that_fit_are_not_mentioned(words):
    plan = make_plan(5, 1, 3.0, prompt=" ".join(["red"] * words), guidance_scale=1.0)
    assert cut_lines(plan, TOKENIZER, {"text_len": LIMIT}) == []


def test_a_prompt_that_is_cut_is_said_in_a_run_and_in_its_plan(tmp_path):
    flags = ("--model_id", "tiny", "--prompt", LONG, "--num_frames", 5, "--inference_steps", 1, "--seed", 1)
    made = run(FORCING, *flags, cwd=tmp_path)
    (line,) = [line for line in made.lines if line.startswith("--prompt: ") and " tokens " in line]
    assert line in run(FORCING, *flags, "--dry_run", cwd=tmp_path).out.splitlines()
    assert json.loads(run(FORCING, *flags, "--dry_run", "json", cwd=tmp_path).out)["cut"] == [line]
