"""--config: flags from a file, which the command line and the rows of a job file override."""

import json

import pytest
from script_runs import FORCING, GENERATE

from skyreels_v2_infer.cli import arguments as cli

LAB = {"model_id": "tiny", "num_frames": 17, "guidance_scale": 3, "prompt": "a white ball", "seed": 5, "outdir": "lab"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, values: object) -> str:
    """JSON, which is YAML as well."""
    with open(name, "w") as file:
        json.dump(values, file)
    return name


def refusal(parse, *argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.count("\n") == 1
    return err.partition(": ")[2].rstrip("\n")


@pytest.mark.parametrize("name", ["lab.json", "lab.yaml", "lab.yml", "lab.conf"])
def test_flags_of_a_file_are_those_of_a_command_line(folder, name):
    typed = [word for flag, value in LAB.items() for word in (f"--{flag}", str(value))]
    assert cli.parse_generate(["--config", write(name, LAB)]) == cli.parse_generate(typed)


def test_all_kinds_of_flags(folder, monkeypatch):
    (folder / "a.safetensors").touch()
    (folder / "lab.yaml").write_text(
        "prompt: [a red ball, a blue ball]\n"
        "num_frames: 50.0\n--base_num_frames: 33\noverlap_history: 17\n"
        "compile: on\nvae_tiling: off\nresume: yes\nno_preview: false\n"
        "sigmas: [1, 0.5]\nlora: [a.safetensors, 'a.safetensors:0.5']\nfps: 23.976\nname: null\n"
    )
    settings = cli.parse_diffusion_forcing(["--config=lab.yaml", "--num_frames=49"])
    assert settings.prompts == ("a red ball", "a blue ball") and settings.num_frames == 49
    assert (settings.compile, settings.vae_tiling, settings.resume, settings.no_preview) == ("on", "off", True, False)
    assert settings.sigmas == (1, 0.5) and [lora.strength for lora in settings.lora] == [1, 0.5]
    assert settings.name is None and 23.9 < float(settings.fps) < 24


def test_the_command_line_wins(folder):
    lab = LAB | {"resolution": "540P", "sigmas": [1, 0.5], "lora": ["gone.safetensors"]}
    (folder / "new.safetensors").touch()
    argv = ["--width", "64", "--height", "48", "--seed", "7", "--shift", "2", "--lora", "new.safetensors"]
    settings = cli.parse_generate([*argv, "--config", write("lab.json", lab)])
    assert (settings.height, settings.width, settings.seed, settings.shift) == (48, 64, 7, 2)
    assert settings.sigmas is None and [lora.path.name for lora in settings.lora] == ["new.safetensors"]
    story = [{"start": 0, "prompt": "a white ball"}]
    settings = cli.parse_diffusion_forcing(["--config", "lab.json", "--story", json.dumps(story), *argv])
    assert settings.story is not None and settings.prompt == "a white ball"


def test_rows_of_a_job_file_override_it(folder):
    rows = [{"prompt": "a red ball"}, {"guidance_scale": 1, "sigmas": [1, 0.5]}, {"height": 32, "width": 32}]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    lab = LAB | {"jobs": "rows.jsonl", "sweep": {"fps": [8, 12]}, "resolution": "540P", "shift": 4, "resume": True}
    lab |= {"name": "{row}_{fps}"}
    jobs = cli.parse_generate(["--config", write("lab.json", lab), "--num_frames", "9"])
    found = [row.settings for row in jobs.rows]
    assert [row.error for row in jobs.rows] == [None] * 6 and jobs.outdir.name == "lab"
    assert [s.prompt for s in found[::2]] == ["a red ball", "a white ball", "a white ball"]
    assert [s.guidance_scale for s in found[::2]] == [3, 1, 3] and {s.num_frames for s in found} == {9}
    assert [s.height for s in found[::2]] == [544, 544, 32] and [int(s.fps) for s in found] == [8, 12] * 3
    assert found[2].sigmas == (1, 0.5)
    again = cli.parse_generate(jobs.rows[5].command)  # needs neither file
    assert (again.height, again.fps, again.guidance_scale) == (32, 12, 3)


@pytest.mark.parametrize(
    ("values", "legal"),
    [
        ({"sed": 3}, "sed: unknown flag, did you mean --seed?"),
        ({"cfg": 3}, "cfg: unknown flag, did you mean --guidance_scale?"),
        ({"ar_step": 3}, f"ar_step: only {FORCING} has this flag"),
        ({"config": "other.json"}, "config: belongs on the command line"),
        ({"trust_replay": True}, "trust_replay: belongs on the command line"),
        ({"help": "all"}, "help: belongs on the command line"),
        ({"resume": 3}, "resume: must be true or false"),
        ({"seed": [1, 2]}, "seed: takes one value, not a list"),
        ({"seed": {"a": 1}}, "seed: must be a text or a number"),
        ({3: 3}, "3: unknown flag"),
        ({"sed": 3, "seed": [1, 2], "fps": 24}, "sed: unknown flag, did you mean --seed?; seed: takes one value"),
        ({"prompt": True}, "prompt: must be a text or a number"),
        ([LAB], "must be a mapping of flags, without dashes, to values"),
        ("text", "must be a mapping of flags, without dashes, to values"),
    ],
)
def test_what_a_file_cannot_give(folder, values, legal, capsys):
    line = refusal(cli.parse_generate, "--config", write("lab.json", values), capsys=capsys)
    assert line.startswith(f"--config lab.json: {legal}")


def test_files_that_cannot_be_read(folder, capsys):
    (folder / "cut.yaml").write_text("a: [1,")
    (folder / "cut.json").write_text("{")
    (folder / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    (folder / "deep.json").write_text("[" * 100_000)
    (folder / "twice.json").write_text('{"seed": 1, "seed": 2}')
    (folder / "lab.toml").write_text('model_id = "tiny"\n')
    bomb = "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30))
    (folder / "bomb.yaml").write_text(f"prompt:\n- &a0 [x, x]\n{bomb}")
    for name, legal in (
        ("none.yaml", "cannot be read"),
        ("cut.yaml", "is not valid YAML"),
        ("cut.json", "is not valid JSON"),
        ("binary.yaml", "is not valid YAML"),
        ("deep.json", "is nested too deeply"),
        ("twice.json", "is not valid JSON (seed is given twice)"),
        ("lab.toml", "must be a mapping of flags, without dashes, to values; TOML is not read"),
        ("bomb.yaml", "is not valid YAML (its aliases stand for too much)"),
        ("/dev/zero", "cannot be read (it is not a regular file)"),
    ):
        assert refusal(cli.parse_generate, "--config", name, capsys=capsys).startswith(f"--config {name}: {legal}")


def test_values_that_only_yaml_has(folder, capsys):
    for text, said in (
        ("2020-01-01: 3", "2020-01-01: unknown flag"),
        ("sweep: &a {seed: *a}", "is not valid YAML (line 1: it contains itself)"),
        ("prompt: &a [*a]", "is not valid YAML (line 1: it contains itself)"),
        ("seed: &a [x,x]\nfps: &b [*a,*a]\nseed: 3", "is not valid YAML (line 3: seed is given twice)"),
        ("seed: 012", "is not valid YAML (line 1: 012 is a number in base 8; a text needs quotes)"),
        ("prompt: 12:30", "is not valid YAML (line 1: 12:30 is a number in base 60; a text needs quotes)"),
        ('model_id = "tiny"', "must be a mapping of flags, without dashes, to values"),
    ):
        (folder / "lab.yaml").write_text(text)
        line = refusal(cli.parse_generate, "--config", "lab.yaml", capsys=capsys)
        assert line.startswith(f"--config lab.yaml: {said}")
    (folder / "lab.yaml").write_text("sweep: {seed: 2020-01-01}\nmodel_id: tiny")
    (row,) = cli.parse_generate(["--config", "lab.yaml"]).rows
    assert row.error.startswith("--seed 2020-01-01: must be a whole number")


def test_one_file_at_a_time(folder, capsys):
    write("lab.json", LAB)
    line = refusal(cli.parse_generate, "--config=lab.json", "--config", "lab.json", capsys=capsys)
    assert line == "--config: is given 2 times; one file has all flags"


def test_a_value_that_is_wrong_is_named_as_on_the_command_line(folder, capsys):
    line = refusal(cli.parse_generate, "--config", write("lab.json", {"seed": "x", "fps": 0}), capsys=capsys)
    assert line.startswith("--seed x: must be a whole number") and "; --fps 0: must be" in line


class TestManifest:
    @staticmethod
    def written(**settings) -> str:
        known = {
            "model_id": "tiny",
            "prompt": "a white ball",
            "seed": 5,
            "sigmas": [1.0, 0.5],
            "height": 48,
            "width": 64,
        }
        return write("video.json", {"format": 1, "script": GENERATE, "settings": known | settings, "inputs": {}})

    def test_is_a_configuration(self, folder):
        settings = cli.parse_generate(["--config", self.written(), "--seed", "6"])
        assert (settings.prompt, settings.seed, settings.sigmas, settings.height) == ("a white ball", 6, (1, 0.5), 48)
        assert cli.parse_generate(["--config", "video.json", "--resolution", "540P"]).height == 544

    def test_from_a_stranger_names_no_files(self, folder, capsys):
        (folder / "secret.png").touch()
        for settings in ({"model_id": "some/body"}, {"image": str(folder / "secret.png")}):
            line = refusal(cli.parse_generate, "--config", self.written(**settings), capsys=capsys)
            assert line.startswith("--config video.json: would use --") and "--trust_replay" in line
        trusted = cli.parse_generate(["--config", self.written(model_id="some/body"), "--trust_replay"])
        assert trusted.model_id == "some/body"
        given = cli.parse_generate(["--config", "video.json", "--model_id", "tiny"])
        assert given.seed == 5

    def test_gives_nothing_but_what_changes_frames(self, folder, capsys):
        line = refusal(cli.parse_generate, "--config", self.written(outdir="/"), capsys=capsys)
        assert line.startswith("--config video.json: must be a video that this program made")

    def test_of_the_other_script(self, folder, capsys):
        line = refusal(cli.parse_diffusion_forcing, "--config", self.written(), capsys=capsys)
        assert line == f"--config video.json: was made by {GENERATE}"

    def test_serves_many_videos(self, folder):
        (folder / "rows.txt").write_text("a red ball\na blue ball\n")
        jobs = cli.parse_generate(["--config", self.written(), "--jobs", "rows.txt"])
        assert [(row.settings.prompt, row.settings.seed) for row in jobs.rows] == [
            ("a red ball", 5),
            ("a blue ball", 5),
        ]
