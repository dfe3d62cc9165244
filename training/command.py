"""``python -m training STAGE``: trains a part of the embedded model, from where it stopped; or measures it."""

import argparse
import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from skyreels_v2_infer import embedded
from skyreels_v2_infer.cli.reading import whole
from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.run.files import fingerprint, take_lock, write_whole

STAGES = {
    "vae": "the VAE",
    "t2v": "the transformer on clips whose frames share a noise level, and the text encoder with it",
    "df": "both on by diffusion forcing, and writes the model that both scripts use",
    "decoder": "the VAE's decoder on latents that df makes",
    "i2v": "the image-to-video model, from a copy of df",
}
SECTIONS = ("text", "asynchronous", "image", "windows", "long", "end", "beyond")  # of `evaluate`
STOPPED = 3  # the exit code of a stage that --minutes ended
CODES = f"exit code: 0 done, {STOPPED} ended by --minutes (the same command goes on), 1 failed, 2 wrong arguments"
DEFAULT = "default: %(default)s"
CLIPS, IMAGE_CLIPS = 10000, 1600
LAYERS = 10  # what is shipped has
TURNS = 8  # clips that df gets beside these, from the middle of long videos, in percent of them
TURNS_SEED = 1000  # and by how much their seed is above that of the others
WORKERS = 15  # what they hand over lies in shared memory, two batches or shards of clips each
SEED, SEED_FURTHER = 1, 15  # what is shipped has met the videos of 1 to 14
FINISHED = Path("df/model_index.json")  # is written last
ORIGIN = "origin.json"  # beside a stage's checkpoint: which weights --start began with
BATCH = {"vae": 6, "t2v": 48, "df": 48, "decoder": 6, "i2v": 48}


def train(args: argparse.Namespace, rank: int) -> bool:
    """One stage in one process; True when it is done. vae, df, decoder and i2v then write what they have made."""
    import torch

    from training import dit, export, loop, text, vae

    device, size = torch.device(args.device), args.batch // args.processes
    if args.stage == "vae":
        return vae.train(args.out / "vae", device, args.minutes, size, vae.RECIPES, vae.SHAPE, args.workers)
    if args.start or args.stage in ("decoder", "i2v"):
        model, coder = dit.load_finished((args.start or args.out / "tiny") / "df")
    else:
        tokenizer = args.out / "tokenizer"
        if rank == 0 and not (tokenizer / "tokenizer.json").exists():
            text.train_tokenizer(tokenizer, text.SENTENCES)
        loop.barrier()
        before = loop.average_of(args.out / "t2v") if args.stage == "df" else None
        layers = args.layers if before is None else dit.layers_in(before)
        model, coder = dit.new_model(tokenizer, layers), dit.load_vae(args.out / "vae")
        if before is not None:
            model.load_state_dict(before, strict=False)
    if args.stage == "df" and model.transformer.num_layers < args.layers:
        model.transformer = dit.deepened(model.transformer, args.layers)
    model, coder = model.to(device), coder.to(device)
    model, done = train_stage(args, model, coder, size, device, rank)
    if done and rank == 0 and args.stage != "t2v":
        later = args.out / "decoder"
        if args.stage == "df" and not args.start and (later / "checkpoint.pt").exists() and not origin_of(later):
            coder.load_state_dict(loop.average_of(later), strict=False)  # what the decoder has learned since stays
        part = "i2v" if args.stage == "i2v" else "df"
        export.write(args.out / "tiny" / part, model, coder, vae.SHAPE, dit.TOWER, dit.SHIFT)
    return done


def train_stage(args: argparse.Namespace, model, coder, size: int, device, rank: int):
    """A stage that begins with `model` and `coder`: (the model that it ends with, whether it is done)."""
    from training import clips, decoder, dit, evaluate

    recipe = {"t2v": dit.T2V, "df": dit.DF, "decoder": decoder.RECIPE, "i2v": dit.I2V}[args.stage]
    if args.steps:
        recipe = dataclasses.replace(recipe, steps=args.steps)
    how = (device, args.minutes, size, recipe)
    if args.stage == "decoder":
        return model, decoder.train(args.out, coder, model, *how, decoder.gate(model), args.workers)
    ours = {"rank": rank, "world_size": args.processes, "workers": args.workers}
    if args.stage == "i2v":
        store = clips.load_or_encode(
            coder, args.out / "clips", IMAGE_CLIPS, 2, clips.STARTS, with_channels=True, **ours
        )
        return dit.train_image_stage(args.out, store, model, *how, args.workers)
    store = clips.load_or_encode(coder, args.out / "clips", args.clips, args.seed, **ours)
    if args.stage == "df":
        count = max(1, args.clips * TURNS // 100)
        turns = clips.load_or_encode(coder, args.out / "clips", count, TURNS_SEED + args.seed, clips.TURNS, **ours)
        store = clips.joined(store, turns)

    def gate(trained) -> dict[str, float]:
        from skyreels_v2_infer.pipelines import Text2VideoPipeline

        return evaluate.quick(Text2VideoPipeline.from_parts(trained.transformer, coder, trained.encoder))

    done = dit.train_text_stage(args.stage, args.out, store, model, *how, gate, args.workers)
    return model, done


def worker(rank: int, args: argparse.Namespace, meeting: Path) -> None:
    """One process of a stage.

    Args:
        meeting: a folder in which the processes find each other (a port could still be taken by a run that was
            killed), and where a stage that is not done leaves a file.
    """
    import torch
    import torch.distributed as dist

    from training import loop

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # what draws batches is forked, which its threads do not survive
    torch.set_num_threads(max(1, args.threads))
    if args.device != "cpu":
        torch.set_float32_matmul_precision("high")  # TF32, on GPUs that have it
    if args.processes > 1:
        loop.end_with_parent()
        dist.init_process_group("gloo", init_method=f"file://{meeting}/processes", rank=rank, world_size=args.processes)
    try:
        done = train(args, rank)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if rank == 0:
        print("done" if done else "stopped; the same command goes on", flush=True)
        if not done:
            (meeting / "stopped").touch()


def new_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(dest="stage", required=True)
    for stage, what in STAGES.items():
        command = commands.add_parser(stage, help=what, description=f"Trains {what}.", epilog=CODES)
        add_stage_flags(command, stage)
    measure = commands.add_parser("evaluate", help="measure a model with the judge")
    measure.add_argument("--model", type=Path, default=embedded.FOLDER, help="folder with df/ and i2v/")
    measure.add_argument(
        "--out", type=Path, default=Path("training_out/figures.json"), help=f"gets the figures ({DEFAULT})"
    )
    measure.add_argument("--count", type=whole(1), help="videos of a row (default: each section's own)")
    measure.add_argument("--threads", type=whole(1))
    measure.add_argument(
        "--split",
        choices=("test", "train"),
        default="test",
        help=f"train: prompts as training has them, to choose between models without looking at the others ({DEFAULT})",
    )
    measure.add_argument("--sections", nargs="+", choices=SECTIONS, default=SECTIONS)
    sheet = commands.add_parser("sheet", help="an animated picture of what a model makes")
    sheet.add_argument("--model", type=Path, default=embedded.FOLDER, help="folder with df/")
    sheet.add_argument("--out", type=Path, default=Path("docs/images/tiny.gif"), help=DEFAULT)
    curves = commands.add_parser("curves", help="a picture of how training went")
    curves.add_argument("--runs", type=Path, default=Path("training_out"), help="--out of the stages")
    curves.add_argument("--out", type=Path, default=Path("docs/images/tiny_training.png"), help=DEFAULT)
    return parser


def add_stage_flags(command: argparse.ArgumentParser, stage: str) -> None:
    command.add_argument(
        "--out", type=Path, default=Path("training_out"), help=f"checkpoints, logs, what is exported ({DEFAULT})"
    )
    command.add_argument("--device", default="cpu")
    command.add_argument(
        "--processes", type=whole(1), help="that share an update (default: 2, which suits two cores, on a GPU 1)"
    )
    command.add_argument("--threads", type=whole(1), default=1, help="of each process")
    command.add_argument(
        "--workers",
        type=whole(0),
        help=f"of each process, to draw batches ahead (default: 0, for a GPU one a core up to {WORKERS})",
    )
    command.add_argument("--batch", type=whole(1), default=BATCH[stage], help=f"clips of an update ({DEFAULT})")
    command.set_defaults(start=None, steps=None, seed=None)
    if stage in ("t2v", "df"):
        command.add_argument("--clips", type=whole(1), default=CLIPS, help=f"videos to learn from ({DEFAULT})")
        command.add_argument(
            "--seed",
            type=whole(0),
            help=f"which videos (default: {SEED}; with --start {SEED_FURTHER}, which what is shipped has not met)",
        )
        command.add_argument(
            "--layers",
            type=whole(1),
            default=LAYERS,
            help=f"of the transformer; df adds what it lacks to a model of fewer ({DEFAULT})",
        )
    if stage in ("df", "decoder", "i2v"):
        command.add_argument(
            "--start", type=Path, help=f"a folder with a finished df/ to go on from, as in {embedded.FOLDER}"
        )
    if stage != "vae":
        command.add_argument("--steps", type=whole(1), help="updates in all (default: the recipe's)")
    command.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so long of training (each part of vae)"
    )


def main() -> int:
    parser = new_parser()
    args = parser.parse_args()
    if (fault := missing(args)) is not None:
        parser.error(fault)
    if args.stage == "evaluate":
        import torch

        from training import evaluate

        if args.threads:
            torch.set_num_threads(args.threads)
        evaluate.run(args.model, args.out, args.sections, args.count, args.split)
    elif args.stage == "sheet":
        from training import pictures

        pictures.sheet_of(args.model, args.out)
    elif args.stage == "curves":
        from training import pictures

        pictures.curves(args.runs, args.out)
    else:
        return begin_stage(args, parser.error)
    return 0


def begin_stage(args: argparse.Namespace, refuse: Callable[[str], NoReturn]) -> int:
    """Runs a stage, unless another run does so or its checkpoint began elsewhere."""
    fault = suit_device(args)
    if fault is None and args.stage == "df":
        fault = too_few_layers(args)
    if fault is not None:
        refuse(fault)
    if args.seed is None:
        args.seed = SEED if args.start is None else SEED_FURTHER
    folder = args.out / args.stage
    folder.mkdir(parents=True, exist_ok=True)
    if (lock := take_lock(folder / "lock")) is None:
        refuse(f"--out {args.out}: another run trains {args.stage} there")
    try:
        if (fault := other_origin(args)) is not None:
            refuse(fault)
        return run_stage(args)
    finally:
        os.close(lock)


def suit_device(args: argparse.Namespace) -> str | None:
    """Fills in what depends on the device; in words, what of it cannot be."""
    from skyreels_v2_infer.runtime import Placement

    try:
        on_cpu = Placement.choose(args.device).device.type == "cpu"
    except InputError as error:
        return str(error)
    args.processes = args.processes or (2 if on_cpu else 1)
    if args.workers is None:
        args.workers = 0 if on_cpu else max(1, min(WORKERS, (os.cpu_count() or 1) - 1) // args.processes)
    if args.batch % args.processes:
        return f"--batch {args.batch}: must be a multiple of --processes {args.processes}, which share it"
    return None


def too_few_layers(args: argparse.Namespace) -> str | None:
    """In words, that what df begins with has more layers than are asked for."""
    if args.start is not None:
        known = json.loads((args.start / "df/transformer/config.json").read_text())["num_layers"]
    else:
        known = int(origin_of(args.out / "t2v").get("layers", LAYERS))
    if known <= args.layers:
        return None
    return f"--layers {args.layers}: must be at least the {known} of the model that df begins with"


def missing(args: argparse.Namespace) -> str | None:
    """What a stage goes on from, or what is to be measured or drawn, and is not there, in words."""
    if args.stage in ("evaluate", "sheet"):
        known = (args.model / FINISHED).exists()
        return None if known else f"--model {args.model}: must hold a finished df/, as {embedded.FOLDER} does"
    if args.stage == "curves":
        known = any(log for depth in ("*", "*/*") for log in args.runs.glob(f"{depth}/log.jsonl"))
        return None if known else f"--runs {args.runs}: must hold what the stages wrote, as their --out does"
    if args.start is not None:
        known = (args.start / FINISHED).exists()
        return None if known else f"--start {args.start}: must hold a finished df/, as {embedded.FOLDER} does"
    vae, text, finished = Path("vae/vae.json"), Path("t2v/checkpoint.pt"), Path("tiny") / FINISHED
    before = {
        "t2v": {vae: "vae"},
        "df": {vae: "vae", text: "t2v"},
        "decoder": {finished: "df"},
        "i2v": {finished: "df"},
    }
    for path, stage in before.get(args.stage, {}).items():
        if not (args.out / path).exists():
            return f"--out {args.out}: {args.stage} needs {path} there, which the stage {stage} makes"
    return None


def other_origin(args: argparse.Namespace) -> str | None:
    """In words, that the checkpoint in --out began elsewhere: to go on from it would pass by what --start names.

    Where there is none yet, it is noted what this one will have begun with.
    """
    folder = args.out / args.stage
    files = [] if args.start is None else sorted((args.start / "df").rglob("*.safetensors"))
    origin = {str(file.relative_to(args.start)): fingerprint(file) for file in files}
    if args.stage in ("t2v", "df"):
        origin |= {"videos": f"{args.clips} of seed {args.seed}", "layers": str(args.layers)}
    record = folder / ORIGIN
    if not (folder / "checkpoint.pt").exists():
        write_whole(record, lambda file: file.write(json.dumps(origin).encode()))
        return None
    if origin == origin_of(folder):
        return None
    here = "its own stages" if args.start is None else f"--start {args.start}"
    if "videos" in origin:
        here += f", videos {origin['videos']} and {origin['layers']} layers"
    return f"--out {args.out}: the checkpoint of {args.stage} there did not begin with {here}; give another folder"


def origin_of(folder: Path) -> dict[str, str]:
    """What a stage's checkpoint began with: the weights that --start named (file -> fingerprint), and which videos."""
    record = folder / ORIGIN
    return json.loads(record.read_text()) if record.exists() else {}


def run_stage(args: argparse.Namespace) -> int:
    import torch.multiprocessing as mp

    with tempfile.TemporaryDirectory() as folder:
        meeting = Path(folder)
        if args.processes == 1:
            worker(0, args, meeting)
        else:
            mp.spawn(worker, args=(args, meeting), nprocs=args.processes)
        return STOPPED if (meeting / "stopped").exists() else 0
