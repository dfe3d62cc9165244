"""The embedded model: a tiny SkyReels-V2 inside the package, for any CPU and for tests."""

from pathlib import Path

NAME = "tiny"
FOLDER = Path(__file__).parent / "assets" / "tiny"


def folder(image_to_video: bool) -> Path:
    """The folder of one of the two embedded checkpoints, in diffusers' layout."""
    return FOLDER / ("i2v" if image_to_video else "df")


def name_of(model_id: str) -> str:
    """The model's name for messages: its `model_id`, but NAME for either embedded checkpoint."""
    return NAME if Path(model_id).parent == FOLDER else model_id
