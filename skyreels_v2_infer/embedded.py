"""The embedded model: a tiny SkyReels-V2 that comes with the package, for a bare CPU and for tests."""

from pathlib import Path

NAME = "tiny"
FOLDER = Path(__file__).parent / "assets" / "tiny"


def folder(image_to_video: bool) -> Path:
    """The part of the embedded model that a job needs, a folder in diffusers' layout."""
    return FOLDER / ("i2v" if image_to_video else "df")


def name_of(model_id: str) -> str:
    """What a user calls a model: its `model_id`, but NAME for both parts of the embedded one."""
    return NAME if Path(model_id).parent == FOLDER else model_id
