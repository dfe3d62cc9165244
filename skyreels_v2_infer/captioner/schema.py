"""The structural caption: what SkyCaptioner-V1 writes about one shot, as typed objects and as JSON.

Fields and options are those of the model's published prompt (SkyReels-V2, section 3.2). All texts are English; "" means
that there is nothing to say, for `Caption.camera_motion` that the camera does not move.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

OTHER = "other"
OPTIONS = {
    "shot_type": ("long_shot", "full_shot", "medium_shot", "close_up", "extreme_close_up", OTHER),
    "shot_angle": ("eye_level", "high_angle", "low_angle", OTHER),
    "shot_position": (
        *("front_view", "back_view", "side_view", "over_the_shoulder", "overhead_view", "point_of_view"),
        *("aerial_view", "overlooking_view", OTHER),
    ),
}
TEXTS = ("camera_motion", "environment", "lighting")
SUBJECT_TEXTS = ("appearance", "action", "expression", "position")


@dataclass(frozen=True)
class Subject:
    """A person, an animal or a thing in a shot.

    Attributes:
        expression: of a face; "" unless it is a person or an animal.
        position: in the picture, or relative to other subjects.
        type, sub_type: an open list, such as ("Human", "Woman"), ("Vehicles", "Ship").
        is_main: whether the shot is about it.
    """

    appearance: str = ""
    action: str = ""
    expression: str = ""
    position: str = ""
    type: str = ""
    sub_type: str = ""
    is_main: bool = False

    def as_dict(self) -> dict:
        """With the names of the published JSON."""
        texts = {name: getattr(self, name) for name in SUBJECT_TEXTS}
        kind = {"type": self.type, "sub_type": self.sub_type}
        return {**texts, "TYPES": kind, "is_main_subject": self.is_main}


@dataclass(frozen=True)
class Caption:
    """The structural caption of a shot.

    Attributes:
        shot_type, shot_angle, shot_position: one of `OPTIONS`, "", or words of a model that are none of them.
        camera_motion: free clauses.
    """

    subjects: tuple[Subject, ...] = ()
    shot_type: str = ""
    shot_angle: str = ""
    shot_position: str = ""
    camera_motion: str = ""
    environment: str = ""
    lighting: str = ""

    def as_dict(self) -> dict:
        """With the names and the order of the published JSON."""
        return {**asdict(self), "subjects": [subject.as_dict() for subject in self.subjects]}

    def as_json(self) -> str:
        """In one line; characters beyond ASCII are kept."""
        return json.dumps(self.as_dict(), ensure_ascii=False)
