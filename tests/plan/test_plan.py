"""Plans: which latent frames are given, and that planning needs numpy alone."""

import subprocess
import sys

import pytest

from skyreels_v2_infer.plan.plan import make_plan


def test_what_is_given_in_each_window():
    plan = make_plan(57, 4, 8.0, base_num_frames=25, overlap_history=9, image=True, end_image=True)
    assert [w.given_latents for w in plan.windows] == [1, 3, 3]
    assert [w.end_latents for w in plan.windows] == [0, 0, 1]
    assert [w.latents for w in plan.windows] == [7, 7, 8]
    assert plan.windows[2].held.tolist() == [True] * 3 + [False] * 4 + [True]
    assert plan.rows == 12
    assert plan.longest_history == 9


def test_an_extension_starts_from_history():
    plan = make_plan(16, 4, 8.0, base_num_frames=25, overlap_history=9, prefix_frames=30)
    assert [w.given_latents for w in plan.windows] == [3]
    assert plan.longest_history == 9


def test_image_and_prefix_exclude_each_other():
    with pytest.raises(ValueError, match="image"):
        make_plan(16, 4, 8.0, base_num_frames=25, overlap_history=9, prefix_frames=30, image=True)


def test_planning_needs_no_torch():
    code = (
        "import sys; from skyreels_v2_infer.plan import plan; from skyreels_v2_infer.run import main;"
        "plan.make_plan(1457, 30, 8.0, base_num_frames=97, overlap_history=17);"
        "assert not {'torch', 'transformers', 'diffusers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
