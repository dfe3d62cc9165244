"""``python -m training.colours``: fits the colours of the embedded VAE's latents, for --preview_every.

A linear least-squares fit from latents of drawn clips to the mean colour of the 8 x 8 pixels and four frames that each
stands for. Writes latent_colours.json beside both VAEs, which share their encoder, and prints the error on other clips.
"""

import json

import numpy as np
import torch

from skyreels_v2_infer import embedded
from skyreels_v2_infer.media.latent_picture import FILE
from skyreels_v2_infer.weights.loading import get_vae
from training import clips, world

CLIPS, FRAMES, SEED = 192, 17, 7
RIDGE = 1e-3  # of the mean square of a channel, for channels that hardly vary


def samples(vae, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Latents ``[N, C]``, and mean colours ``[N, 3]`` in -1..1."""
    drawn = [world.sample_clip(SEED, index, FRAMES, split=split) for index in range(CLIPS)]
    video = clips.video_of(drawn)
    with torch.no_grad():
        latents = torch.cat([clips.encode(vae, part) for part in video.split(16)])
    first, later = video[:, :, :1], video[:, :, 1:]
    later = later.unflatten(2, (-1, 4)).mean(dim=3)
    colours = torch.nn.functional.avg_pool3d(torch.cat([first, later], dim=2), (1, 8, 8))
    return tuple(x.movedim(1, -1).flatten(0, -2).double().numpy() for x in (latents, colours))


def main() -> None:
    vae = get_vae(embedded.folder(image_to_video=False), "cpu")
    latents, colours = samples(vae, "train")
    inputs = np.column_stack([latents, np.ones(len(latents))])
    ridge = RIDGE * len(latents) * np.diag([*np.square(latents).mean(axis=0), 0])
    fitted = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ colours)
    text = json.dumps({"matrix": fitted[:-1].round(4).tolist(), "offset": fitted[-1].round(4).tolist()}) + "\n"
    for image_to_video in (False, True):
        (embedded.folder(image_to_video) / "vae" / FILE).write_text(text)
    latents, colours = samples(vae, "test")
    error = latents @ fitted[:-1] + fitted[-1] - colours
    print(f"root mean square error {np.sqrt(np.square(error).mean()) * 127.5:.1f} of 255 levels on other clips")
    print(f"that of the mean colour: {np.sqrt(np.square(colours - colours.mean(axis=0)).mean()) * 127.5:.1f}")


if __name__ == "__main__":
    main()
