"""Measures the embedded model with the judge, on prompts of the test or others, and prints the tables of docs.

Every section makes videos with the pipelines as the scripts do, at the model's own settings.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from skyreels_v2_infer.cli.defaults import TINY
from skyreels_v2_infer.pipelines import DiffusionForcingPipeline, Image2VideoPipeline, Text2VideoPipeline
from skyreels_v2_infer.pipelines.conditioning import to_frames, to_video
from skyreels_v2_infer.weights.locate import Checkpoint
from training import judge, scores, world

SEED = 7
BATCH = 20
CORE = ("colour", "shape", "motion", "speed")


def settings(**other) -> dict:
    """The model's own, as keyword arguments of a pipeline."""
    own = TINY
    common = {
        "height": own.height,
        "width": own.width,
        "num_inference_steps": own.inference_steps,
        "shift": own.shift,
        "guidance_scale": own.guidance_scale,
        "negative_prompt": own.negative_prompt,
        "seed": SEED,
    }
    return common | other


def forcing(**other) -> dict:
    own = TINY
    windows = {
        "base_num_frames": own.base_num_frames,
        "overlap_history": own.overlap_history,
        "addnoise_condition": own.addnoise_condition,
        "ar_step": 0,
    }
    return settings(**windows) | other


def in_batches(pipeline, clips: list[world.Clip], **arguments) -> Iterator[tuple[world.Clip, np.ndarray]]:
    """(clip, frames made from its prompt), many at a time."""
    for i in tqdm(range(0, len(clips), BATCH), leave=False, unit="batch"):
        batch = clips[i : i + BATCH]
        made = pipeline([clip.prompt for clip in batch], **arguments | {"seed": SEED + i})
        yield from zip(batch, made, strict=True)


def rates(results: Iterator[tuple[world.Clip, np.ndarray]]) -> dict[str, float]:
    """Shares, in percent, of what the prompts name that is seen; `clean`: without a fault in any frame."""
    seen: dict[str, list[bool]] = {}
    for clip, frames in results:
        found = scores.score(judge.judge(frames), clip.named)
        for name, right in found.attributes.items():
            seen.setdefault(name, []).append(right)
        if found.direction is not None:
            seen.setdefault("direction", []).append(found.direction)
        seen.setdefault("all", []).append(found.core)
        seen.setdefault("clean", []).append(found.clean)
        seen.setdefault("outline", []).append(found.whole)
    columns = (*CORE, "size", "direction", "all", "clean", "outline", "count", "background")
    return {name: percent(seen[name]) for name in columns if name in seen}


def percent(values) -> float:
    return round(100 * float(np.mean(values)), 1)


class Models:
    """The pipelines of a folder that holds `df` and perhaps `i2v`, each loaded once, and what they are measured on.

    Args:
        split: "test": prompts that training never saw; "train": others, by which one may choose between models.
    """

    def __init__(self, folder: Path, split: str = "test"):
        self.folder, self.split = folder, split
        self._made: dict[type, object] = {}

    def __call__(self, kind: type):
        if kind not in self._made:
            part = "i2v" if kind is Image2VideoPipeline else "df"
            self._made[kind] = kind(Checkpoint.open(self.folder / part), device="cpu", weight_dtype=torch.float32)
        return self._made[kind]

    def prompts(self, count: int, frames: int) -> list[world.Clip]:
        return world.core_prompts(count, frames, self.split)


def text(models: Models, count: int) -> dict:
    """17 and 33 frames, all frames together; and without guidance."""
    table = {}
    for frames in (17, 33):
        clips = models.prompts(count, frames)
        for name, other in ((f"{frames} frames", {}), (f"{frames} frames, no guidance", {"guidance_scale": 1})):
            arguments = settings(num_frames=frames, **other)
            table[name] = rates(in_batches(models(Text2VideoPipeline), clips, **arguments))
    return table


ASYNCHRONOUS = {
    "ar_step 4": {"ar_step": 4},
    "ar_step 4, causal_attention": {"ar_step": 4, "causal_attention": True},
}


def asynchronous(models: Models, count: int) -> dict:
    """The same prompts, later frames behind earlier ones."""
    table = {}
    for frames in (17, 33):
        clips = models.prompts(count, frames)
        for name, other in ASYNCHRONOUS.items():
            arguments = forcing(num_frames=frames, **other)
            table[f"{frames} frames, {name}"] = rates(in_batches(models(DiffusionForcingPipeline), clips, **arguments))
    return table


def image(models: Models, count: int) -> dict:
    """A first image: how near the first frame is to what the VAE makes of the image, and whether the prompt is met."""
    table = {}
    for name, kind in (("df", DiffusionForcingPipeline), ("i2v", Image2VideoPipeline)):
        if not (models.folder / name).exists():
            continue
        pipeline = models(kind)
        arguments = forcing() if name == "df" else settings()
        first, clips = [], []
        for i, clip in enumerate(tqdm(models.prompts(count, 33), leave=False)):
            picture = clip.render()[0]
            made = pipeline(prompt=clip.prompt, image=picture, num_frames=33, **arguments | {"seed": SEED + i})[0]
            again = pipeline.vae.decode(pipeline.vae.encode(to_video(picture[None], torch.device("cpu"))))
            first.append(psnr(made[0], to_frames(again)[0, 0]))
            clips.append((clip, made))
        table[name] = rates(iter(clips)) | {
            "first frame, least dB": round(min(first), 1),
            "first frame >= 28 dB": percent(np.array(first) >= 28),
        }
    return table


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return 10 * np.log10(255**2 / max(error, 1e-9))


def windows(models: Models, count: int) -> dict:
    """Five windows: whether motion goes on across every seam."""
    own = TINY
    step = own.base_num_frames - own.overlap_history
    frames = own.base_num_frames + 4 * step
    seams = range(own.base_num_frames, frames, step)
    clips = models.prompts(count, frames)
    on, steady, first = [], [], []
    for clip, made in in_batches(models(DiffusionForcingPipeline), clips, **forcing(num_frames=frames)):
        verdict = judge.judge(made)
        on.append(all(scores.continues(verdict, seam) for seam in seams))
        steady.append(scores.drift(verdict).within())
        first.append(scores.score(judge.judge(made[: own.base_num_frames]), clip.named).core)
    return {
        f"{frames} frames": {
            "on across all seams": percent(on),
            "within 10 %": percent(steady),
            "prompt": percent(first),
        }
    }


def long(models: Models, count: int) -> dict:
    """Twenty windows: whether the object stays itself."""
    own = TINY
    frames = own.base_num_frames + 19 * (own.base_num_frames - own.overlap_history)
    clips = models.prompts(count, frames)
    drifts = []
    for _, made in in_batches(models(DiffusionForcingPipeline), clips, **forcing(num_frames=frames)):
        drifts.append(scores.drift(judge.judge(made)))
    return {
        f"{frames} frames": {
            "within 10 %": percent([drift.within() for drift in drifts]),
            "colour within 10 %": percent([drift.colour <= 0.1 for drift in drifts]),
            "size within 10 %": percent([drift.size <= 0.1 for drift in drifts]),
        }
    }


def end(models: Models, count: int) -> dict:
    """A first and an end image: how far from its place in the latter the object ends; and without the end image."""
    pipeline, table = models(DiffusionForcingPipeline), {}
    for name in ("with the end image", "without"):
        distances = []
        for i, clip in enumerate(tqdm(models.prompts(count, 33), leave=False)):
            frames = clip.render()
            given = {"image": frames[0], "end_image": frames[-1] if name != "without" else None}
            made = pipeline(prompt=clip.prompt, num_frames=33, **given, **forcing(seed=SEED + i))[0]
            distances.append(scores.end_distance(judge.judge(made), frames[-1]))
        near = percent(np.array(distances) <= 3)
        table[name] = {"within 3 pixels": near, "median, pixels": round(float(np.median(distances)), 2)}
    return table


BEYOND = {
    "star": (world.Mix(bounce=0, star=1), "shape"),
    "diagonal": (world.Mix(bounce=0, diagonal=1), "motion"),
    "small, big": (world.Mix(bounce=0, sizes=1), "size"),
    "spin": (world.Mix(bounce=0, spin=1), "spin"),
    "grow, shrink": (world.Mix(bounce=0, growth=1), "growth"),
    "camera pan": (world.Mix(bounce=0, camera=1), "camera"),
    "two objects": (world.Mix(bounce=0, pair=1), "other colour"),
}


def beyond(models: Models, count: int) -> dict:
    """What lies beyond the core, 33 frames: the attribute in question, and everything that the prompt names."""
    table = {}
    for name, (mix, attribute) in BEYOND.items():
        sampled = (world.sample_clip(2031, i, 33, mix, models.split) for i in range(100 * count))
        clips = []
        for clip in sampled:
            if attribute in clip.named:
                clips.append(clip)
            if len(clips) == count:
                break
        made = in_batches(models(Text2VideoPipeline), clips, **settings(num_frames=33))
        found = [scores.score(judge.judge(frames), clip.named) for clip, frames in made]
        table[name] = {
            attribute: percent([score.attributes[attribute] for score in found]),
            "everything": percent([score.together for score in found]),
        }
    return table


SECTIONS: dict[str, tuple[Callable[[Models, int], dict], int]] = {
    "text": (text, 200),
    "asynchronous": (asynchronous, 100),
    "image": (image, 100),
    "windows": (windows, 100),
    "long": (long, 50),
    "end": (end, 60),
    "beyond": (beyond, 20),
}


def run(folder: Path, out: Path, sections: list[str], count: int | None = None, split: str = "test") -> dict:
    """Adds the sections' figures to the json file `out`, and returns all that it then holds."""
    models = Models(folder, split)
    for name in sections:
        section, usual = SECTIONS[name]
        figures = section(models, count or usual)
        known = json.loads(out.read_text()) if out.exists() else {}
        known[name if split == "test" else f"{name}, {split}"] = figures
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(known, indent=1) + "\n")
        print(markdown(figures), flush=True)
    return json.loads(out.read_text())


def markdown(table: dict[str, dict[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in table.values() for name in row))
    lines = ["| |" + "".join(f" {name} |" for name in columns), "|---|" + "---|" * len(columns)]
    for name, row in table.items():
        lines.append(f"| {name} |" + "".join(f" {row.get(column, '')} |" for column in columns))
    return "\n".join(lines)


def quick(pipeline: Text2VideoPipeline, count: int = 40) -> dict[str, float]:
    """A gate during training, on prompts of the training split: 17 frames, in percent."""
    clips = world.core_prompts(count, 17, "train", seed=5150)
    found = rates(in_batches(pipeline, clips, **settings(num_frames=17)))
    return {name: found[name] for name in (*CORE, "size", "all", "clean", "outline") if name in found}
