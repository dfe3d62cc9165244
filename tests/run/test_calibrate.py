"""The calibration command for MagCache, and the scripts with what it writes. (TeaCache's: test_teacache.py.)"""

import itertools
import json

import numpy as np
import pytest
import script_runs
from script_runs import FORCING
from small_checkpoints import write_diffusers

from skyreels_v2_infer import DiffusionForcingPipeline
from skyreels_v2_infer.modules.caches.base import WindowCache
from skyreels_v2_infer.pipelines.hooks import Hooks
from skyreels_v2_infer.plan.caching import RATIOS_FILE
from skyreels_v2_infer.run import calibrate

SIZE = ("--height=32", "--width=48", "--num_frames=5", "--inference_steps=4", "--device=cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_diffusers(tmp_path_factory.mktemp("df"), "df")


@pytest.fixture(scope="module")
def calibrated(folder):
    argv = ["--cache=magcache", "--model_id", str(folder), *SIZE, "--prompt", "a swan", "--seed=3"]
    assert calibrate.main([*argv, "--shift=3"]) == 0
    assert calibrate.main([*argv, "--shift=5", "--forcing", "--ar_step=1", "--guidance_scale=1"]) == 0
    return folder


class Residuals(WindowCache):
    """Keeps what the blocks add in every row, of the conditional pass."""

    def __init__(self):
        self.kept = []

    def window(self, rows):
        return self

    def blocks(self, branch):
        def around(tokens, time, modulation, run):
            done = run(tokens)
            if branch == 0:
                self.kept.append((done - tokens).double())
            return done

        return around


def test_it_measures_the_blocks_of_the_run_that_it_is_asked_for(calibrated):
    """Written out: mean over tokens of the norm over channels, relative to the step before."""
    watched = Residuals()
    pipeline = DiffusionForcingPipeline(str(calibrated), device="cpu", hooks=Hooks(cache=watched))
    settings = {"height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 4, "shift": 3.0, "seed": 3}
    settings |= {"guidance_scale": 6.0, "ar_step": 0, "base_num_frames": 97, "output_type": "latent"}
    defaults = calibrate.parse_generate(["--model_id", str(calibrated)])
    pipeline("a swan", defaults.negative_prompt, **settings)
    norms = [residual.pow(2).sum(-1).sqrt() for residual in watched.kept]
    expected = [1.0] + [float((b / a).mean()) for a, b in itertools.pairwise(norms)]
    tables = json.loads((calibrated / RATIOS_FILE).read_text())["tables"]
    np.testing.assert_allclose(tables[0]["ratios"][0], expected, atol=1e-4)


def test_tables_of_other_settings_are_kept_and_the_same_one_replaced(calibrated):
    def tables():
        found = json.loads((calibrated / RATIOS_FILE).read_text())["tables"]
        return [(table["shift"], table["steps"], [len(ratios) for ratios in table["ratios"]]) for table in found]

    assert tables() == [(3.0, 4, [4, 4]), (5.0, 4, [4])]  # without guidance there is one pass
    argv = ["--cache=magcache", "--model_id", str(calibrated), *SIZE, "--shift=5", "--prompt", "a swan", "a kite"]
    assert calibrate.main(argv) == 0
    assert tables() == [(3.0, 4, [4, 4]), (5.0, 4, [4, 4])]


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--out", "nowhere/x.json"], "must be a folder that can be written to"),
        (["--out", "list.json"], "--out list.json: exists and has no tables"),
        (["--sigmas", "1,0.5"], "--sigmas: cannot be used for a calibration"),
        (["--cache=teacache", "--forcing"], "--forcing: only with --cache magcache"),
        (["--cach=magcache"], "--cach=magcache: unknown flag"),
    ],
)
def test_what_cannot_be_done_is_refused_before_the_work(folder, flags, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(SystemExit) as stop:
        calibrate.main(["--cache=magcache", "--model_id", str(folder), *flags])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and line in error and "loaded" not in error


@pytest.mark.slow
def test_the_scripts_use_it_and_a_replay_needs_only_the_manifest(calibrated, tmp_path):
    argv = ("--model_id", calibrated, *SIZE, "--seed", 1, "--shift", 3)
    made = script_runs.run(FORCING, *argv, "--cache", "magcache:threshold=9,skips=2", cwd=tmp_path)
    written = json.loads(made.path.with_suffix(".json").read_text())["settings"]
    assert written["cache"] == "magcache:threshold=9.0,skips=2,retention=0.2"
    (calibrated / RATIOS_FILE).rename(tmp_path / "moved.json")
    replay = ("--replay", made.path, "--trust_replay", "--device", "cpu", "--outdir", "again")
    again = script_runs.run(FORCING, *replay, cwd=tmp_path)
    (tmp_path / "moved.json").rename(calibrated / RATIOS_FILE)
    assert np.array_equal(made.frames, again.frames)
    exact = script_runs.run(FORCING, *argv, cwd=tmp_path)
    assert not np.array_equal(made.frames, exact.frames)
