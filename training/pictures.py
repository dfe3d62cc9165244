"""Pictures for the documents: how training went, and what the model makes."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

SCALE = 2  # pixels of the picture for a pixel of a video
CAPTION = 28
NOT_DRAWN = ("step", "held_out_worst", "first_two_alike")  # of a gate
PROMPTS = (
    "A red circle moves slowly to the right on a black background",
    "a fast blue square moving upward, gray background",
    "a yellow triangle glides gently to the left",
    "on a gradient background, a white ball travels quickly down",
    "a purple box stays still on a navy background",
    "a cyan triangle moves slowly up",
    "a green disc slides rapidly to the right against a gray background",
    "an orange block slides slowly to the left",
)


def read_log(stage: Path) -> list[dict]:
    path = stage / "log.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def curves(folder: Path, out: Path) -> None:
    """The logs of all stages in `folder`: losses above, what the judge or the PSNR says below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = [("vae/main", "VAE"), ("vae/align", "VAE, one code"), ("vae/finish", "VAE, decoder")]
    stages += [("t2v", "t2v"), ("df", "df"), ("decoder", "VAE, decoder again"), ("i2v", "i2v")]
    stages = [(title, log) for name, title in stages if (log := read_log(folder / name))]
    figure, axes = pyplot.subplots(2, len(stages), figsize=(3 * len(stages), 5), squeeze=False)
    for (title, log), (above, below) in zip(stages, axes.T, strict=True):
        losses = [(note["step"], note["loss"]) for note in log if "loss" in note]
        above.plot(*zip(*losses, strict=True), linewidth=0.8)
        above.set(title=title, xlabel="update", ylabel="loss")
        if title.startswith("VAE"):
            above.set_yscale("log")
        gates = [note for note in log if "loss" not in note]
        names = [name for name in (gates[0] if gates else {}) if name not in NOT_DRAWN]
        for name in names:
            below.plot([note["step"] for note in gates], [note[name] for note in gates], ".-", label=name)
        below.set(xlabel="update", ylabel="dB" if names and "all" not in names else "%")
        below.set_visible(bool(gates))
        if gates:
            below.legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(out, dpi=100)


def sheet(videos: list[tuple[str, np.ndarray]], out: Path, columns: int = 4, fps: int = 16) -> None:
    """An animated GIF of videos, uint8 ``[T, H, W, 3]``, each under its prompt."""
    _, height, width, _ = videos[0][1].shape
    cell = (width * SCALE, height * SCALE + CAPTION)
    rows = -(-len(videos) // columns)
    pages = []
    for t in range(min(len(video) for _, video in videos)):
        page = Image.new("RGB", (cell[0] * columns + 4 * (columns - 1), cell[1] * rows), "white")
        draw = ImageDraw.Draw(page)
        for i, (prompt, video) in enumerate(videos):
            left, top = (cell[0] + 4) * (i % columns), cell[1] * (i // columns)
            draw.multiline_text((left + 1, top + 1), wrapped(prompt, cell[0]), fill="black", font_size=8, spacing=0)
            frame = Image.fromarray(video[t]).resize((width * SCALE, height * SCALE), Image.Resampling.NEAREST)
            page.paste(frame, (left, top + CAPTION))
        pages.append(page)
    pages = in_one_palette(pages)
    pages[0].save(out, save_all=True, append_images=pages[1:], duration=round(1000 / fps), loop=0, optimize=True)


def in_one_palette(pages: list[Image.Image], colours: int = 128) -> list[Image.Image]:
    """The pages in the same colours; a palette for each would make what stands still flicker."""
    strip = Image.new("RGB", (pages[0].width, len(pages) * pages[0].height))
    for place, page in enumerate(pages):
        strip.paste(page, (0, place * page.height))
    palette = strip.quantize(colours)
    return [page.quantize(palette=palette, dither=Image.Dither.NONE) for page in pages]


def wrapped(text: str, width: int) -> str:
    """`text` in lines of at most `width` pixels."""
    lines, draw = [""], ImageDraw.Draw(Image.new("L", (1, 1)))
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if draw.textlength(longer, font_size=8) > width - 2 and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return "\n".join(lines)


def sheet_of(model: Path, out: Path) -> None:
    """What the model makes of `PROMPTS`, at its own settings."""
    from training import evaluate

    pipeline = evaluate.Models(model)(evaluate.Text2VideoPipeline)
    made = pipeline(list(PROMPTS), **evaluate.settings(num_frames=33))
    sheet(list(zip(PROMPTS, made, strict=True)), out)
