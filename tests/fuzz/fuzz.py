"""A seeded fuzzer of everything that the scripts read: command lines, checkpoints, stories, manifests, run folders.

    python tests/fuzz/fuzz.py --seconds 120 --seed 1 [--kinds argv,headers] [--cases N] [--failures DIR]
    python tests/fuzz/fuzz.py --only headers:1:417        one case again, with all it says

Prints how many cases of each kind ended how, and each failing one; the exit code is 1 if there is one. Of every failing
case the command, the files and the messages are kept in DIR.
"""

from __future__ import annotations

import os

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}  # before torch and the hub client are imported

import argparse
import gc
import importlib
import json
import multiprocessing
import pkgutil
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "weights"), str(HERE.parents[1])]

import cases  # noqa: E402
import oracle  # noqa: E402

# How many cases of a kind there are for one of the slowest, which load a checkpoint.
SHARES = {"argv": 30, "stories": 10, "manifests": 3, "jobs": 5, "labs": 10, "tables": 3, "media": 5}
EVERY = 25  # one of so many cases is a process of its own, as a user starts it
# Kinds of which most cases import torch. Without them this process stays small, and its forks are several times faster.
NEED_TORCH = {"videos", "configs", "headers", "parts", "manifests", "folders", "chats"}
MEMORY_DISK, ENOUGH = Path("/dev/shm"), 2 * 2**30  # files of a case are made and deleted there 50 times faster


def one(kind: str, seed: int, number: int, template: Path, boxes: Path) -> tuple[cases.Case, oracle.Outcome, Path]:
    box = boxes / f"{kind}-{seed}-{number}"
    case = cases.make(kind, seed, number, template, box)
    return case, oracle.run(case, box, process=number % EVERY == EVERY - 1), box


def keep(folder: Path, name: str, case: cases.Case, outcome: oracle.Outcome, box: Path) -> None:
    """The case with its files, but for those that are the template's."""
    place = folder / name
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    (place / "case.json").write_text(json.dumps({"case": asdict(case), "outcome": asdict(outcome)}, indent=1))
    for at, _, files in os.walk(box):
        for file in files:
            path = Path(at, file)
            if path.is_symlink() or (path.is_file() and path.stat().st_nlink == 1 and path.stat().st_size < 2**28):
                there = place / path.relative_to(box)
                there.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, there, follow_symlinks=False)


def fuzz(
    seconds: float, seed: int, kinds: list[str], most: int, failures: Path
) -> tuple[dict[str, Counter], list[str]]:
    """Runs cases for some time, or until Ctrl-C -> per kind the outcomes, and the names of the failing cases."""
    counts, failed = {kind: Counter() for kind in kinds}, []
    with suppress(KeyboardInterrupt), workplace(kinds) as work:
        turns = [kind for kind in kinds for _ in range(SHARES.get(kind, 1))]
        until, done = time.monotonic() + seconds, Counter()
        while time.monotonic() < until and turns:
            for kind in turns:
                number = done[kind]
                done[kind] += 1
                name = f"{kind}:{seed}:{number}"
                case, outcome, box = one(kind, seed, number, work / "template", work / "boxes")
                counts[kind]["hung" if outcome.code is None else outcome.code] += 1
                if outcome.wrong:
                    failed.append(name)
                    keep(failures, name.replace(":", "-"), case, outcome, box)
                    last = (outcome.err.splitlines() or [""])[-1][:300]
                    print(
                        f"{name}: {'; '.join(outcome.wrong)}\n    {case.argv!r:.600} {case.env or ''}\n    {last}",
                        flush=True,
                    )
                shutil.rmtree(box)
            turns = [kind for kind in turns if done[kind] < most]
    return counts, failed


@contextmanager
def workplace(kinds: list[str]) -> Iterator[Path]:
    """Context manager: a folder with the templates, and this process ready to fork cases of some kinds."""
    memory = MEMORY_DISK.is_dir() and "TMPDIR" not in os.environ and shutil.disk_usage(MEMORY_DISK).free > ENOUGH
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY_DISK if memory else None) as work:
        fork = multiprocessing.get_context("fork")  # the templates' writer imports torch
        writer = fork.Process(target=cases.write_templates, args=[Path(work, "template")])
        writer.start()
        writer.join()
        if writer.exitcode:
            raise RuntimeError("the templates cannot be written")
        warm_up(kinds)
        gc.freeze()  # or collections in forks copy all pages
        yield Path(work)


def warm_up(kinds: list[str]) -> None:
    """Imports once what every case would import; cases are forks of this process."""
    import skyreels_v2_infer.run.main

    if NEED_TORCH & set(kinds):
        import torch
        import torch._dynamo  # modules that are built on the meta device import it
        from transformers import AutoTokenizer, CLIPVisionModel, PreTrainedTokenizerFast, UMT5EncoderModel  # noqa: F401

        for module in pkgutil.walk_packages(skyreels_v2_infer.__path__, "skyreels_v2_infer."):
            importlib.import_module(module.name)
        assert torch.get_num_threads() == 1  # forks would wait for the others


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", default=",".join(cases.KINDS), help=f"of {', '.join(cases.KINDS)}")
    parser.add_argument("--cases", type=int, default=10**9, help="at most so many of each kind")
    parser.add_argument("--failures", type=Path, default=Path("fuzz_failures"), help="where failing cases are kept")
    parser.add_argument("--only", metavar="KIND:SEED:NUMBER", help="one case")
    args = parser.parse_args()
    kinds = args.kinds.split(",")
    if not set(kinds) <= set(cases.KINDS):
        parser.error(f"--kinds {args.kinds}: must be of {', '.join(cases.KINDS)}")
    if args.only:
        kind, seed, number = args.only.split(":")
        with workplace([kind]) as work:
            case, outcome, _ = one(kind, int(seed), int(number), work / "template", work / "boxes")
        print(case, outcome.out, outcome.err, f"exit {outcome.code}, {outcome.seconds:.1f} s", sep="\n")
        print("wrong:", "; ".join(outcome.wrong) or "nothing")
        return int(bool(outcome.wrong))
    began = time.monotonic()
    counts, failed = fuzz(args.seconds, args.seed, kinds, args.cases, args.failures)
    for kind, outcomes in counts.items():
        ends = ", ".join(f"{number} exit {code}" for code, number in sorted(outcomes.items(), key=str))
        print(f"{kind}: {outcomes.total()} cases: {ends}")
    total = sum(found.total() for found in counts.values())
    print(f"{total} cases in {time.monotonic() - began:.0f} s, {len(failed)} failed")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
