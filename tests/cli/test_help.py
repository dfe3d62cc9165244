"""What a newcomer asks of the command line: --help, --version, and what a wrong command says."""

import re
import sys

import pytest
from script_runs import FORCING, GENERATE, run

from skyreels_v2_infer import __version__
from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.cli import help as help_of_scripts
from skyreels_v2_infer.cli.batch import JobRow
from skyreels_v2_infer.cli.captions import parse_captions
from skyreels_v2_infer.cli.help import SHORT, answer_at_once, short_help
from skyreels_v2_infer.cli.model_ids import remarks_on
from skyreels_v2_infer.cli.near_names import FOREIGN
from skyreels_v2_infer.plan.models import PUBLISHED
from skyreels_v2_infer.run.batch import record_of

I2V = "Skywork/SkyReels-V2-I2V-14B-540P"
SCRIPTS = {GENERATE: cli.parse_generate, FORCING: cli.parse_diffusion_forcing}
EACH = pytest.mark.parametrize("script", SCRIPTS)


def printed(parse, argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, err) == (0, "")
    return out


def refusal(parse, *argv, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parse(argv)
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "") and err.count("\n") == 1
    return err.rstrip("\n")


@EACH
def test_help_is_two_pages_in_the_order_of_need(script, capsys):
    short, every = (printed(SCRIPTS[script], argv, capsys) for argv in (["--help"], ["--help", "all"]))
    assert short == short_help(script) == printed(SCRIPTS[script], ["--seed", "3", "-h"], capsys)
    lines = short.splitlines()
    assert len(lines) <= 2 * 25 and max(map(len, lines[:-2])) < 90
    flags = re.findall(r"^  (--\w+)", short, re.MULTILINE)
    assert flags[:2] == ["--prompt", "--image"] and flags.index("--model_id") < flags.index("--outdir") < 6
    assert "--help all" in short and len(set(flags)) == len(flags) > 20
    in_groups = re.findall(r"^  (?:-h \[all\], )?(--\w+)", every, re.MULTILINE)
    assert not set(flags) - set(in_groups)
    assert in_groups[:2] == ["--prompt", "--image"] and len(in_groups) > 60
    for near, far in (("model_id", "height"), ("outdir", "height"), ("seed", "device"), ("device", "jobs")):
        assert in_groups.index(f"--{near}") < in_groups.index(f"--{far}")


def test_only_one_script_has_a_flag_twice_in_the_short_help():
    for script in SCRIPTS:
        shown = [flag.split()[0] for flag, _, only in SHORT if only in (None, script)]
        assert len(shown) == len(set(shown))


@EACH
def test_help_and_version_take_little_cpu(script, tmp_path):
    """As a user starts them, Python's own start included."""
    for flag in ("--help", "--version"):
        least = min((run(script, flag, cwd=tmp_path) for _ in range(2)), key=lambda made: made.cpu)
        assert least.code == 0 and least.cpu < 0.3


@pytest.mark.parametrize("flags", [["--help"], ["--version"], ["--list_models"], ["--help", "all"]])
def test_an_answer_that_cannot_be_printed_is_one_line(flags, capsys, monkeypatch):
    def asked() -> int:
        text = answer_at_once(GENERATE, flags)
        if text is not None:
            return help_of_scripts.printed(GENERATE, text)
        with pytest.raises(SystemExit) as stop:
            cli.parse_generate(flags)
        return stop.value.code

    monkeypatch.setattr(sys, "stdout", None)
    assert asked() == 1
    assert capsys.readouterr().err == f"{GENERATE}: stdout cannot be written (it is closed)\n"
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert asked() == 1
    assert capsys.readouterr().err == f"{GENERATE}: stdout cannot be written (No space left on device)\n"


def test_version(capsys):
    for parse in (*SCRIPTS.values(), parse_captions):
        words = printed(parse, ["--version"], capsys)
        assert words.startswith(f"skyreels_v2_infer {__version__}, Python {sys.version.split()[0]}, torch ")


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("--steps", "--inference_steps"),
        ("--num_inference_steps", "--inference_steps"),
        ("--num-frames", "--num_frames"),
        ("--cfg", "--guidance_scale"),
        ("-p", "--prompt"),
        ("--Seed", "--seed"),
        ("--lora_path", "--lora"),
        ("--sample_shift", "--shift"),
        ("--modelid", "--model_id"),
        ("--batch_size", "--jobs"),
        ("--fp16", "--dtype"),
        ("--W", "--width"),
        ("--tea_cache_l1_thresh", "--teacache_thresh"),
    ],
)
@EACH
def test_flags_of_other_programs(script, foreign, ours, capsys):
    line = refusal(SCRIPTS[script], foreign, "4", capsys=capsys)
    assert line == f"{script}: {foreign} 4: unknown flag, did you mean {ours}?"


def test_foreign_names_lead_to_flags_that_exist(capsys):
    out = printed(cli.parse_diffusion_forcing, ["--help", "all"], capsys)
    assert not [ours for ours in FOREIGN if not re.search(rf"^  {ours}\b", out, re.MULTILINE)]
    names = [name for names in FOREIGN.values() for name in names]
    assert len(names) == len(set(names)) and not set(names) & set(FOREIGN)


def test_a_misspelt_flag_of_the_other_script(capsys):
    line = refusal(cli.parse_generate, "--overlap_histry", "17", capsys=capsys)
    assert line.endswith(f"did you mean --overlap_history? Only {FORCING} has it")


def test_all_independent_faults_are_in_one_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = ["-p", "fox", "--steps=5", "--seed", "abc", "--num_frames", "98", "--image", "no.png", "--use_ret_steps"]
    argv += ["--lora", "no.gguf"]
    line = refusal(cli.parse_generate, *argv, capsys=capsys)
    for part in (
        "--seed abc: must be a whole number",
        "; -p fox: unknown flag, did you mean --prompt?",
        "; --steps=5: unknown flag",
        "; --num_frames 98: must be 4n+1",
        "; --image no.png: must be an existing file",
        "; --use_ret_steps: has no effect without --teacache",
        "; --lora no.gguf: must be an existing file",
    ):
        assert part in line
    assert line.count(";") == 6


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (
            "--num_frames 50 --base_num_frames 98 --overlap_history 18 --video_path no.mp4 --end_image no.png",
            ("num_frames 50", "base_num_frames 98", "overlap_history 18", "video_path no.mp4", "end_image no.png"),
        ),
        ("--height 30 --width 1000 --num_frames 98", ("height 30", "width 1000", "num_frames 98")),
        ("--video_path no.mp4 --num_frames 50", ("overlap_history not given", "num_frames 50", "video_path no.mp4")),
        (f"--model_id {I2V} --num_frames 98", ("num_frames 98", f"model_id {I2V}")),
        (f"--model_id {I2V} --fps 0", ("fps 0", f"model_id {I2V}")),
        ("--offload True --resume 1 --seed x", ("seed x", "offload True", "resume 1")),
        ("--prompt a --num_frames 98 --prompt b", ("prompt", "num_frames 98")),
    ],
)
def test_faults_of_one_kind_are_all_named(argv, parts, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = refusal(cli.parse_diffusion_forcing, *argv.split(), capsys=capsys).partition(": ")[2]
    assert sorted(part.partition(": ")[0] for part in line.removeprefix("--").split("; --")) == sorted(parts)


def test_an_image_that_a_model_needs_is_asked_for_with_the_rest(capsys):
    line = refusal(cli.parse_generate, "--model_id", I2V, "--num_frames", "98", "--seed", "x", capsys=capsys)
    assert line.endswith(f"; --image: the image-to-video model {I2V} needs one") and line.count("; ") == 2
    for argv in (["--image", "https://example.org/a.png"], ["--imge", "a.png"]):
        line = refusal(cli.parse_generate, "--model_id", I2V, "--seed", "x", *argv, capsys=capsys)
        assert "needs one" not in line


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("1280x720", "; --width 1280 --height 720"),
        ("1280*720", "; --width 1280 --height 720"),
        ("480P", "--height and --width give other sizes"),
        ("", "must be 540P or 720P"),
    ],
)
def test_other_sizes_than_the_two_with_names(given, said, capsys):
    line = refusal(cli.parse_generate, "--resolution", given, capsys=capsys)
    assert line.startswith(f"{GENERATE}: --resolution {given}: must be 540P or 720P") and said in line
    assert cli.parse_generate(["--resolution", "720p"]).height == 720


def test_help_is_as_wide_as_the_terminal(monkeypatch):
    for script in SCRIPTS:
        for columns, widest in (("60", 60), ("500", 80), ("10", 50)):
            monkeypatch.setenv("COLUMNS", columns)
            lines = short_help(script).partition("\nexample: ")[0].splitlines()
            assert widest - 10 < max(map(len, lines)) <= widest


@pytest.mark.parametrize(
    "argv",
    [
        "--overlap_histry 17 --num_frames 257",  # the overlap is missing since its flag is misspelt
        "--height x --width 64",
        "--base_num_frames x --num_frames 257",
        "--lora a.gguf:x:",
        "--prompt_enhancr --prompt_enhancer_model a/b",
    ],
)
def test_what_follows_from_a_fault_is_not_reported(argv, capsys):
    assert ";" not in refusal(cli.parse_diffusion_forcing, *argv.split(), capsys=capsys)


def test_nothing_is_downloaded_for_a_command_that_is_refused(capsys, monkeypatch):
    def download(url, name):
        raise AssertionError(url)

    monkeypatch.setattr("skyreels_v2_infer.media.images.download_image", download)
    for fault in (("--num_frames", "98"), ("--seed", "x")):
        line = refusal(cli.parse_generate, "--image", "https://example.org/a.png", *fault, capsys=capsys)
        assert line.startswith(f"{GENERATE}: {fault[0]} {fault[1]}: ")


def test_an_installed_script_calls_itself_as_its_user_does(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/generate_video"])
    assert refusal(cli.parse_generate, "--seed", "x", capsys=capsys).startswith("generate_video: --seed x: ")
    line = refusal(cli.parse_generate, "--ar_step", "5", capsys=capsys)
    assert line == "generate_video: --ar_step 5: only generate_video_df has this flag"
    row = JobRow(1, "jobs.jsonl:1", {}, command=("--seed=3",))
    assert record_of(GENERATE, row).command == "generate_video --seed=3"
    for argv in (["--help"], ["--help", "all"]):
        out = printed(cli.parse_generate, argv, capsys)
        assert out.startswith("usage: generate_video [flags]") and "generate_video.py" not in out
        assert "example: generate_video --" in out


@pytest.mark.parametrize(
    ("given", "near"),
    [
        ("tinny", "tiny"),
        ("Tiny", "tiny"),
        ("SkyReels-V2-T2V-14B-540P", "Skywork/SkyReels-V2-T2V-14B-540P"),
        ("SkyReels-V2-I2V-14B-720P-Diffusers", "Skywork/SkyReels-V2-I2V-14B-720P-Diffusers"),
        ("skywork/skyreels-v2-df-14b-540p", "Skywork/SkyReels-V2-DF-14B-540P"),
        ("SkyworkAI/SkyReels-V2-DF-14B-720P", "Skywork/SkyReels-V2-DF-14B-720P"),
        ("Skywork/SkyReels-V2-DF-1.3B", "Skywork/SkyReels-V2-DF-1.3B-540P"),
        ("Skywork/SkyReels-V2-T2V-1.3B-540P", "Skywork/SkyReels-V2-T2V-14B-540P"),
        ("Skywork/SkyReels-V2-DF-5B-720P", "Skywork/SkyReels-V2-DF-14B-720P"),
        ("Skyworks/SkyReels-V2-DF-14B-540P", "Skywork/SkyReels-V2-DF-14B-540P"),
        ("Skywork/SkyReel-V2-T2V-14B-720P", "Skywork/SkyReels-V2-T2V-14B-720P"),
        ("Skywork/SkyReels_V2_DF_14B_540P", "Skywork/SkyReels-V2-DF-14B-540P"),
        ("Skywork/SkyReelsV2-DF-14B-540P", "Skywork/SkyReels-V2-DF-14B-540P"),
        ("DF-14B", "Skywork/SkyReels-V2-DF-14B-540P"),
        ("t2v-14B", "Skywork/SkyReels-V2-T2V-14B-540P"),
        ("Skywork/SkyReels-V2-DF-14B", "Skywork/SkyReels-V2-DF-14B-540P"),
        ("nowhere", "--list_models"),
    ],
)
@EACH
def test_ids_that_are_none_get_the_nearest(script, given, near, capsys):
    line = refusal(SCRIPTS[script], "--model_id", given, capsys=capsys)
    assert line.startswith(f"{script}: --model_id {given}: ") and near in re.split("[ ?]", line)


def test_ids_of_others_and_folders_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tinny").mkdir()
    others = ("Skywork/SkyReels-V3-R2V-14B", "Skywork/SkyReels-V1-Hunyuan-T2V", "Skywork/SkyCaptioner-V1")
    for model_id in ("some/body", "mine/SkyReels-V2-DF-14B-540P", *others, "tinny", "./tinny", *PUBLISHED):
        assert cli.parse_generate(["--model_id", model_id]).model_id == model_id


def test_the_list_of_models(capsys):
    lists = {printed(parse, ["--list_models"], capsys) for parse in SCRIPTS.values()}
    (text,) = lists
    rows = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.startswith(("Skywork/", "tiny"))}
    assert {*rows, *(f"{name}-Diffusers" for name in rows if name != "tiny")} == {"tiny", *PUBLISHED}
    large, image = rows["Skywork/SkyReels-V2-DF-14B-720P"], rows["Skywork/SkyReels-V2-I2V-1.3B-540P"]
    assert large[:3] == ["DF", "720x1280", "121"] and image[:3] == ["I2V", "544x960", "97"]
    assert [int(gb) for gb in large[3:7:2]] == [69, 80]  # 57.2 and 0.5 in float32, and the text encoder
    assert int(large[7]) > 2 * int(large[9]) > 20


def test_a_model_that_was_not_trained_for_diffusion_forcing_is_remarked_on():
    def lines(parse, kind):
        return remarks_on(parse(["--model_id", f"Skywork/SkyReels-V2-{kind}-14B-540P"]))

    (_, line) = lines(cli.parse_diffusion_forcing, "T2V")
    assert line.startswith("--model_id Skywork/SkyReels-V2-T2V-14B-540P: ") and "SkyReels-V2-DF-14B-540P" in line
    assert len(lines(cli.parse_diffusion_forcing, "DF")) == len(lines(cli.parse_generate, "T2V")) == 1


def test_the_shell_completes_flags(tmp_path):
    """As bash asks: by environment variables."""
    words = f"{GENERATE} --guid"
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": words, "COMP_POINT": str(len(words))}
    run(GENERATE, cwd=tmp_path, _ARGCOMPLETE_STDOUT_FILENAME="out", **asked)
    assert (tmp_path / "out").read_text().split() == ["--guidance_scale"]
