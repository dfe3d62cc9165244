"""What is fuzzed: from (kind, seed, number) always the same command and the same files.

A case runs in a box of its own: ``work`` (where it starts), ``inputs``, ``home`` and ``tmp``. Only ``home/.cache`` and
the folder of --outdir may change.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random

import mutate

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli import arguments, captions, parser

ROOT = Path(__file__).parents[2]
TINY = ("--model_id", "tiny", "--device", "cpu")
SMALL = ("--height", "32", "--width", "32", "--num_frames", "5", "--inference_steps", "1", "--seed", "3")
SMALL += ("--prompt", "a swan", "--negative_prompt", "")  # short: remarks about cut tokens are no part of a refusal
RUN = (*TINY, *SMALL[:4], "--num_frames", "49", "--inference_steps", "1", "--seed", "3", "--prompt", "a red circle")
YAML = """\
- start: 0
  prompt: a swan
- start: 33
  prompt: "a cat"
  seed: 5
- start: 4.5s
  prompt: >
    two
"""
YAML_ODD = (
    "&a [*a]",
    "!!python/object/apply:os.system [id]",
    "9" * 5000,
    "[" * 5000,
    "2001-01-01",
    "0o17",
    ".nan",
    "?",
)
YAML_BOMB = "- &a [x,x]\n" + "".join(f"- &{b} [{','.join([f'*{a}'] * 5)}]\n" for a, b in pairwise("abcdefghi"))
MAKERS = ("parse_diffusion_forcing", "parse_generate")  # the parsers of the scripts that make videos
PARSERS = {name: getattr(arguments, name) for name in MAKERS} | {"parse_captions": captions.parse_captions}


@dataclass
class Case:
    """A command.

    Attributes:
        parse: name of the script's parser in `cli.arguments`.
        makes: whether the video is made; False: the run ends where it would be.
    """

    parse: str
    argv: list[str]
    env: dict[str, str] = field(default_factory=dict)
    makes: bool = False


# ---- the files that are damaged --------------------------------------------------------------------------------------


def write_templates(folder: Path) -> None:
    """Whole files of every kind that the scripts read, and a run that is kept."""
    from script_runs import environment
    from tiny_talkers import write_chat_model

    inputs = folder / "inputs"
    write_files(inputs)
    write_chat_model(inputs / "chat")
    command = [sys.executable, ROOT / "generate_video_df.py", *RUN, "--keep_parts", "--outdir", "runs"]
    subprocess.run([*map(str, command)], cwd=inputs, env=environment(), check=True, capture_output=True)
    for suffix in ("json", "mp4"):
        shutil.copy(inputs / "runs" / f"a-red-circle_3.{suffix}", inputs / f"made.{suffix}")


def write_files(inputs: Path) -> None:
    """Checkpoints, parts, pictures, a video and stories."""
    import numpy as np
    import small_checkpoints
    from script_runs import scene, write_clip

    inputs.mkdir(parents=True)
    for task in ("df", "i2v"):
        small_checkpoints.write_original(inputs / task, task, index=True)
    small_checkpoints.write_original(inputs / "shards", "df", shards="model", index=True)
    words = small_checkpoints.write_original(inputs / "spiece", "df") / "google" / "umt5-xxl"
    (words / "tokenizer.json").unlink()
    (words / "spiece.model").write_bytes(small_checkpoints.sentencepiece_model())
    shutil.copytree(embedded.FOLDER / "df", inputs / "diffusers")
    shutil.copytree(embedded.FOLDER / "i2v", inputs / "diffusers-i2v")
    write_parts(inputs)
    from PIL import Image

    picture = Image.fromarray(scene(48, 64).astype(np.uint8))
    for name in ("pic.png", "pic.jpg", "pic.webp", "pic.gif", "pic.tiff"):
        picture.save(inputs / name)
    write_clip(inputs / "clip.mp4", [scene(64, 64, time) for time in range(9)])
    scenes = [
        {"start": 0, "prompt": "a swan"},
        {"start": 33, "prompt": "a cat", "negative_prompt": "dog", "guidance_scale": 3.5, "seed": 5},
        {"start": "4.5s", "prompt": "two cats"},
    ]
    (inputs / "story.json").write_text(json.dumps(scenes, indent=1))
    yaml = (
        '- start: 0\n  prompt: a swan\n- start: 33\n  prompt: "a cat"\n  seed: 5\n- start: 4.5s\n  prompt: >\n    two\n'
    )
    (inputs / "story.yaml").write_text(yaml)
    (inputs / "note.txt").write_text("neither a picture nor a video\n")
    (inputs / "clips.csv").write_text("path,note\nclip.mp4,a\npic.png,b\n")


def write_parts(inputs: Path) -> None:
    """Files that change or replace a part of a checkpoint: LoRA factors, and transformers in single files."""
    sys.path.append(str(ROOT / "tests" / "weights"))
    import small_checkpoints as small
    from forms import write_gguf
    from safetensors.torch import save_file

    shapes = {f"blocks.{i}.self_attn.{name}": small.DIM for i in range(small.LAYERS) for name in "qkvo"}
    factors = {f"diffusion_model.{name}.lora_A.weight": (4, width) for name, width in shapes.items()}
    factors |= {f"diffusion_model.{name}.lora_B.weight": (width, 4) for name, width in shapes.items()}
    save_file(small.random_weights(factors, 0), inputs / "lora.safetensors")
    weights = small.random_weights(small.transformer_shapes("df"), 0)
    save_file(weights, inputs / "dit.safetensors")
    write_gguf(inputs / "dit.gguf", weights, "Q8_0")


def lay_out(template: Path, box: Path) -> Path:
    """An empty box with its own names for the template's files -> its inputs."""
    for name in ("work", "home", "tmp"):
        (box / name).mkdir(parents=True)
    shutil.copytree(template / "inputs", box / "inputs", copy_function=os.link)
    return box / "inputs"


# ---- argv ------------------------------------------------------------------------------------------------------------


class _Seen(Exception):
    """Carries a parser out of the function that builds it."""


def flags_of(parse: str) -> dict[str, dict]:
    """The flags of a script: name -> whether it takes values, and one of each legal choice in its help."""

    def read(built, argv):
        raise _Seen(built)

    before, parser.Parser.read = parser.Parser.read, read
    try:
        PARSERS[parse]([])
    except _Seen as seen:
        actions = seen.args[0]._actions
    finally:
        parser.Parser.read = before
    found = {}
    for action in actions:
        choices = (
            re.findall(r"\w+", action.metavar) if isinstance(action.metavar, str) and "{" in action.metavar else []
        )
        for flag in action.option_strings:
            found[flag] = {"takes": action.nargs != 0, "choices": choices}
    return found


FLAGS = {parse: flags_of(parse) for parse in PARSERS}

NUMBERS = (
    *(
        "0",
        "1",
        "2",
        "3",
        "4",
        "5",
        "9",
        "16",
        "17",
        "24",
        "25",
        "33",
        "48",
        "49",
        "64",
        "97",
        "121",
        "544",
        "960",
        "1280",
    ),
    *("-1", "-0", "0.5", "20", "999", "999.9", "1000", "10000", "10001", "100000", "999997", "1000000", "1000001"),
    *("4294967296", "9223372036854775807", "9223372036854775808", "1e3", "1e400", "nan", "inf", "-inf", "1_000", "٣"),
    *("0x10", "1.", ".5", "1e-320", "+5", " 7 ", "9" * 5000, "1,2", "0,0,0,0,1", "1,2,3,4,nan", "½"),
)
PATHS = (
    *("../inputs/pic.png", "../inputs/pic.jpg", "../inputs/clip.mp4", "../inputs/story.json", "../inputs/story.yaml"),
    *("../inputs/made.json", "../inputs/made.mp4", "../inputs/note.txt", "../inputs/df", "../inputs/diffusers"),
    *(
        "../inputs/lora.safetensors",
        "../inputs/lora.safetensors:0.5",
        "../inputs/dit.gguf",
        "../inputs/dit.safetensors",
    ),
    *("../inputs", "../inputs/none", "/dev/null", "/dev/zero", "/dev/full", "/proc/self/mem", "/proc/self/fd/0", "."),
    *("../inputs/fifo", "../inputs/loop", "../inputs/dangling", "~", "~/x", "~nosuchuser/x", "a" * 300, "a/" * 2000),
    *("file:///etc/passwd", "http://127.0.0.1:9/x.png", "http://[", "https://", "ftp://a/b", "concat:a|b", "-"),
)
TEXTS = (
    *("a red circle", "", " ", "-", "--", "---", "x" * 5000, "é中🙂", "a\nb\r\x1b[31m", "\udcff\udc80", "%s%n{}", "0"),
    *("tiny", "cpu", "cuda:99", "json", "table", "pixel", "latent", "float16", "540P", "[]", "[{", "true", "None"),
    *(
        '[{"start":0,"prompt":"a"}]',
        '[{"start":1e400,"prompt":"a"}]',
        "[" * 3000,
        '[{"start":0}]',
        "Skywork/x",
        "a/b/c",
    ),
)
PLACES = ({"HOME": ""}, {"HOME": "/nonexistent"}, {"LC_ALL": "C"}, {"LANG": "xx"}, {"TMPDIR": "/none"})
OUTDIRS = ("video_out", "new/er/est", "../inputs/note.txt/x", "/dev/null/x", "../work/é\n", "~/videos", "/proc/x")
TALK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


CLIPS = ("../inputs/clip.mp4", "../inputs", "../inputs/*", "../inputs/clips.csv", "../inputs/note.txt")


def value(rng: Random, flag: str, choices: list[str]) -> str:
    if flag == "--outdir":
        return rng.choice(OUTDIRS)
    if choices and rng.random() < 0.6:
        return rng.choice(choices)
    return rng.choice(rng.choice((NUMBERS, NUMBERS, PATHS, TEXTS)))


def argv(rng: Random, inputs: Path) -> Case:
    """Flags in any order, some of them twice, glued or without a value, in odd surroundings; makes no video."""
    parse, words, env = command(rng, inputs, sorted(PARSERS))
    words.append(["--dry_run"] if rng.random() < 0.7 else ["--dry_run", "json"])
    return Case(parse, flat(rng, words), env)


# A large video takes long, rightly; frames are written where the flag says.
NOT_FOR_VIDEOS = ("--resolution", "--height", "--width", "--frames_dir")


def videos(rng: Random, inputs: Path) -> Case:
    """As `argv`, but legal commands make a video, a short one unless their flags say otherwise."""
    parse, words, env = command(rng, inputs, MAKERS)
    before = ["--num_frames", rng.choice(("1", "9", "17")), "--inference_steps", "1"]
    words = [group for group in words if not group[0].startswith(NOT_FOR_VIDEOS)]
    env = {name: text for name, text in env.items() if name not in TALK}  # it would wait for the others
    # Other models would be looked for on the hub.
    return Case(parse, [*before, *flat(rng, words), *TINY[:2]], env, makes=True)


def flat(rng: Random, words: list[list[str]]) -> list[str]:
    """The words of a command whose groups may come in any order."""
    rng.shuffle(words)
    return [word for group in words for word in group if "\0" not in word]


def command(rng: Random, inputs: Path, parsers: Sequence[str]) -> tuple[str, list[list[str]], dict[str, str]]:
    """A script's parser, flags with their values, and environment variables."""
    os.mkfifo(inputs / "fifo")
    (inputs / "loop").symlink_to("loop")
    (inputs / "dangling").symlink_to("nowhere")
    parse = rng.choice(parsers)
    flags, words = FLAGS[parse], []
    for flag in rng.choices(sorted(set(flags) - {"-h", "--help", "--dry_run"}), k=rng.choice((0, 1, 1, 2, 2, 3, 5, 9))):
        given = value(rng, flag, flags[flag]["choices"])
        how = rng.random()
        if how < 0.03:
            words.append([rng.choice((flag[:-1], flag.upper(), flag.replace("_", "-"), f"-{flag}", flag + "="))])
        elif how < 0.06:
            words.append([f"{flag}={rng.choice(('', '--', '-', '=', given))}"])
        elif flags[flag]["takes"]:
            words.append([f"{flag}={given}"] if rng.random() < 0.3 else [flag, given])
        else:
            words.append([flag])
    if rng.random() < 0.8:
        words.append([*TINY[:2]] if parse in MAKERS else ["--input", rng.choice(CLIPS)])
    if rng.random() < 0.05:
        words.append([rng.choice(("--help", "-h", "--", "word", "--no-such_flag", "--@x", "@x"))])
    env = {}
    if rng.random() < 0.15:
        for name in rng.sample(TALK, rng.choice((1, 2, 3, 5))):
            env[name] = rng.choice(("0", "1", "2", "-1", "", "x", "99999999999999999999", "127.0.0.1", "1e3", "٣"))
    if rng.random() < 0.05:
        env |= rng.choice(PLACES)
    return parse, words, env


# ---- files -----------------------------------------------------------------------------------------------------------


def chosen(rng: Random, folder: Path, pattern: str) -> Path:
    found = sorted(path for path in folder.rglob("*") if path.is_file() and re.search(pattern, path.name))
    return rng.choice(found)


def model(rng: Random, inputs: Path) -> tuple[Path, Case]:
    """A checkpoint, and a command that loads it."""
    folder = inputs / rng.choice(("df", "i2v", "shards", "diffusers", "diffusers-i2v", "spiece"))
    given = ["--model_id", f"../inputs/{folder.name}", "--device", "cpu", *SMALL]
    if rng.random() < 0.1:
        given.append("--teacache")
    if "i2v" in folder.name:
        return folder, Case("parse_generate", [*given, "--image", "../inputs/pic.png"], makes=True)
    return folder, Case("parse_diffusion_forcing", given, makes=True)


def configs(rng: Random, inputs: Path) -> Case:
    folder, case = model(rng, inputs)
    path = chosen(rng, folder, r"\.json$")
    if rng.random() < 0.1:
        mutate.no_file(rng, path)
    else:
        mutate.replace(path, mutate.json_text(rng, json.loads(path.read_bytes())))
    if rng.random() < 0.3:
        case.argv.append("--dry_run")
    return case


def headers(rng: Random, inputs: Path) -> Case:
    folder, case = model(rng, inputs)
    path = chosen(rng, folder, r"\.(safetensors|pth|model)$")
    if rng.random() < 0.1:
        if rng.random() < 0.5 and path.suffix == ".safetensors":
            path.rename(path.with_name(rng.choice(("model-00001-of-99999999.safetensors", "x.safetensors", "0.bin"))))
        else:
            mutate.no_file(rng, path)
    else:
        harm = mutate.safetensors if path.suffix == ".safetensors" else mutate.damage
        mutate.replace(path, harm(rng, path.read_bytes()))
    return case


def parts(rng: Random, inputs: Path) -> Case:
    path = inputs / rng.choice(("lora.safetensors", "dit.safetensors", "dit.gguf", "dit.gguf"))
    if rng.random() < 0.05:
        mutate.no_file(rng, path)
    else:
        harm = mutate.safetensors if path.suffix == ".safetensors" and rng.random() < 0.8 else mutate.damage
        mutate.replace(path, harm(rng, path.read_bytes()))
    flag = "--lora" if path.stem == "lora" else "--dit_path"
    given = ["--model_id", "../inputs/df", "--device", "cpu", *SMALL, flag, f"../inputs/{path.name}"]
    return Case("parse_diffusion_forcing", given, makes=True)


def stories(rng: Random, inputs: Path) -> Case:
    path = inputs / rng.choice(("story.json", "story.json", "story.yaml"))
    if rng.random() < 0.1:
        mutate.no_file(rng, path)
    elif path.suffix == ".json":
        mutate.replace(path, mutate.json_text(rng, json.loads(path.read_bytes())))
    else:
        text, odd = path.read_text(), rng.choice(YAML_ODD)
        changed = rng.choice((text.replace("33", odd), text.replace("a swan", odd), YAML_BOMB + text))
        mutate.replace(path, changed.encode() if rng.random() < 0.7 else mutate.damage(rng, text.encode()))
    text = path.read_text() if path.is_file() and path.suffix == ".json" and rng.random() < 0.1 and utf8(path) else None
    story = text if text and "\0" not in text and len(text) < 10_000 else f"../inputs/{path.name}"
    return Case("parse_diffusion_forcing", [*TINY, "--num_frames", "97", f"--story={story}", "--dry_run"])


JOB_ROWS = (
    {"prompt": "a swan", "seed": 3, "num_frames": 5},
    {"prompt": "a crow"},
    {"name": "{seed}", "teacache": True},
)
NAME_PATTERNS = ("{seed}", "{prompt:.3}{row}", "{seed!r}", "{0}", "{a.b}", "{", "x" * 300, "../x", "{fps:099}", "con")
SWEPT = ("1..3", "1,2", "0..1..0.25", "1..999999999999", "1..2..0", "[", '["a", null]', "a,,b", "9" * 400)


def jobs(rng: Random, inputs: Path) -> Case:
    """A job file with odd rows, or a damaged one; only its plan."""
    parse = rng.choice(MAKERS)
    rows = [dict(row) for row in JOB_ROWS]
    for _ in range(rng.randrange(4)):
        name = rng.choice((*sorted(FLAGS[parse]), "----", "--x y", "--prompt=")).removeprefix("--")
        odd = rng.choice((*PATHS, *TEXTS, *NUMBERS, True, False, None, 7, 1.5, ["a"], [["a"]], [1, 0.5], {"a": 1}))
        rng.choice(rows)[name] = odd
    path = inputs / rng.choice(("jobs.jsonl", "jobs.jsonl", "jobs.csv", "jobs.txt"))
    lines = [mutate.json_text(rng, row) if rng.random() < 0.2 else json.dumps(row).encode() for row in rows]
    if path.suffix != ".jsonl":
        table = [",".join(rows[0]), *(str(list(row.values()))[1:-1] for row in rows)]
        lines = [line.encode(errors="surrogateescape") for line in table]
    content = b"\n".join(lines)
    path.write_bytes(mutate.damage(rng, content) if rng.random() < 0.2 else content)
    if rng.random() < 0.05:
        mutate.no_file(rng, path)
    name = rng.choice((*sorted(FLAGS[parse]), "--seed", "--seed")).removeprefix("--")
    more = [f"--sweep={name}={rng.choice(SWEPT)}"] * (rng.random() < 0.3)
    more += [f"--name={rng.choice(NAME_PATTERNS)}"] * (rng.random() < 0.3)
    more += ["--keep_going"] * (rng.random() < 0.3)
    return Case(parse, [*TINY, f"--jobs=../inputs/{path.name}", *more, "--dry_run"])


def utf8(path: Path) -> bool:
    if path.stat().st_size > 10**6 or not os.path.isfile(path) or path.is_symlink():
        return False
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def manifests(rng: Random, inputs: Path) -> Case:
    path = inputs / rng.choice(("made.json", "made.json", "made.mp4"))
    if path.suffix == ".mp4":
        mutate.replace(path, mutate.damage(rng, path.read_bytes()))
    elif rng.random() < 0.05:
        mutate.no_file(rng, path)
    else:
        written = json.loads(path.read_bytes())
        if rng.random() < 0.5:  # settings that a stranger would like to choose
            name = rng.choice((*sorted(FLAGS["parse_diffusion_forcing"]), "----", "--x y")).removeprefix("--")
            odd = rng.choice((*PATHS, *TEXTS, *NUMBERS, True, 7, "../../../../home/evil", "/home/evil", ["a"], [["a"]]))
            written["settings"][name] = odd
        mutate.replace(path, mutate.json_text(rng, written))
    given = [f"--replay=../inputs/{path.name}"]
    return Case("parse_diffusion_forcing", [*given, "--dry_run"] if rng.random() < 0.8 else [*given, *TINY])


def labs(rng: Random, inputs: Path) -> Case:
    """A damaged file of flags, or a manifest with odd settings, for --config; some beside flags that are typed."""
    parse, words, env = command(rng, inputs, MAKERS)
    values = {}
    for name, *given in words:
        flag, equals, glued = name.removeprefix("--").partition("=")
        values[flag] = glued if equals else given[0] if given else True
        if rng.random() < 0.2:
            values[flag] = rng.choice((*ODD, [values[flag]], {flag: values[flag]}))
    if rng.random() < 0.2:
        values |= {"format": 1, "script": "generate_video.py", "settings": dict(values)}
    path = inputs / ("lab.json" if rng.random() < 0.5 else "lab.yaml")
    text = mutate.json_text(rng, values)
    if path.suffix == ".yaml" and rng.random() < 0.5:
        text += rng.choice(YAML_ENDS)
    path.write_bytes(text)
    typed = flat(rng, command_line(rng, parse)) if rng.random() < 0.3 else []
    return Case(parse, [*typed, f"--config=../inputs/{path.name}", *TINY[:2], "--dry_run"], env)


ODD = (None, True, False, 0, -1.5, 1e400, "", "on", [], [[]], {}, ["a", None], "2020-01-01", "~")
YAML_ENDS = (
    b"\n{a: b}",
    b"\n---\na: 1\n",
    b"\x00",
    b"\n? [a, b]\n: 1\n",
    b"\n&a [*a]",
    b"\n2020-01-01: 2020-01-01\n",
    b"\t",
)


def command_line(rng: Random, parse: str) -> list[list[str]]:
    """Some flags with legal forms, to be typed beside a file."""
    flags = [flag for flag, about in FLAGS[parse].items() if about["takes"] and flag not in ("--help", "-h", "--jobs")]
    return [[flag, value(rng, flag, FLAGS[parse][flag]["choices"])] for flag in rng.sample(flags, 2)]


def folders(rng: Random, inputs: Path) -> Case:
    """Damaged folders of a run, some of them without the video that came of it."""
    from skyreels_v2_infer.run.record import text_checksum

    runs = inputs / "runs"
    for suffix in ("mp4", "json", "png") if rng.random() < 0.8 else ():
        (runs / f"a-red-circle_3.{suffix}").unlink()
    (parts,) = runs.glob("*.parts")
    record = parts / "run.json"
    if rng.random() < 0.6:
        content = json.loads(record.read_bytes())
        if rng.random() < 0.3:  # as if it had been interrupted
            content["pieces"] = content["pieces"][: rng.randrange(3)]
            changed = content
        else:
            changed = mutate.change(rng, content)
        if isinstance(changed, dict) and rng.random() < 0.9:
            changed.pop("checksum", None)
            changed = {"checksum": text_checksum(changed), **changed}
        mutate.replace(record, json.dumps(changed).encode() if rng.random() < 0.9 else mutate.json_text(rng, content))
    if rng.random() < 0.6:
        path = chosen(rng, runs, ".")
        if rng.random() < 0.3:
            mutate.no_file(rng, path)
        else:
            mutate.replace(path, mutate.damage(rng, path.read_bytes()))
    if rng.random() < 0.1:
        parts.rename(parts.with_name(parts.name.replace("_3-", rng.choice(("_4-", "_3-0", "_3--")))))
    keep = ["--keep_parts"] * (rng.random() < 0.8)
    return Case("parse_diffusion_forcing", [*RUN, *keep, "--resume", "--outdir", "../inputs/runs"])


def chats(rng: Random, inputs: Path) -> Case:
    """Damaged chat models for --prompt_enhancer."""
    path = chosen(rng, inputs / "chat", r"\.(json|jinja|safetensors)$")
    if rng.random() < 0.1:
        mutate.no_file(rng, path)
    elif path.suffix == ".json":
        mutate.replace(path, mutate.json_text(rng, json.loads(path.read_bytes())))
    else:
        harm = mutate.safetensors if path.suffix == ".safetensors" else mutate.damage
        mutate.replace(path, harm(rng, path.read_bytes()))
    given = [*TINY, *SMALL, "--prompt_enhancer", "--prompt_enhancer_model", "../inputs/chat"]
    return Case("parse_diffusion_forcing", given, makes=True)


def tables(rng: Random, inputs: Path) -> Case:
    """Damaged tables of videos for caption_video.py; only its plan."""
    path = inputs / "clips.csv"
    if rng.random() < 0.3:
        mutate.no_file(rng, path)
    else:
        mutate.replace(path, mutate.damage(rng, path.read_bytes()))
    return Case("parse_captions", ["--input", "../inputs/clips.csv", "--dry_run"])


def media(rng: Random, inputs: Path) -> Case:
    path = inputs / rng.choice(("pic.png", "pic.jpg", "pic.webp", "pic.gif", "pic.tiff", "clip.mp4", "clip.mp4"))
    if rng.random() < 0.1:
        mutate.no_file(rng, path)
    elif rng.random() < 0.1:
        mutate.replace(path, chosen(rng, inputs, ".").read_bytes()[: 2**20])
    else:
        mutate.replace(path, mutate.damage(rng, path.read_bytes()))
    flag = "--video_path" if path.suffix == ".mp4" else rng.choice(("--image", "--end_image"))
    return Case("parse_diffusion_forcing", [*TINY, flag, f"../inputs/{path.name}", "--dry_run"])


KINDS: dict[str, Callable[[Random, Path], Case]] = {
    made.__name__: made
    for made in (argv, videos, configs, headers, parts, stories, jobs, labs, manifests, folders, chats, tables, media)
}


def make(kind: str, seed: int, number: int, template: Path, box: Path) -> Case:
    """Lays out the box of a case."""
    return KINDS[kind](Random(f"{kind}:{seed}:{number}"), lay_out(template, box))
