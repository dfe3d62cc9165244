"""--dry_run of caption_video.py: what would be done. Needs no weights."""

from __future__ import annotations

import json

from skyreels_v2_infer.captioner.frames import COUNT, HEIGHT, WIDTH
from skyreels_v2_infer.captioner.inputs import STRUCTURAL
from skyreels_v2_infer.captioner.pixels import grid_of, tokens_of
from skyreels_v2_infer.cli.captions import CaptionSettings
from skyreels_v2_infer.plan.models import CAPTIONER, ENHANCER

PARAMETERS = {CAPTIONER: 8_292_166_656, ENHANCER: 32_763_876_352}  # of the published models


def described(settings: CaptionSettings, rows: list[dict]) -> dict:
    """What would be done, as JSON data. Memory is that of weights in bfloat16, None for models that are not known."""
    captions = sum(not row.get(STRUCTURAL) for row in rows)
    models = {"captioner": settings.model_id if captions else None, "fusion": settings.fusion_model}
    return {
        "rows": len(rows),
        "captions": captions,
        "prompts": 0 if settings.task == "struct" else len(rows),
        "batches": -(-captions // settings.bs),
        "frames": COUNT,
        "video_tokens": tokens_of(grid_of(COUNT, HEIGHT, WIDTH)) if settings.sampling == "faithful" else None,
        "models": {
            role: {"model": model, "weights_gib": None if settings.endpoint else gib_of(model)}
            for role, model in models.items()
            if model is not None
        },
        "endpoint": settings.endpoint,
        "output": str(settings.output),
    }


def gib_of(model: str) -> float | None:
    return round(2 * PARAMETERS[model] / 2**30, 1) if model in PARAMETERS else None


def dry_run(settings: CaptionSettings, rows: list[dict]) -> str:
    """The output of --dry_run."""
    about = described(settings, rows)
    if settings.dry_run == "json":
        return json.dumps(about, indent=2)
    tokens = f", {about['video_tokens']} tokens" if about["video_tokens"] else ""
    lines = [f"{about['rows']} rows: {about['captions']} captions, {about['prompts']} prompts"]
    lines.append(f"{about['batches']} batches of {settings.bs} clips, each of {about['frames']} frames{tokens}")
    for role, part in about["models"].items():
        size = f" (weights {part['weights_gib']} GiB in bfloat16)" if part["weights_gib"] else ""
        lines.append(f"{role}: {part['model']}{size}")
    if about["endpoint"]:
        lines.append(f"at {about['endpoint']}")
    return "\n".join([*lines, f"-> {about['output']}"])
