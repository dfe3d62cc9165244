"""The commands in the documents: every fenced block of bash, and how a test runs it."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "skyreels_v2_infer/assets/tiny/README.md",
]
INSTALLING = re.compile(r"^python3 -m venv .*pip install -r \S+ && ")  # is done where tests run


@dataclass(frozen=True)
class Block:
    """A fenced block. Attributes: place: file and line; kind: how it is tested, see `KINDS`."""

    place: str
    text: str
    kind: str | None


# Where in a block -> how it is tested. "run": as it stands, on a CPU. "dry": each command with --dry_run, in this
# process. "refused": without a GPU, in one line. "parsed": its arguments only, since it takes minutes or more, or a
# model; the tests of its own wing run it on less. The first that is found counts.
KINDS = {
    "sbatch": "parsed",
    "ray start": "parsed",
    "pytest": "parsed",
    "coverage": "parsed",
    "-m training": "parsed",
    "tests/fuzz": "parsed",
    "SOURCE OUT": "parsed",
    "path/to/model": "parsed",
    "benchmarks exact --device cuda": "refused",
    "benchmarks transformer": "refused",
    "benchmarks loading": "refused",
    "benchmarks/memory_targets.py": "refused",
    "benchmarks": "parsed",
    "caption_video.py --score": "parsed",
    "caption_video.py": "dry",
    "Skywork/": "dry",
    "--prompt_enhancer": "dry",
    "--model_id tiny": "run",
    "model_id: tiny": "run",
    "python - <<": "run",
    "media.report video_out": "run",
    "contact_sheet.png": "run",
    "torchrun": "run",
}


def blocks() -> list[Block]:
    """All blocks of bash, in the order of the documents."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text("utf-8")
        for match in re.finditer(r"^```bash\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
            line = text[: match.start()].count("\n") + 1
            body = INSTALLING.sub("", match[1])
            kind = next((kind for part, kind in KINDS.items() if part in body), None)
            found.append(Block(f"{document.relative_to(ROOT)}:{line}", body, kind))
    return found
