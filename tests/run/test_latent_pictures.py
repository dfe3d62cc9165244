"""--preview_every: when pictures are written, and their names."""

import numpy as np
import pytest
import torch
from PIL import Image

from skyreels_v2_infer import embedded
from skyreels_v2_infer.run.latent_pictures import LatentPictures, name_after

VAE = embedded.folder(image_to_video=False) / "vae"


def rows_drawn(pictures: LatentPictures, rows: int) -> list[int]:
    drawn = []
    for row in range(rows):
        pictures(0, row, rows, lambda row=row: drawn.append(row) or torch.zeros(1, 16, 5, 8, 8))
    return drawn


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3, 4]), (2, [1, 3, 4]), (9, [4])])
def test_every_n_rows_and_the_last(tmp_path, every, expected):
    pictures = LatentPictures(tmp_path / "a.latents.png", every, VAE)
    assert rows_drawn(pictures, 5) == expected
    with Image.open(tmp_path / "a.latents.png") as shown:
        assert shown.height == 96 and np.array(shown).ndim == 3


def test_the_picture_is_announced_once(tmp_path, capsys):
    rows_drawn(LatentPictures(tmp_path / "a.latents.png", 2, VAE), 5)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "a.latents.png" in err and "approximate" in err


def test_what_cannot_be_written_is_said_once(tmp_path, capsys):
    assert rows_drawn(LatentPictures(tmp_path / "none" / "a.latents.png", 2, VAE), 9) == [1]
    assert capsys.readouterr().err.count("--preview_every: no picture: ") == 1


def test_it_gets_the_name_of_the_video_but_no_other_file_s(tmp_path):
    pictures = LatentPictures(tmp_path / "a-123.latents.png", 1, VAE)
    rows_drawn(pictures, 1)
    name_after(pictures.path, tmp_path / "a-2.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["a-2.latents.png"]
    (tmp_path / "b.latents.png").write_text("mine")
    rows_drawn(pictures, 1)
    name_after(pictures.path, tmp_path / "b.mp4")
    assert (tmp_path / "b.latents.png").read_text() == "mine" and (tmp_path / "a-123.latents.png").exists()
    pictures.remove()
    pictures.remove()
    assert not (tmp_path / "a-123.latents.png").exists()
