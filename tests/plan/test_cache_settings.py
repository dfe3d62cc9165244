"""--cache in the plan: what it takes from the model's folder, and what --dry_run says."""

import json

import pytest

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing
from skyreels_v2_infer.cli.planning import plan_of
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.plan.cache_settings import CACHES, EasyCachePlan, MagCachePlan, TeaCachePlan, read_cache
from skyreels_v2_infer.plan.caching import COEFFICIENTS, RATIOS_FILE, choose_ratios, resampled
from skyreels_v2_infer.plan.show import described_cache
from skyreels_v2_infer.run.dry_run import described
from skyreels_v2_infer.run.identity import identity_of
from skyreels_v2_infer.run.manifest import settings_of
from skyreels_v2_infer.weights.locate import Checkpoint

CONFIG = {"model_type": "t2v", "dim": 1536, "num_heads": 12, "num_layers": 30, "ffn_dim": 8960}


def settings(*flags):
    return parse_diffusion_forcing(["--seed=1", *map(str, flags)])


def table(shift: float, steps: int, first: float = 1.0) -> dict:
    return {"shift": shift, "steps": steps, "ratios": [[first + i / 100 for i in range(steps)]] * 2}


@pytest.fixture
def folder(tmp_path):
    tables = [table(5.0, 4, 2.0), table(8.0, 10), table(8.0, 21)]
    (tmp_path / RATIOS_FILE).write_text(json.dumps({"tables": tables}))
    return tmp_path


class TestRatios:
    def test_another_number_of_steps_takes_the_nearest_ones(self):
        assert resampled([0, 1, 2, 3, 4], 5) == [0, 1, 2, 3, 4]
        assert resampled([0, 1, 2, 3, 4], 3) == [0, 2, 4]
        assert resampled([0, 1, 2], 5) == [0, 0, 1, 2, 2]  # halves are rounded to even
        assert resampled([0, 1, 2], 1) == [0]

    def test_the_nearest_table_of_the_shift_is_taken(self, folder):
        assert choose_ratios(folder, "m", 8.0, 10) == tuple(table(8, 10)["ratios"][0]) * 2
        assert choose_ratios(folder, "m", 8.0, 11)[:11] == tuple(resampled(table(8, 10)["ratios"][0], 11))
        assert choose_ratios(folder, "m", 8.0, 30)[:30] == tuple(resampled(table(8, 21)["ratios"][0], 30))
        assert choose_ratios(folder, "m", 5.0, 4)[0] == 2.0

    def test_a_table_measured_without_guidance_is_for_both_passes(self, tmp_path):
        one = {"shift": 1, "steps": 2, "ratios": [[1, 0.5]]}
        (tmp_path / RATIOS_FILE).write_text(json.dumps({"tables": [one]}))
        assert choose_ratios(tmp_path, "m", 1.0, 2) == (1, 0.5, 1, 0.5)

    def test_without_a_table_one_line_names_the_command(self, folder, tmp_path):
        line = "python -m skyreels_v2_infer.run.calibrate --cache magcache --model_id m --shift 3 --inference_steps 20"
        with pytest.raises(InputError, match=f"--cache magcache: .* is for --shift 5, 8, not 3; {line} adds that"):
            choose_ratios(folder, "m", 3.0, 20)
        (folder / RATIOS_FILE).unlink()
        with pytest.raises(InputError, match=f"--cache magcache: this model has no magcache.json; {line} measures one"):
            choose_ratios(folder, "m", 3.0, 20)

    @pytest.mark.parametrize(
        "content",
        ["", "[]", '{"tables": 3}']
        + [
            json.dumps({"tables": [{"shift": 3.0, "ratios": ratios}]})
            for ratios in ([], [[]], [[1], [1, 2]], [[1]] * 3, [[0.0]], [["x"]], 7)
        ],
    )
    def test_an_unusable_table_is_refused(self, tmp_path, content):
        (tmp_path / RATIOS_FILE).write_text(content)
        with pytest.raises(InputError, match=f"--cache magcache: .*{RATIOS_FILE} cannot be used"):
            choose_ratios(tmp_path, "m", 3.0, 20)


class TestPlan:
    def test_teacache_by_either_flag_is_the_same(self):
        one = plan_of(settings("--cache", "teacache:threshold=0.3,ret_steps=1"), CONFIG)
        other = plan_of(settings("--teacache", "--teacache_thresh", 0.3, "--use_ret_steps"), CONFIG)
        assert one.cache == other.cache and isinstance(one.cache, TeaCachePlan)
        plain = plan_of(settings("--cache", "teacache"), CONFIG)
        assert plain.cache == TeaCachePlan(0.2, 0, COEFFICIENTS["t2v", 1536])

    def test_easycache_needs_nothing_of_the_model(self):
        assert plan_of(settings("--cache", "easycache"), None).cache == EasyCachePlan(0.05, 0.2)

    def test_magcache_has_a_ratio_for_each_step_of_each_pass(self, folder):
        flags = ("--cache", "magcache:skips=2", "--shift", 8, "--inference_steps", 10)
        expected = MagCachePlan(0.12, 2, 0.2, tuple(table(8, 10)["ratios"][0]) * 2)
        assert plan_of(settings(*flags), CONFIG, folder).cache == expected
        assert plan_of(settings(*flags), CONFIG).cache.ratios is None  # not downloaded yet
        given = plan_of(settings(*flags, "--magcache_ratios", "1,0.5,2,4"), CONFIG)
        assert given.cache.ratios == (*[1] * 5, *[0.5] * 5, *[2] * 5, *[4] * 5)

    def test_magcache_with_sigmas_needs_given_ratios(self, folder):
        flags = ("--cache", "magcache", "--sigmas", "1,0.5")
        with pytest.raises(InputError, match="its tables are for a --shift, not for --sigmas"):
            plan_of(settings(*flags), CONFIG, folder)
        assert plan_of(settings(*flags, "--magcache_ratios", "1,1,1,1"), CONFIG).cache.ratios == (1,) * 4

    @pytest.mark.parametrize("name", CACHES)
    def test_what_is_written_reads_the_same(self, name):
        assert read_cache(str(read_cache(name))) == read_cache(name)


class TestDryRun:
    @pytest.mark.parametrize(
        ("cache", "flags", "fewest"),
        [
            ("easycache", (), 5),  # 4 of 20 steps, and the last
            ("easycache:retention=0", ("--num_frames", 65), 6),  # three windows
            ("easycache:retention=0.05", ("--ar_step", 4), 18),  # of 9 frames the first and the last step
            ("magcache", (), 4),
            ("teacache", (), 2),
            ("teacache:ret_steps=1", ("--num_frames", 65), 15),
        ],
    )
    def test_it_says_how_many_rows_are_computed_at_least(self, cache, flags, fewest):
        given = settings("--model_id", "tiny", "--cache", cache, *flags)
        assert described(given)["cache"] == {"settings": given.cache, "fewest_rows": fewest}
        assert described(settings("--model_id", "tiny"))["cache"] is None

    def test_with_an_unknown_model(self):
        plan = plan_of(settings("--cache", "magcache"), None)
        assert described_cache(plan, plan.cache)["fewest_rows"] == 6


@pytest.mark.parametrize("cache", CACHES)
def test_identity_and_manifest_hold_the_cache_and_what_it_found(cache):
    given = settings("--model_id", "tiny", "--cache", cache)
    checkpoint = Checkpoint.open(given.model_id)
    plan = plan_of(given, checkpoint.transformer_config, checkpoint.folder)
    identity = identity_of("generate_video_df.py", given, plan, checkpoint)
    written = settings_of(given, plan, plan.cache.found)
    assert identity["cache"] == written["cache"] == str(plan.cache)
    found = {"teacache": "teacache_coefficients", "magcache": "magcache_ratios"}
    for name, flag in found.items():
        assert (identity[flag] is not None) == (flag in written) == (name == cache)
    other = settings("--model_id", "tiny", "--cache", f"{cache}:threshold=0.01")
    assert identity_of("generate_video_df.py", other, plan, checkpoint) != identity
