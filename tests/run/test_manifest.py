"""Manifests, replays and previews."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_folders import data_of
from script_runs import FORCING, GENERATE, contents, run

from skyreels_v2_infer.cli import arguments as cli
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.cli.replay import flags_of, read_manifest
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.comment import as_ffmetadata, comment_of
from skyreels_v2_infer.media.report import write_report
from skyreels_v2_infer.run import manifest

TINY = ("--model_id", "tiny", "--inference_steps", 3, "--seed", 3, "--prompt", "a red circle: it's 50% up; a=b #c\\d")
LONG = ("--num_frames", 49, "--ar_step", 1, "--image", "first.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(folder / "first.png")
    return run(FORCING, *TINY, *LONG, cwd=folder)


def test_beside_a_video_lies_what_made_it(made):
    about = json.loads(made.path.with_suffix(".json").read_text())
    settings = about["settings"]
    assert (settings["model_id"], settings["seed"], settings["prompt"]) == ("tiny", 3, TINY[-1])
    assert settings["dtype"] == "float32" and about["machine"] == {"device": "cpu", "threads": 1}  # chosen by the run
    assert settings["vae_tiling"] == "off" and "tiles" not in made.err
    assert (settings["image"], settings["height"]) == (str(made.folder / "first.png"), 64)
    assert {"torch", "transformers", "python", "ffmpeg", "skyreels_v2_infer"} <= set(about["versions"])
    assert any(name.endswith("safetensors") for name in about["weights"])
    assert [piece["frames"] for piece in about["pieces"]] == [33, 16]
    assert about["pieces"][0]["seam"] == 0 and 0 <= about["pieces"][1]["seam"] < 1
    assert 0 < about["seconds"]["loading"] < about["seconds"]["total"] < 100
    spent = [seconds for piece in about["pieces"] for seconds in piece["seconds"].values()]
    assert len(spent) == 4 and min(spent) > 0 and sum(spent) < about["seconds"]["total"]
    assert len(about["plan"]) == 12 and 0.1 < about["peak_memory_gib"]["host"] < 4
    inside = json.loads(comment_of(made.path))
    # What differs from run to run stays outside, so that the same run gives the same file.
    assert set(about) - set(inside) == {"asked", "seconds", "peak_memory_gib", "details"}
    # The video is passed on: it names files without their folders, and says nothing of this machine's.
    assert inside["settings"] == settings | {"image": "first.png"} and str(made.folder) not in comment_of(made.path)


def test_a_player_can_begin_before_it_has_all(made):
    written = made.path.read_bytes()
    assert 0 < written.index(b"moov") < written.index(b"mdat")


def test_the_preview_is_spread_over_the_video_and_marks_seams(made):
    page = np.array(Image.open(made.path.with_suffix(".png")))
    numbers = [*preview.spots(33, 2), *(33 + place for place in preview.spots(16, 2))]
    assert len(numbers) == 16 and {0, 32, 33, 48} <= set(numbers) and max(np.diff(numbers)) <= 5
    shown = [page[18:82, 4 + 68 * i : 68 + 68 * i].astype(int) for i in range(16)]
    for picture, frame in zip(shown, made.frames[numbers].astype(int), strict=True):
        assert np.abs(picture - frame).mean() < 4  # what the video's coder changes
    assert [tuple(page[50, 2 + 68 * i]) == (255, 0, 0) for i in range(16)] == [i == 8 for i in range(16)]


@pytest.mark.parametrize(("frames", "pieces", "count"), [(97, 1, 8), (97, 3, 8), (80, 5, 4), (80, 40, 2), (5, 1, 5)])
def test_a_video_of_many_pieces_shows_fewer_frames_of_each(frames, pieces, count):
    shown = preview.spots(frames, pieces)
    assert len(shown) == count and shown[0] == 0 and shown[-1] == frames - 1
    assert preview.spots(1, pieces) == [0]


def test_a_video_of_several_windows_gets_a_page(made, tmp_path):
    [video] = data_of(made.path.with_name("report.html"))["videos"]
    assert (video["name"], video["src"]) == (made.path.stem, f"./{made.path.name}")
    assert [piece["frames"] for piece in video["pieces"]] == [33, 16] and video["poster"] is not None


@pytest.mark.slow
def test_a_page_is_updated_where_it_exists_and_made_only_for_several_windows(tmp_path):
    short = (*TINY, "--num_frames", 5)
    for flags, there in (((), False), (("--num_frames", 37, "--no_report"), False)):
        assert run(FORCING, *short, *flags, cwd=tmp_path).path.with_name("report.html").exists() == there
    page = write_report(tmp_path / "video_out")
    again = run(FORCING, *short, cwd=tmp_path)
    assert data_of(page)["videos"][-1]["name"] == again.path.stem
    page.write_text("a page of the user's own")
    foreign = run(FORCING, *short, "--num_frames", 37, cwd=tmp_path)
    assert foreign.path.exists() and page.read_text() == "a page of the user's own"
    assert foreign.lines[-1].startswith("no report page: video_out/report.html was not written by this program")


@pytest.mark.parametrize("suffix", [".mp4", pytest.param(".json", marks=pytest.mark.slow)])
def test_a_replay_makes_the_same_video(made, tmp_path, suffix):
    again = run(FORCING, "--trust_replay", "--replay", made.path.with_suffix(suffix), cwd=tmp_path)
    assert again.path.read_bytes() == made.path.read_bytes()


def test_a_video_alone_can_be_made_again_with_its_files_given(made, tmp_path):
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(made.path.read_bytes())
    assert read_manifest(alone)["settings"]["image"] == "first.png"
    assert read_manifest(made.path)["settings"]["image"] == str(made.folder / "first.png")  # from the .json beside it
    image = ["--image", str(made.folder / "first.png")]
    assert cli.parse_diffusion_forcing(["--replay", str(alone), *image]).image == made.folder / "first.png"
    settings = cli.parse_diffusion_forcing(["--replay", str(alone), *image])
    identity = read_manifest(alone)["inputs"] | {"model_id": read_manifest(alone)["weights"]}
    plan = plan_of(settings, None)
    assert list(manifest.changed_since(alone, settings, plan, identity)) == []
    (line,) = manifest.changed_since(alone, settings, plan, identity | {"image": "0-0"})
    assert "first.png has changed since" in line


def test_a_json_of_another_video_is_not_taken_for_a_video_s_own(made, tmp_path):
    alone = tmp_path / "alone.mp4"
    alone.write_bytes(made.path.read_bytes())
    other = json.loads(made.path.with_suffix(".json").read_text())
    other["settings"] |= {"image": "/etc/passwd"}
    alone.with_suffix(".json").write_text(json.dumps(other))
    assert read_manifest(alone)["settings"]["image"] == "first.png"


def test_a_replay_says_what_has_changed(made, tmp_path):
    settings = cli.parse_diffusion_forcing(["--trust_replay", "--replay", str(made.path)])
    written = json.loads(made.path.with_suffix(".json").read_text())
    identity = written["inputs"] | {"model_id": written["weights"]}
    plan = plan_of(settings, None)
    assert list(manifest.changed_since(made.path, settings, plan, identity)) == []
    other = identity | {"image": "0-0", "model_id": {"weights": "0-0"}}
    image, weights = manifest.changed_since(made.path, settings, plan, other)
    assert f": {made.folder / 'first.png'} has changed" in image
    assert ": the weights of tiny have changed" in weights
    (tmp_path / "short.json").write_text('{"format": 1, "script": "generate_video_df.py", "settings": {"seed": 3}}')
    assert list(manifest.changed_since(tmp_path / "short.json", settings, plan, other)) == []  # shortened by hand
    Image.new("RGB", (64, 64)).save(tmp_path / "other.png")
    settings = cli.parse_diffusion_forcing(["--replay", str(made.path), "--image", str(tmp_path / "other.png")])
    assert len(list(manifest.changed_since(made.path, settings, plan, other))) == 1  # what is given anew may be another


def test_other_flags_replace_what_is_written(made, tmp_path):
    flags = ("--trust_replay", "--replay", made.path, "--seed", 4, "--no_preview", "--num_frames", 33)
    again = run(FORCING, *flags, cwd=tmp_path)
    assert len(again.frames) == 33
    stem = again.path.stem
    assert stem.endswith("_4") and contents(tmp_path / "video_out") == [f"{stem}.json", f"{stem}.mp4"]
    assert json.loads(again.path.with_suffix(".json").read_text())["settings"]["image"] == str(
        made.folder / "first.png"
    )


@pytest.mark.parametrize(
    "flags",
    ["--use_ret_steps", "--height 64 --width 64", "--resolution 540P", "--model_id=some/one", "--model_id tiny"],
)
def test_what_the_cache_has_chosen_is_chosen_anew_for_another_model_or_size(made, tmp_path, flags):
    written = json.loads(made.path.with_suffix(".json").read_text())
    written["settings"] |= {"teacache": True, "teacache_coefficients": [0, 0, 0, 1, 0]}
    (tmp_path / "a.json").write_text(json.dumps(written))

    def coefficients(*argv):
        return cli.parse_diffusion_forcing(
            ["--trust_replay", "--replay", str(tmp_path / "a.json"), *argv]
        ).teacache_coefficients

    assert coefficients() == coefficients("--shift", "2") == (0, 0, 0, 1, 0)
    assert coefficients(*flags.split()) is None
    assert coefficients(*flags.split(), "--teacache_coefficients", "1,2,3,4,5") == (1, 2, 3, 4, 5)


def test_what_cannot_be_replayed_is_refused(made, tmp_path):
    (tmp_path / "other.json").write_text('{"format": 0}')
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "half.json").write_text('{"format": 1, "settings": {}}')
    edited = {"inputs": {"inputs": []}, "prompt": {"settings": {"prompt": None}}, "help": {"settings": {"help": True}}}
    # A video from elsewhere decides neither where files go nor what the machine does.
    for name in ("outdir", "resume", "keep_parts", "dry_run", "offload", "replay", "no_preview", "use_usp"):
        edited[name] = {"settings": {name: True}}
    whole = {"format": 1, "script": FORCING, "settings": {}, "inputs": {}}
    for name, changed in edited.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(whole | changed))
    legal = "must be a video that this program made, or the .json beside one"
    for name in ("other.json", "half.json", "text.mp4", "no.mp4", *(f"{name}.json" for name in edited)):
        result = run(FORCING, "--replay", tmp_path / name, cwd=tmp_path)
        assert result.code == 2 and len(result.lines) == 1
        assert result.err.startswith(f"generate_video_df.py: --replay {tmp_path / name}: {legal}")
    result = run(GENERATE, "--replay", made.path, cwd=tmp_path)
    assert result.err == f"generate_video.py: --replay {made.path}: was made by {FORCING}\n"


def test_what_a_manifest_names_is_used_only_when_it_is_trusted(tmp_path, capsys):
    """Files, addresses and models are listed; a flag on the command line replaces one, --trust_replay allows all."""
    Image.new("RGB", (64, 64)).save(tmp_path / "first.png")
    path, image, model = tmp_path / "a.json", str(tmp_path / "first.png"), str(tmp_path / "model")
    (tmp_path / "model").mkdir()

    def parse(settings, *argv):
        path.write_text(json.dumps({"format": 1, "script": FORCING, "settings": settings}))
        return cli.parse_diffusion_forcing(["--replay", str(path), *argv])

    def refused(settings, *argv):
        with pytest.raises(SystemExit) as stop:
            parse(settings, *argv)
        line = capsys.readouterr().err
        assert stop.value.code == 2 and line.count("\n") == 1, line
        return line

    for named in (
        {"image": image},
        {"end_image": image},
        {"image": "http://127.0.0.1:9/a.png"},
        {"video_path": "/etc/passwd", "overlap_history": 17},
        {"model_id": model},
        {"model_id": "some/model"},
    ):
        line = refused(named)
        name, value = next(iter(named.items()))
        assert f"--replay {path}: " in line and f"--{name} {value}" in line and "--trust_replay" in line
    assert "--lora 1" in refused({"lora": [1]})
    for named in ({"lora": 0}, {"image": 0.0}, {"dit_path": 0}):  # files of such names
        assert "--trust_replay" in refused(named)
    for prompt in ("auto", ' auto:"a hat"', ["a", "auto"]):  # would load two language models
        assert "would use --prompt" in refused({"prompt": prompt}, "--image", image)
    assert parse({"prompt": "auto"}, "--prompt", "a swan").prompt == "a swan"
    assert all(flag in refused({"image": image, "model_id": model}) for flag in ("--image", "--model_id"))
    assert "--model_id" not in refused({"image": image, "model_id": model}, "--model_id", "tiny")
    assert str(parse({"image": image, "model_id": model}, "--trust_replay").image) == image
    assert parse({"image": "/etc/passwd"}, "--image", image).image is not None
    assert parse({"image": "/etc/passwd"}, f"--image={image}").image is not None
    for model in ("tiny", "Skywork/SkyReels-V2-DF-14B-720P", "Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers"):
        assert parse({"model_id": model, "prompt": "see http://host", "seed": 3}).seed == 3
    for odd in ([["a"]], [{}], [None], [1, ["a"]]):
        assert f"--replay {path}: " in refused({"image": odd})
    assert "--trust_replay" in refused({"image": ["a", 1]})
    for model in ([], ["tiny"]):
        assert "--trust_replay" in refused({"model_id": model})
    assert "story" in refused({"story": "/etc/passwd"}, "--trust_replay")  # scenes, never a file of them
    with pytest.raises(SystemExit):
        cli.parse_diffusion_forcing(["--trust_replay"])
    assert "--trust_replay: has no effect without --replay" in capsys.readouterr().err


def test_a_replay_on_another_number_of_threads_says_so(made):
    assert manifest.other_machine(made.path, {"device": "cpu", "threads": 1}) is None
    line = manifest.other_machine(made.path, {"device": "cpu", "threads": 2})
    assert "OMP_NUM_THREADS=1" in line and "threads 1" in line and "threads 2" in line


def test_what_another_manifest_says_of_its_machine_and_inputs_stays_in_one_line(made, tmp_path):
    written = json.loads(made.path.with_suffix(".json").read_text())
    odd = "2; rm -rf ~\n\x1b]0;a title\x07" + 500 * "x"
    written |= {"machine": {"device": "cpu", "threads": odd, odd: odd}, "inputs": {"dit_path": "0-0", "lora": "0-0"}}
    written["settings"]["dit_path"] = "/there/dit.safetensors"
    (tmp_path / "a.json").write_text(json.dumps(written))
    line = manifest.other_machine(tmp_path / "a.json", {"device": "cpu", "threads": 2})
    assert line.isprintable() and len(line) < 400 and "OMP_NUM_THREADS" not in line
    settings = cli.parse_diffusion_forcing(["--replay", str(made.path), "--trust_replay"])
    settings = dataclasses.replace(settings, dit_path="/here/dit.safetensors")
    identity = {"model_id": written["weights"]}
    assert list(manifest.changed_since(tmp_path / "a.json", settings, plan_of(settings, None), identity)) == []


def test_what_replaces_something_else_replaces_it(made):
    def parse(*argv):
        return cli.parse_diffusion_forcing(["--trust_replay", "--replay", str(made.path), *argv])

    assert (parse().height, parse("--resolution", "540P").height) == (64, 544)
    story = '[{"start": 0, "prompt": "a swan"}]'
    assert parse("--story", story).prompt == "a swan"
    assert parse("--prompt", "a goose").prompt == "a goose"


@pytest.mark.slow
def test_paths_that_are_no_utf_8_and_texts_that_are(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    Image.new("RGB", (64, 64)).save(os.path.join(folder, b"first.png"))
    image = os.fsdecode(os.path.join(folder, b"first.png"))
    again = run(FORCING, *TINY, "--num_frames", 5, "--image", image, cwd=Path(os.fsdecode(folder)))
    again = run(FORCING, "--trust_replay", "--replay", again.path, "--outdir", "again", cwd=tmp_path)
    assert len(again.frames) == 5


def test_settings_are_flags_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 96)).save("end.png")
    argv = ["--end_image", "end.png", "--teacache", "--teacache_coefficients=1,-2,3,4,5", "--causal_block_size", "3"]
    argv += ["--negative_prompt", "", "--seed", "5", "--resolution", "720P", "--dtype", "float16"]
    settings = cli.parse_diffusion_forcing(argv)
    written = json.loads(json.dumps(manifest.settings_of(settings, plan_of(settings, None))))
    again = cli.parse_diffusion_forcing(flags_of(written))
    assert again.end_image == tmp_path / "end.png"
    for name in ("teacache_coefficients", "negative_prompt", "height", "width", "dtype", "causal_block_size", "prompt"):
        assert getattr(again, name) == getattr(settings, name)


def test_a_finished_video_is_known_by_what_was_asked_for(tmp_path):
    """Not by what became of it: a prompt that was written out, a seed that was drawn."""
    about = {"format": 1, "script": FORCING, "asked": "12ab", "settings": {"prompt": "a swan, written out", "seed": 5}}
    for name in ("a-swan_5", "a-swan_5-2"):
        (tmp_path / f"{name}.json").write_text(json.dumps(about))
    (tmp_path / "a-swan_4.json").write_text("{")
    (tmp_path / "a-swan_5-2.mp4").touch()  # the first one was removed
    for seed in (None, 5):
        stem = "a-swan_" if seed is None else f"a-swan_{seed}"
        assert manifest.finished(tmp_path, stem, "12ab", seed) == tmp_path / "a-swan_5-2.mp4"
    assert manifest.finished(tmp_path, "a-swan_6", "12ab", 6) is None
    assert manifest.finished(tmp_path, "a-swan_5", "12ac", 5) is None


def test_comments_survive_ffmpeg_s_escapes(tmp_path):
    text = 'line\nbreak = ; # \\ "quotes" é 鶴'
    (tmp_path / "metadata").write_text(as_ffmetadata(text))
    from skyreels_v2_infer.media.write import VideoWriter, join_videos

    with VideoWriter(tmp_path, "one", 32, 32, 24) as writer:
        writer.write(np.zeros((2, 32, 32, 3), np.uint8))
    join_videos([writer.path], tmp_path / "out.mp4", 24, tmp_path / "metadata")
    assert comment_of(tmp_path / "out.mp4") == text
    with pytest.raises(InputError, match="it has no comment"):
        read_manifest(writer.path)


def test_the_sheet_of_a_very_long_video_does_not_grow_without_end():
    both = preview.pair(*np.zeros((2, 360, 640, 3), np.uint8))
    assert both.size == (640, 180)
    starts = list(range(0, 5000, 5))
    page = preview.sheet(lambda number: both, starts, 5000)
    assert page.width * page.height < 1.5 * preview.MOST
    one = preview.sheet(lambda number: both, [0], 1)
    assert one.size == (320 + 2 * preview.GAP, 180 + preview.LABEL + 2 * preview.GAP)
