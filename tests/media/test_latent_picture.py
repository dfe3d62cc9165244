"""Pictures of latents in approximate colours."""

import json

import numpy as np
import pytest

from skyreels_v2_infer import embedded
from skyreels_v2_infer.media import latent_picture
from skyreels_v2_infer.media.latent_picture import FILE, GAP, MOST, WAN, Projection, picture, projection_in

TWO = Projection(((1.0, 0.0, 0.0), (0.0, 0.5, 0.0)), (0.0, 0.0, -1.0))


def test_latents_are_projected_to_colours():
    latents = np.zeros((2, 1, 48, 96), np.float32)
    latents[0, :, :, 48:] = 1
    latents[1, :, :, 48:] = -2
    shown = np.array(picture(latents, TWO))
    assert shown.shape == (48, 96, 3)
    assert shown[0, 0].tolist() == [128, 128, 0] and shown[-1, -1].tolist() == [255, 0, 0]


def test_small_latents_are_enlarged_and_frames_are_spread():
    latents = np.zeros((2, 25, 8, 8), np.float32)
    latents[0] = np.linspace(-1, 1, 25)[:, None, None]
    shown = np.array(picture(latents, TWO))
    assert shown.shape == (96, MOST * 96 + (MOST - 1) * GAP, 3)
    reds = shown[0, 0 :: 96 + GAP, 0].astype(int)
    assert reds[0] == 0 and reds[-1] == 255 and (np.diff(reds) > 20).all()


def test_numbers_that_are_not_finite_make_a_picture():
    assert np.array(picture(np.full((2, 1, 8, 8), np.nan, np.float32), TWO)).max() <= 128


def test_other_channels_are_an_error():
    with pytest.raises(ValueError, match="2 latent channels, not 3"):
        picture(np.zeros((3, 1, 8, 8), np.float32), TWO)


def test_a_vae_brings_its_colours(tmp_path):
    assert projection_in(tmp_path) is WAN and len(WAN.matrix) == 16
    (tmp_path / FILE).write_text(json.dumps({"matrix": [[1, 0, 0], [0, 0.5, 0]], "offset": [0, 0, -1]}))
    assert projection_in(tmp_path) == TWO
    for text in (
        "{}",
        "[",
        '{"matrix": [[1, 2]], "offset": [0, 0, 0]}',
        '{"matrix": [[NaN, 2, 3]], "offset": [0, 0, 0]}',
    ):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(ValueError, match="unusable"):
            projection_in(tmp_path)


def test_the_embedded_models_have_the_same_colours():
    found = [projection_in(embedded.folder(kind) / "vae") for kind in (False, True)]
    assert found[0] == found[1] != latent_picture.WAN
