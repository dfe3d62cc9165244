"""Malformed answers of a model, and what becomes of each: a table of (name, answer, outcome, check).

outcome: "parsed": as it is; "repaired": there was one way to understand it; "doubtful": a field is kept as the model
wrote it; otherwise the reason why there is no caption. check: fields that the caption must have, by path.
"""

import json

WOMAN = {
    "appearance": "long black hair, a red coat",
    "action": "walks along the pier",
    "expression": "calm",
    "position": "in the centre",
    "TYPES": {"type": "Human", "sub_type": "Woman"},
    "is_main_subject": True,
}
DOG = {
    "appearance": "small and brown",
    "action": "runs beside her",
    "expression": "",
    "position": "to her left",
    "TYPES": {"type": "Animal", "sub_type": "Mammal"},
    "is_main_subject": False,
}
GOOD = {
    "subjects": [WOMAN, DOG],
    "shot_type": "medium_shot",
    "shot_angle": "eye_level",
    "shot_position": "front_view",
    "camera_motion": "the camera moves backwards, tracking",
    "environment": "a wooden pier by the sea",
    "lighting": "soft morning light",
}
TEXT = json.dumps(GOOD)
PRETTY = json.dumps(GOOD, indent=4)


def but(**changes) -> str:
    """GOOD with other values; without those that are `...`."""
    return json.dumps({name: value for name, value in (GOOD | changes).items() if value is not ...})


def woman(**changes) -> str:
    one = {name: value for name, value in (WOMAN | changes).items() if value is not ...}
    return but(subjects=[one, DOG])


def key(old: str, new: str) -> str:
    return TEXT.replace(f'"{old}":', f'"{new}":')


SAME = {"subjects.0.action": "walks along the pier", "lighting": "soft morning light", "shot_type": "medium_shot"}
LOOP = '{"subjects": [{"appearance": "' + "a blue shirt with a white collar, " * 40
SUBJECT_LOOP = '{"subjects": [' + (json.dumps(WOMAN) + ", ") * 12

ANSWERS = [
    # around the JSON
    ("compact", TEXT, "parsed", SAME),
    ("indented", PRETTY, "parsed", SAME),
    ("surrounded by blanks", f"\n\n  {TEXT}  \n", "parsed", SAME),
    ("a byte order mark", f"\ufeff{TEXT}", "repaired", SAME),
    ("fenced", f"```json\n{PRETTY}\n```", "repaired", SAME),
    ("fenced without a name", f"```\n{PRETTY}\n```", "repaired", SAME),
    ("an open fence", f"```json\n{PRETTY}", "repaired", SAME),
    ("an introduction", f"Here is the caption:\n{PRETTY}", "repaired", SAME),
    ("a remark behind it", f"{PRETTY}\nI hope this helps!", "repaired", SAME),
    ("a second object behind it", f"{TEXT}\n{TEXT}", "repaired", SAME),
    ("in a list", f"[{TEXT}]", "repaired", SAME),
    ("in an object", f'{{"caption": {TEXT}}}', "repaired", SAME),
    ("in an object in a list", f'[{{"output": {TEXT}}}]', "repaired", SAME),
    ("a string in an object", json.dumps({"caption": TEXT}), "repaired", SAME),
    ("two captions in a list", f"[{TEXT}, {TEXT}]", "it is a list of 2", {}),
    ("prose only", "A woman walks along the pier.", "there is no JSON", {}),
    ("nothing", "", "there is no JSON", {}),
    ("blanks", " \n\t ", "there is no JSON", {}),
    ("an empty object", "{}", "it has none of the fields", {}),
    ("an empty list", "[]", "it is a list of 0", {}),
    ("another object", '{"answer": 42, "question": null}', "it has none of the fields", {}),
    ("a list of numbers", "[1, 2, 3]", "it is a list of 3", {}),
    ("random characters", "{]}[\x00\x07\\u{", "it is not an object", {}),
    ("brackets without end", "[" * 5000, "", {}),
    ("brackets before it", f"[1] As {{asked}}:\n```json\n{PRETTY}\n```", "repaired", SAME),
    ("thoughts before it", f"<think>{{a medium shot, [or]}}</think>{TEXT}", "repaired", SAME),
    ("a list before damaged JSON", f"[1, 2]\n{TEXT[:-1]},}}", "repaired", SAME),
    ("begun again", f"{TEXT[:100]}\n{TEXT}", "repaired", SAME),
    ("another caption behind it", f"{TEXT}\n{but(lighting='dark')}", "doubtful", SAME),
    ("a part before it", f'{{"subjects": []}}\n{TEXT}', "doubtful", SAME),
    ("beside something else", json.dumps({"caption": GOOD, "confidence": 0.9}), "repaired", SAME),
    (
        "the shot in an object",
        but(shot_type=..., shot_angle=..., shot={"shot_type": "medium_shot", "shot_angle": "low_angle"}),
        "repaired",
        SAME | {"shot_angle": "low_angle"},
    ),
    # damaged JSON
    ("a comma behind the last field", TEXT[:-1] + ",}", "repaired", SAME),
    ("a comma behind the last subject", TEXT.replace("}], ", "},], "), "repaired", SAME),
    ("a missing comma", TEXT.replace('"medium_shot", ', '"medium_shot" '), "repaired", SAME),
    ("single quotes", str(GOOD), "repaired", SAME),
    ("Python's True", TEXT.replace("true", "True").replace("false", "False"), "repaired", SAME),
    ("names without quotes", TEXT.replace('"shot_type"', "shot_type"), "repaired", SAME),
    ("an option without quotes", TEXT.replace('"medium_shot"', "medium_shot"), "repaired", SAME),
    ("a comment", TEXT.replace('"shot_angle"', '// the angle\n"shot_angle"'), "repaired", SAME),
    ("no last bracket", TEXT[:-1], "repaired", SAME),
    ("two brackets too many", TEXT + "}}", "repaired", SAME),
    ("typographic quotes around a name", TEXT.replace('"lighting"', "“lighting”"), "repaired", SAME),
    ("quotes in a text", TEXT.replace("red coat", 'red "sea" coat'), "repaired", SAME),
    ("a line break in a text", TEXT.replace("walks along", "walks\nalong"), "repaired", SAME),
    ("a tab in a text", TEXT.replace("walks along", "walks\talong"), "repaired", SAME),
    ("a backslash in a text", TEXT.replace("the sea", "the \\sea"), "repaired", SAME),
    ("no bracket behind the subjects", TEXT.replace("}], ", "}, "), "its JSON is damaged: ", {}),
    # cut off
    ("cut in a text", TEXT[:60], "it ends within", {}),
    ("cut in the last text", TEXT[:-8], "it ends within", {}),
    ("cut between subjects", TEXT[: TEXT.index('{"appearance": "small')], "it ends within", {}),
    ("cut behind a subject", TEXT[: TEXT.index(', {"appearance": "small')], "it ends within", {}),
    ("cut behind the options", TEXT[: TEXT.index(', "camera_motion"')], "it ends within", {}),
    ("cut behind a colon", TEXT[: TEXT.index('"a wooden')], "it ends within", {}),
    ("one bracket", "{", "", {}),
    # repetition
    ("a phrase without end", LOOP, "it repeats itself", {}),
    ("a subject without end", SUBJECT_LOOP, "it repeats itself", {}),
    ("one word without end", "the " * 300, "it repeats itself", {}),
    ("one character without end", "!" * 500, "it repeats itself", {}),
    ("repetition in a field", woman(action="she walks on and " * 30), "a field of it repeats itself", {}),
    ("a subject twice", but(subjects=[WOMAN, DOG, DOG, DOG]), "repaired", {"subjects.1.sub_type": "Mammal"}),
    # names of fields
    ("a name with a space", key("shot_type", "shot type"), "repaired", SAME),
    ("a name in capitals", key("lighting", "Lighting"), "repaired", SAME),
    ("camera_movement", key("camera_motion", "camera_movement"), "repaired", {"camera_motion": GOOD["camera_motion"]}),
    ("an additional field", but(mood="calm"), "repaired", SAME),
    ("a missing field", but(environment=...), "doubtful", {"environment": ""}),
    ("no subjects", but(subjects=[]), "parsed", {"lighting": "soft morning light"}),
    ("subjects missing", but(subjects=...), "doubtful", {"lighting": "soft morning light"}),
    ("is_main", woman(is_main_subject=..., is_main=True), "repaired", {"subjects.0.is_main": True}),
    (
        "names in camel case",
        TEXT.replace("shot_type", "shotType").replace("is_main_subject", "isMainSubject"),
        "repaired",
        SAME | {"subjects.0.is_main": True},
    ),
    ("a name in Chinese", key("shot_type", "镜头类型"), "doubtful", {"shot_type": ""}),
    # options
    ("an option with a space", but(shot_type="Medium Shot"), "repaired", SAME),
    ("an option with a hyphen", but(shot_type="close-up"), "repaired", {"shot_type": "close_up"}),
    ("an option in one word", but(shot_type="closeup"), "repaired", {"shot_type": "close_up"}),
    ("an option without its end", but(shot_position="aerial"), "repaired", {"shot_position": "aerial_view"}),
    ("an option with another end", but(shot_angle="high-angle shot"), "doubtful", {"shot_angle": "high-angle shot"}),
    ("an unknown option", but(shot_type="wide shot"), "doubtful", {"shot_type": "wide shot"}),
    ("two options", but(shot_angle="high_angle | low_angle"), "doubtful", {"shot_angle": "high_angle | low_angle"}),
    ("an option that is a list", but(shot_angle=["low_angle"]), "repaired", {"shot_angle": "low_angle"}),
    ("an option in camel case", but(shot_type="mediumShot"), "repaired", SAME),
    ("an option that is an object", but(shot_type={"value": "medium_shot"}), "repaired", SAME),
    ("POV", but(shot_position="POV"), "repaired", {"shot_position": "point_of_view"}),
    ("no option", but(shot_type=None), "parsed", {"shot_type": ""}),
    # texts
    ("null as a text", but(camera_motion=None), "parsed", {"camera_motion": ""}),
    ("none written out", but(camera_motion="None"), "repaired", {"camera_motion": ""}),
    (
        "a list as a text",
        but(camera_motion=["pans left", "zooms in"]),
        "repaired",
        {"camera_motion": "pans left, zooms in"},
    ),
    ("an object as a text", but(lighting={"key": "soft"}), "doubtful", {"lighting": '{"key": "soft"}'}),
    ("a number as a text", but(lighting=7), "repaired", {"lighting": "7"}),
    ("false as a text", but(camera_motion=False), "repaired", {"camera_motion": ""}),
    ("true as a text", but(lighting=True), "doubtful", {"lighting": "true"}),
    ("no number as a text", but(lighting=float("nan")), "repaired", {"lighting": ""}),
    ("a list with null", but(lighting=["soft", None]), "repaired", {"lighting": "soft"}),
    ("control characters", but(lighting="\x1b[31msoft\x00light"), "parsed", {"lighting": "[31msoft light"}),
    ("half a character", TEXT.replace("soft", "soft\\ud83d"), "parsed", {"lighting": "soft? morning light"}),
    ("characters beyond ASCII", but(environment="海边的木码头"), "parsed", {"environment": "海边的木码头"}),
    ("a very long text", but(lighting=" ".join(map(str, range(9000)))), "doubtful", {}),
    # subjects
    ("a subject outside a list", but(subjects=WOMAN), "repaired", SAME),
    ("subjects as a text", but(subjects="a woman"), "doubtful", {"lighting": "soft morning light"}),
    ("a subject that is a text", but(subjects=[WOMAN, "a dog"]), "doubtful", SAME),
    ("subjects by name", but(subjects={"first": WOMAN, "second": DOG}), "repaired", {"subjects.1.sub_type": "Mammal"}),
    ("lists of subjects", but(subjects=[[WOMAN], [DOG]]), "repaired", {"subjects.1.sub_type": "Mammal"}),
    ("truth as 1.0", woman(is_main_subject=1.0), "repaired", {"subjects.0.is_main": True}),
    ("truth as a text", woman(is_main_subject="Yes"), "repaired", {"subjects.0.is_main": True}),
    ("truth as a number", woman(is_main_subject=0), "repaired", {"subjects.0.is_main": False}),
    ("truth that is none", woman(is_main_subject="perhaps"), "doubtful", {"subjects.0.is_main": False}),
    ("TYPES as a text", woman(TYPES="Human"), "repaired", {"subjects.0.type": "Human", "subjects.0.sub_type": ""}),
    ("TYPES as a list", woman(TYPES=["Human", "Woman"]), "repaired", {"subjects.0.sub_type": "Woman"}),
    ("TYPES in a list", woman(TYPES=[WOMAN["TYPES"]]), "repaired", {"subjects.0.sub_type": "Woman"}),
    (
        "TYPES in two objects",
        woman(TYPES=[{"type": "Human"}, {"sub_type": "Woman"}]),
        "repaired",
        {"subjects.0.type": "Human", "subjects.0.sub_type": "Woman"},
    ),
    ("TYPES as numbers", woman(TYPES=3), "doubtful", {"subjects.0.type": ""}),
    (
        "type beside the texts",
        woman(TYPES=..., type="Human", sub_type="Woman"),
        "repaired",
        {"subjects.0.type": "Human"},
    ),
    ("an unknown type", woman(TYPES={"type": "Robot", "sub_type": ""}), "parsed", {"subjects.0.type": "Robot"}),
]
