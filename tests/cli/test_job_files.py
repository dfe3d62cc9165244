"""Rows of a job file and sweeps become the settings of videos; every invalid row is named, with what is wrong."""

import io
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.cli import groups, job_files
from skyreels_v2_infer.cli.batch import InvalidRowsError
from skyreels_v2_infer.cli.sweep import Sweep, slurm_shard, swept
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import images

TINY = ["--model_id", "tiny"]
BOTH = pytest.mark.parametrize("parse", [cli.parse_generate, cli.parse_diffusion_forcing])


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def parsed(content: str | bytes, *argv: str, name: str = "jobs.jsonl", parse=cli.parse_diffusion_forcing):
    Path(name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return parse(["--jobs", name, *TINY, *argv])


def of_rows(*rows: dict, argv=(), **more):
    return parsed("".join(json.dumps(row) + "\n" for row in rows), *argv, **more)


def errors(jobs) -> list[str]:
    assert all((row.settings is None) == (row.error is not None) for row in jobs.rows)
    return [f"{row.source}: {row.error}" for row in jobs.rows if row.error is not None]


def refusal(capsys, *argv: str, parse=cli.parse_generate) -> str:
    with pytest.raises(SystemExit) as stop:
        parse([*argv])
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") == 1
    return err.partition(": ")[2][:-1]


# What rows say


@BOTH
def test_a_row_and_the_command_line_give_the_flags_of_a_video(parse):
    argv = ["--num_frames", "17", "--guidance_scale=3", "--teacache", "--outdir", "out"]
    rows = {"prompt": "a swan", "seed": 3}, {"prompt": "b", "seed": 4, "num_frames": 5, "teacache": False}
    one, two = of_rows(*rows, argv=argv, parse=parse).rows
    alone = parse([*TINY, *argv, "--prompt", "a swan", "--seed", "3", "--name", "a-swan_3", "--resume"])
    assert one.settings == alone
    assert (two.settings.num_frames, two.settings.teacache, two.settings.guidance_scale) == (5, False, 3.0)
    assert parse([*two.command, "--resume"]) == two.settings
    assert [row.source for row in (one, two)] == ["jobs.jsonl:1", "jobs.jsonl:2"]


def test_values_have_the_types_of_the_command_line():
    rows = (
        {"prompt": ["a swan", "a crow"], "num_frames": 49.0, "seed": 1},  # as tables of numbers write them
        {"prompt": "x", "sigmas": [1, 0.5], "seed": "2", "negative_prompt": ""},
        {"prompt": None, "num_frames": None, "seed": 3},
        {"story": [{"start": 0, "prompt": "one"}, {"start": 33, "prompt": "two"}], "num_frames": 49, "seed": 4},
    )
    two, sigmas, defaults, story = (row.settings for row in of_rows(*rows, argv=["--num_frames", "17"]).rows)
    assert (two.prompts, two.num_frames) == (("a swan", "a crow"), 49)
    assert (sigmas.sigmas, sigmas.seed, sigmas.negative_prompt) == ((1.0, 0.5), 2, "")
    assert defaults.num_frames == 33 and defaults.prompt.startswith("A red circle")  # not those of the command line
    assert [scene.prompt for scene in story.story] == ["one", "two"]


def test_a_lora_of_a_row_replaces_those_of_the_command_line():
    for name in "abc":
        Path(f"{name}.safetensors").touch()
    rows = {"prompt": "x", "lora": ["b.safetensors:0.5", "c.safetensors"]}, {"prompt": "y", "lora": []}, {"prompt": "z"}
    loras = [row.settings.lora for row in of_rows(*rows, argv=["--lora", "a.safetensors"]).rows]
    assert [[(lora.name, lora.strength) for lora in some] for some in loras] == [
        [("b", 0.5), ("c", 1.0)],
        [],
        [("a", 1.0)],
    ]


def test_csv_with_quotes_and_empty_cells():
    text = '\ufeffprompt,seed,teacache\r\n"a swan, white\nand calm",3,TRUE\r\n,,\r\ncrow,,false\r\n'
    one, two = parsed(text, "--seed", "9", name="jobs.CSV").rows
    assert (one.settings.prompt, one.settings.seed, one.settings.teacache) == ("a swan, white\nand calm", 3, True)
    assert (two.settings.seed, two.settings.teacache, two.source) == (9, False, "jobs.CSV:4")


def test_a_list_of_prompts(monkeypatch):
    text = "a swan\r\n\n  a crow, black \n"
    assert [row.settings.prompt for row in parsed(text, name="prompts").rows] == ["a swan", "a crow, black"]
    for content in (text, '\n{"prompt": "a swan"}\n{"prompt": "a crow, black"}'):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content.encode())))
        rows = cli.parse_generate(["--jobs", "-", *TINY]).rows
        assert [row.settings.prompt for row in rows] == ["a swan", "a crow, black"]
        assert rows[0].source.startswith("stdin:")


# What is wrong with rows


def test_every_bad_row_is_named_in_one_line():
    Path("text.png").write_text("no picture")
    Path("here.png").mkdir()
    rows = [
        '{"promt": "a swan"}',
        '{"prompt": "fine", "seed": 1}',
        '{"num_frames": 50}',
        "",
        '{"teacache": "yes"}',
        '{"seed": true}',
        '{"prompt": {"a": 1}}',
        '{"image": "text.png"}',
        '{"image": "here.png"}',
        '{"outdir": "elsewhere"}',
        '{"resume": true}',
        '{"help": true}',
        '{"prompt": "a", "prompt": "b"}',
        '{"guidance_scale": NaN}',
        '["a swan"]',
        '{"prompt": "a swan"',
        '{"seed": [1, 2]}',
        '{"prompt": "again", "name": "fine_1"}',
        "[" * 100_000,
        '{"lora": "none.safetensors"}',
        '{"name": "../up"}',
        '{"video_path": "none.mp4"}',
        '{"frames_dir": "elsewhere"}',
        '{"--seed": 3}',
    ]
    found = errors(parsed("\n".join(rows)))
    lines = dict(line.removeprefix("jobs.jsonl:").split(": ", 1) for line in found)
    assert [*map(int, lines)] == [number for number, row in enumerate(rows, start=1) if row and "fine" not in row[:20]]
    expected = {
        1: "--promt a swan: unknown flag, did you mean --prompt?",
        3: "--num_frames 50: must be 4n+1, nearest are 49 and 53",
        5: "--teacache yes: must be true or false",
        6: "--seed true: must be",
        7: '--prompt {"a": 1}: must be a text',
        8: "--image text.png: must be a complete picture",
        9: "--image here.png: must be a file",
        10: "--outdir elsewhere: belongs on the command line",
        11: "--resume true: belongs on the command line",
        12: "--help true: unknown flag",
        13: "prompt is given twice",
        14: "NaN is no number",
        15: "must be a JSON object",
        16: "is no JSON object (Expecting ',' delimiter, column 20)",
        17: "--seed [1, 2]: takes one value",
        18: "--name fine_1: is that of jobs.jsonl:2",
        19: "is nested too deeply",
        20: "--lora none.safetensors: must be an existing file",
        21: "--name ../up: must be letters",
        22: "--video_path none.mp4: must be an existing file",
        23: "--frames_dir elsewhere: belongs on the command line",
        24: "----seed 3: keys are flags without dashes: seed",
    }
    for line, start in expected.items():
        assert lines[str(line)].startswith(start), lines[str(line)]
    assert not Path("elsewhere").exists()


def test_a_fault_of_all_rows_is_one_line():
    jobs = of_rows({"prompt": "a"}, {"prompt": "b"}, argv=["--name", "{none}_{prompt}"])
    (line,) = InvalidRowsError(jobs.rows).lines
    assert line.startswith("all 2 rows: --name {none}_{prompt}: there is no field {none}")
    jobs = of_rows({"num_frames": 6}, {"num_frames": 6}, {"prompt": "a"})
    assert [line.split(": ")[0] for line in InvalidRowsError(jobs.rows).lines] == ["jobs.jsonl:1", "jobs.jsonl:2"]
    (line,) = InvalidRowsError(of_rows({"num_frames": 6}).rows).lines
    assert line.startswith("jobs.jsonl:1: ")


@pytest.mark.parametrize("word", ["--outdir=elsewhere", "--outdir", "-h", "-"])
def test_a_list_in_a_row_cannot_bring_flags(word):
    """Several prompts are several words of a command, and a row must not choose where files are written."""
    assert "no text may begin with -" in errors(of_rows({"prompt": ["a", word]}))[0]
    assert "no text may begin with -" in errors(of_rows({"prompt": [word, "a"]}))[0]
    (row,) = of_rows({"prompt": [word]}, argv=["--outdir", "out"]).rows
    assert (row.settings.prompt, row.settings.outdir) == (word, Path("out"))


def test_a_row_for_the_other_script(capsys):
    (line,) = errors(of_rows({"overlap_history": 17}, parse=cli.parse_generate))
    assert line == "jobs.jsonl:1: --overlap_history 17: only generate_video_df.py has this flag"
    (line,) = errors(of_rows({"prompt": ["a", "b"]}, parse=cli.parse_generate))
    assert line.endswith("takes one value, not a list")


def test_two_rows_with_one_name():
    rows = {"prompt": "a swan", "seed": 3}, {"prompt": "A swan!", "seed": 3, "guidance_scale": 5}
    (line,) = errors(of_rows(*rows))
    assert "jobs.jsonl:2: --name a-swan_3: is that of jobs.jsonl:1;" in line and "{guidance_scale}" in line
    pattern = line.partition('--name "')[2].rstrip('"')
    assert not errors(of_rows(*rows, argv=["--name", pattern]))
    assert not errors(of_rows(rows[0], rows[1] | {"name": "other"}))


def test_a_bad_csv(capsys):
    assert "jobs.csv:3: has 3 cells, the header 2" in errors(parsed("prompt,seed\na,1\nb,2,3\n", name="jobs.csv"))
    for rows, reason in (('a\n"b\nc\n', "unexpected end of data"), ('a\n"b" x\nc\n', "',' expected after '\"'")):
        Path("jobs.csv").write_text(f"prompt\n{rows}")
        line = refusal(capsys, "--jobs", "jobs.csv", *TINY, "--keep_going")  # not only the rows before
        assert line == f"--jobs jobs.csv: row 3 is no CSV ({reason})"


@pytest.mark.parametrize(
    ("header", "legal"),
    [
        ("prompt;seed", "must be separated by commas, not by ;"),
        ("prompt\tseed", "must be separated by commas, not by tabs"),
        ("Prompt,sed", "Prompt: unknown flag, did you mean --prompt?; sed: unknown flag, did you mean --seed?"),
        ("prompt,,seed", "column 2 has no name"),
        ("prompt,seed,prompt", "prompt: is there twice"),
        ("prompt,outdir", "outdir: belongs on the command line, for all rows"),
    ],
)
def test_a_header_is_wrong_once_whatever_the_number_of_rows(header, legal, capsys):
    Path("jobs.csv").write_text(f"{header}\n" + "a,1,2\n" * 3)
    assert refusal(capsys, "--jobs", "jobs.csv", *TINY) == f"--jobs jobs.csv: row 1: {legal}"


def test_empty_columns_of_a_spreadsheet():
    assert [row.settings.seed for row in parsed("prompt,seed,,\na,1,,\nb,2\n", name="jobs.csv").rows] == [1, 2]
    assert "has 4 cells, the header 2" in errors(parsed("prompt,seed,,\na,1,,x\n", name="jobs.csv"))[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_ends_of_lines_of_all_systems(end):
    for name, lines in (
        ("a.txt", ("a swan", "a crow", "")),
        ("a.csv", ("prompt", "a swan", "a crow")),
        ("a.jsonl", ('{"prompt": "a swan"}', "", '{"prompt": "a crow"}')),
    ):
        assert [row.settings.prompt for row in parsed(end.join(lines), name=name).rows] == ["a swan", "a crow"]


@pytest.mark.parametrize(
    ("content", "legal"),
    [
        ('[{"prompt": "a"}]', "is one JSON array; must have an object a line, as jq -c '.[]' writes them"),
        ('[\n {"prompt": "a"},\n {"prompt": "b"}\n]\n', "is one JSON array; must have"),
        ('{\n "prompt": "a"\n}\n', "is one JSON value over several lines; must have an object a line, as jq -c "),
    ],
)
def test_json_that_is_no_json_lines(content, legal, capsys):
    Path("jobs.json").write_text(content)
    assert refusal(capsys, "--jobs", "jobs.json", *TINY).startswith(f"--jobs jobs.json: {legal}")


@pytest.mark.parametrize(
    ("name", "content", "legal"),
    [
        ("empty.jsonl", b"", "has no rows"),
        ("blank.txt", b"\n \n", "has no rows"),
        ("header.csv", b"prompt,seed\n", "has no rows"),
        ("twice.csv", b"seed,seed\n1,2\n", "seed"),
        ("latin.txt", "a\ncrème".encode("latin-1"), "must be text in UTF-8; line 2 is not"),
        ("excel.csv", "prompt".encode("utf-16"), "must be text in UTF-8; line 1 is not"),
    ],
)
def test_a_file_without_usable_rows(name, content, legal, capsys):
    Path(name).write_bytes(content)
    line = refusal(capsys, "--jobs", name, *TINY)
    assert line.startswith("--jobs") and legal in line


def test_files_that_never_end_are_not_read(capsys, monkeypatch):
    assert "no such file" in refusal(capsys, "--jobs", "none.jsonl").lower()
    os.mkfifo("pipe")
    for path in ("pipe", "/dev/zero", "."):
        assert "regular file" in refusal(capsys, "--jobs", path)
    Path("long.txt").write_text("a swan\n" * 10)
    for limit, legal in (("MOST_ROWS", "has more than 5 rows"), ("MOST_BYTES", "it has more than 0 KB")):
        monkeypatch.setattr(job_files, limit, 5)
        assert legal in refusal(capsys, "--jobs", "long.txt")


def test_a_picture_at_an_address_is_downloaded_once(monkeypatch):
    Image.new("RGB", (64, 64)).save("picture.png")
    asked = []
    monkeypatch.setattr(
        "skyreels_v2_infer.cli.batch.download_image", lambda url, name: asked.append(url) or Path("picture.png")
    )
    monkeypatch.setattr(images, "download_image", None)
    address = "https://example.com/a.png"
    rows = of_rows(*({"prompt": "x", "image": address, "seed": seed} for seed in range(3))).rows
    assert asked == [address] and {row.settings.image for row in rows} == {Path("picture.png")}
    assert f"--image={address}" in rows[0].command


def test_a_video_at_an_address_is_downloaded(monkeypatch):
    Path("clip").mkdir()
    Image.new("RGB", (64, 64)).save("clip/1.png")
    monkeypatch.setattr("skyreels_v2_infer.cli.batch.download_video", lambda url, name: Path("clip"))
    jobs = of_rows(
        {"prompt": "x", "video_path": "https://example.com/a.mp4", "overlap_history": 17},
        parse=cli.parse_diffusion_forcing,
    )
    assert errors(jobs) == [] and jobs.rows[0].settings.video_path == Path("clip")


def test_an_address_on_the_command_line_is_downloaded_once_as_it_is_written(monkeypatch):
    Image.new("RGB", (64, 64)).save("picture.png")
    asked = []
    monkeypatch.setattr(
        "skyreels_v2_infer.cli.batch.download_image", lambda url, name: asked.append(url) or Path("picture.png")
    )
    monkeypatch.setattr(images, "download_image", None)
    address = "https://example.com/a.png?u=https://example.org/b.png"
    for argv in (["--image", address], [f"--image={address}"]):
        asked.clear()
        rows = of_rows(*({"prompt": "x", "seed": seed} for seed in range(3)), argv=argv).rows
        assert asked == [address] and {row.settings.image for row in rows} == {Path("picture.png")}
        assert f"--image={address}" in rows[0].command


def test_an_address_that_does_not_answer_is_the_error_of_its_rows(monkeypatch):
    asked = []

    def download(url, name):
        asked.append(url)
        raise OSError(f"--{name} {url}: cannot be downloaded (connection refused)")

    monkeypatch.setattr("skyreels_v2_infer.cli.batch.download_image", download)
    address = "http://127.0.0.1:1/a.png"
    jobs = of_rows({"prompt": "x", "image": address}, {"prompt": "y"}, {"prompt": "z", "image": address})
    said = f"--image {address}: cannot be downloaded (connection refused)"
    assert errors(jobs) == [f"jobs.jsonl:{line}: {said}" for line in (1, 3)]
    assert asked == [address] and jobs.rows[1].settings.prompt == "y"


# Seeds


def test_rows_without_a_seed_get_one_of_their_own_that_stays():
    def seeds(*rows, argv=()):
        return [row.settings.seed for row in of_rows(*rows, argv=argv).rows]

    swan, crow = {"prompt": "a swan"}, {"prompt": "a crow"}
    found = seeds(swan, crow, swan)
    assert len(set(found)) == 3 and all(0 <= seed < 2**32 for seed in found)
    assert seeds(crow, swan, swan) == [found[1], found[0], found[2]]  # in another order
    assert seeds(swan | {"guidance_scale": 5}) == found[:1]  # to compare settings with the same noise
    assert seeds(swan, argv=["--sweep", "guidance_scale=1,2"]) == found[:1] * 2
    assert seeds(swan | {"seed": 7}, swan) == [7, found[0]]


@BOTH
def test_correcting_a_row_leaves_the_seeds_of_the_others(parse):
    def last_seed(*rows, argv=()):
        return of_rows(*rows, argv=["--keep_going", *argv], parse=parse).rows[-1].settings.seed

    swan = {"prompt": "a swan"}
    first, second = last_seed(swan), last_seed(swan, swan)
    for wrong in ({"num_frames": 3}, {"num_frame": 17}, {"fps": 24, "image": "none.png"}):
        assert last_seed(swan | wrong, swan) == second != first
        assert last_seed(wrong, {}, argv=["--prompt", "a swan"]) == second
        assert last_seed(swan | wrong | {"seed": 1}, swan) == first


# Sweeps


def test_a_sweep_multiplies_every_row():
    argv = ["--sweep", "guidance_scale=4,6", "seed=1..2"]
    rows = of_rows({"prompt": "a swan"}, {"prompt": "a crow"}, argv=argv).rows
    assert [(r.settings.prompt, r.settings.guidance_scale, r.settings.seed) for r in rows] == [
        (prompt, scale, seed) for prompt in ("a swan", "a crow") for scale in (4.0, 6.0) for seed in (1, 2)
    ]
    assert rows[5].settings.name == "a-crow_4_2" and [row.number for row in rows] == [*range(1, 9)]
    assert rows[5].source == "jobs.jsonl:2 (guidance_scale=4 seed=2)" and rows[5].swept["seed"] == "2"


def test_a_sweep_of_the_command_alone():
    rows = cli.parse_generate([*TINY, "--prompt", "a swan", "--sweep", 'prompt=["a, b", "c"]', "seed=3..1"]).rows
    assert [(row.settings.prompt, row.settings.seed) for row in rows] == [
        (prompt, seed) for prompt in ("a, b", "c") for seed in (3, 2, 1)
    ]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("shift=0.5..2..0.5", ["0.5", "1.0", "1.5", "2.0"]),
        ("shift=1,2..3,7", ["1", "2", "3", "7"]),
        ("shift=5..1..-2", ["5", "3", "1"]),
        ("shift=0..1..0.3", ["0.0", "0.3", "0.6", "0.9"]),
        ("teacache=true,false", ["true", "false"]),
        ('prompt=["a, b", null, 3]', ["a, b", None, 3]),
    ],
)
def test_values_of_a_sweep(text, values):
    assert swept(text) == Sweep(text.partition("=")[0], tuple(values))


@pytest.mark.parametrize(
    ("sweep", "legal"),
    [
        ("seed", "must be FLAG=VALUES"),
        ("seed=", "has an empty value"),
        ("seed=1,,2", "has an empty value"),
        ("seed=1..9..-1", "never ends"),
        ("seed=1..9..0", "never ends"),
        ("seed=1..99999999", "more than 10000 values"),
        ("prompt=[1", "is no JSON list"),
        ("resolution=540P,720P,540P", "540P is there twice"),
        ("prompt=[]", "has no values"),
        ("outdir=a,b", "belongs on the command line"),
        ("sed=1,2", "did you mean --seed?"),
    ],
)
def test_bad_sweeps(sweep, legal, capsys):
    line = refusal(capsys, *TINY, "--sweep", sweep)
    assert line.startswith("--sweep ") and legal in line


def test_a_flag_is_swept_once_and_not_by_rows_as_well(capsys):
    assert "twice" in refusal(capsys, *TINY, "--sweep", "seed=1", "--sweep", "seed=2")
    (line,) = errors(of_rows({"seed": 1}, argv=["--sweep", "seed=3"]))
    assert line == "jobs.jsonl:1 (seed=3): --seed 3: --sweep sets this flag for all rows"
    assert "at most 100000" in refusal(capsys, *TINY, "--sweep", "seed=1..1000", "shift=1..1000")


# Names


def test_names_by_a_pattern(capsys):
    rows = {"prompt": "a white swan", "seed": 3, "image": "docs.png"}, {"prompt": "a crow", "name": "bird"}
    Image.new("RGB", (64, 64)).save("docs.png")
    argv = ["--name", "{row:03}-{prompt:.7}_{guidance_scale}_{image}_{model_id}"]
    made = [row.settings.name for row in of_rows(*rows, argv=argv).rows]
    assert made == ["001-a-white_2_docs_tiny", "bird"]
    one = cli.parse_generate([*TINY, "--prompt", "a crow", "--name", "{prompt}-{inference_steps}"])
    assert one.name == "{prompt}-{inference_steps}"
    assert "there is no field {row}" in refusal(capsys, *TINY, "--name", "{row}")
    assert "there is no field {outdir}" in refusal(capsys, *TINY, "--name", "{outdir}")


@pytest.mark.parametrize(
    ("sweep", "names"),
    [
        (["resolution=540P,720P"], ["540P", "720P"]),
        (["lora=a.safetensors,a.safetensors:0.5"], ["a.safetensors", "a.safetensors-0.5"]),
        (["lora=a.safetensors,b.safetensors"], ["a", "b"]),
        (["image=red.png,folder/blue.png"], ["red", "blue"]),
        (["image=red.png,folder/red.png"], ["red.png", "folder-red.png"]),
        (['sigmas=["1,0.5", "1,0.75,0.5"]'], ["1-0.5", "1-0.75-0.5"]),
        (["preset=4steps"], ["4steps"]),
        (["preset=4steps", "guidance_scale=1,2"], ["4steps_1", "4steps_2"]),
        (['negative_prompt=["a/b", "a b", "c"]'], ["a-b-07f4401c", "a-b-806c5cd3", "c"]),
        (["shift=1.0000001,1.0000002"], ["1.0000001", "1.0000002"]),
    ],
)
def test_names_of_a_sweep_tell_its_values_apart(sweep, names):
    for name in ("a.safetensors", "b.safetensors"):
        Path(name).touch()
    Path("folder").mkdir()
    for name in ("red.png", "folder/red.png", "folder/blue.png"):
        Image.new("RGB", (64, 64)).save(name)
    rows = of_rows({"prompt": "x", "seed": 1}, argv=["--sweep", *sweep]).rows
    assert not [row.error for row in rows if row.error]
    assert [row.settings.name for row in rows] == [f"x_{name}_1" for name in names]


def test_equal_values_of_a_sweep_are_one_video():
    (line,) = errors(of_rows({"prompt": "x", "seed": 1}, argv=["--sweep", "guidance_scale=1,1.0"]))
    assert "is that of jobs.jsonl:1 (" in line


def test_a_long_or_broken_text_of_a_sweep():
    texts = ["x" * 5000, "x" * 5001, "a\nb"]
    rows = of_rows({"prompt": "x", "seed": 1}, argv=["--sweep", f"negative_prompt={json.dumps(texts)}"]).rows
    assert not [row.error for row in rows if row.error]
    assert len({row.settings.name for row in rows}) == 3 and all(len(row.settings.name) < 40 for row in rows)
    assert rows[2].source == r"jobs.jsonl:1 (negative_prompt=a\nb)" and rows[2].settings.negative_prompt == "a\nb"


# Which rows are made


def test_a_shard_is_every_nth_row():
    rows = [{"prompt": "x", "seed": seed} for seed in range(5)]
    rows[1] = {"promt": "x"}
    parts = [of_rows(*rows, argv=["--shard", f"{i}/2"]).mine for i in (1, 2)]
    assert [[row.number for row in part] for part in parts] == [[1, 3, 5], [2, 4]]


ARRAY = {"ID": "7", "MIN": "3", "MAX": "11", "COUNT": "5", "STEP": "2"}


def slurm(**values: str) -> dict[str, str]:
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in values.items()}


def test_the_shard_of_a_slurm_array(monkeypatch):
    assert slurm_shard({}) is None
    assert slurm_shard(slurm(**ARRAY)) == (3, 5)
    assert slurm_shard(slurm(ID="0", MIN="0", MAX="9", COUNT="10", STEP="1")) == (1, 10)
    found = {slurm_shard(slurm(**ARRAY | {"ID": str(task)})) for task in range(3, 12, 2)}
    assert found == {(i, 5) for i in range(1, 6)}
    for wrong in ({"ID": "8"}, {"ID": "13"}, {"MAX": "20"}, {"COUNT": "x"}, {"STEP": "0"}):
        with pytest.raises(InputError, match="--shard: "):
            slurm_shard(slurm(**ARRAY | wrong))
    for name, value in slurm(**ARRAY).items():
        monkeypatch.setenv(name, value)
    rows = [{"prompt": "x", "seed": seed} for seed in range(7)]
    assert [row.number for row in of_rows(*rows).mine] == [3]
    assert [row.number for row in of_rows(*rows, argv=["--shard", "1/1"]).mine] == [*range(1, 8)]


@pytest.mark.parametrize(
    ("argv", "legal"),
    [
        ("--shard 0/3 --sweep seed=1", "must be I/N"),
        ("--shard 4/3 --sweep seed=1", "must be I/N"),
        ("--shard 1/3", "has no effect without --jobs or --sweep"),
        ("--keep_going", "has no effect without --jobs or --sweep"),
        ("--gpus_per_job 2", "has no effect without --jobs or --sweep"),
        ("--gpus_per_job 2 --sweep seed=1", "needs torchrun"),
        ("--use_usp --sweep seed=1", "needs torchrun"),
        ("--ray", "has no effect without --jobs or --sweep"),
        ("--ray --sweep seed=1 --use_usp", "not with --ray"),
        ("--ray --sweep seed=1 --device cuda:1", "--device cuda:1"),
        ("--ray here --sweep seed=1", "--ray here: must be HOST:PORT"),
        ("--ray here:0 --sweep seed=1", "--ray here:0: must be HOST:PORT"),
        ("--ray ray://here:10001 --sweep seed=1", "start the script on a machine of the cluster"),
    ],
)
def test_flags_of_the_batch(argv, legal, capsys):
    assert legal in refusal(capsys, *TINY, *argv.split())


def test_groups_of_processes(monkeypatch, capsys):
    for name, value in {"RANK": "3", "LOCAL_RANK": "3", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for argv, group in (((), 1), (("--gpus_per_job", "2"), 2), (("--use_usp",), 4)):
        jobs = of_rows({"prompt": "x", "seed": 1}, argv=argv)
        assert (jobs.group, jobs.rows[0].settings.use_usp) == (group, group > 1)
        assert "--use_usp" not in jobs.rows[0].command
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert "must divide" in refusal(capsys, *TINY, "--sweep", "seed=1", "--gpus_per_job", "3")
    assert "--device cuda:1" in refusal(capsys, *TINY, "--sweep", "seed=1", "--device", "cuda:1")
    assert "stdin" in refusal(capsys, *TINY, "--jobs", "-")


def test_groups_of_a_cluster(monkeypatch, capsys):
    monkeypatch.setattr(groups, "find_spec", lambda name: name)
    for argv, address, group in (((), "local", 1), (("10.0.0.1:6379", "--gpus_per_job", "2"), "10.0.0.1:6379", 2)):
        jobs = of_rows({"prompt": "x", "seed": 1}, argv=["--ray", *argv])
        assert (jobs.ray, jobs.group, jobs.rows[0].settings.use_usp) == (address, group, group > 1)
        assert not any("ray" in word for word in jobs.rows[0].command)
    assert errors(of_rows({"prompt": "x", "ray": "auto"}))[0].endswith("belongs on the command line, for all rows")
    monkeypatch.setattr(groups, "find_spec", lambda name: None)
    assert refusal(capsys, *TINY, "--sweep", "seed=1", "--ray").endswith(
        "the extra ray of this package: pip install ray"
    )
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert "--ray local: not under torchrun" in refusal(capsys, *TINY, "--sweep", "seed=1", "--ray")


def test_replay_gives_the_rest(monkeypatch):
    settings = {"model_id": "tiny", "prompt": "a swan", "seed": 5, "num_frames": 17, "guidance_scale": 3.0}
    about = {"format": 1, "script": "generate_video_df.py", "settings": settings}
    Path("made.json").write_text(json.dumps(about))
    rows = {"guidance_scale": 4}, {"prompt": "a crow"}
    one, two = (row.settings for row in of_rows(*rows, argv=["--replay", "made.json"]).rows)
    assert (one.prompt, one.seed, one.num_frames, one.guidance_scale) == ("a swan", 5, 17, 4.0)
    assert (two.prompt, two.seed, two.guidance_scale) == ("a crow", 5, 3.0)
