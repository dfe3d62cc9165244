"""The rules that hold between the rooms of the package, and the words of its documentation.

See docs/architecture.md.
"""

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from skyreels_v2_infer.cli.arguments import parse_diffusion_forcing, parse_generate
from skyreels_v2_infer.cli.captions import parse_captions

ROOT = Path(__file__).parents[1]
PACKAGE = "skyreels_v2_infer"
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS += [ROOT / PACKAGE / "assets" / "tiny" / "README.md"]

# Imports

GROUND = {"errors", "console", "launch", "runtime", "embedded", "progress", "hub", "limited"}
# What each room may import beside itself. `media` is ground as well: the other ground modules do without it.
ALLOWED = {"ground": set(), "media": {"ground"}, "scheduler": {"ground", "media"}}
ALLOWED["plan"] = ALLOWED["scheduler"] | {"scheduler"}
ALLOWED["cli"] = ALLOWED["plan"] | {"plan", "facade"}  # the last for the version
ALLOWED["modules"] = ALLOWED["plan"] | {"plan"}
ALLOWED["distributed"] = ALLOWED["modules"] | {"modules"}
ALLOWED["weights"] = ALLOWED["modules"] | {"modules"}
ALLOWED["chat"] = ALLOWED["plan"] | {"plan"}
ALLOWED["captioner"] = ALLOWED["chat"] | {"chat"}
ALLOWED["pipelines"] = ALLOWED["weights"] | {"weights", "distributed", "chat"}
ALLOWED["run"] = ALLOWED["pipelines"] | {"pipelines", "cli", "facade", "captioner", "chat"}
ALLOWED["facade"] = set(ALLOWED) - {"run", "cli"}

# Exceptions: the file lists published names that are in a higher room, and imports them when they are first used.
FACADES = {f"{PACKAGE}.modules": "published get_transformer, get_vae, ... are in weights"}
# The package's own __init__ is the room "facade"; that of pipelines lists names of its own room only.

WITHOUT_TORCH = ("cli", "plan", "media")
PLANNING_FILES = {f"{PACKAGE}.{name}" for name in ("errors", "launch", "console", "embedded", "progress", "limited")}
PLANNING_FILES |= {f"{PACKAGE}.scheduler.{name}" for name in ("sigmas", "solvers", "windows", "diffusion_forcing")}
PLANNING_FILES |= {
    f"{PACKAGE}.captioner.{name}" for name in ("schema", "validation", "answer", "frames", "pixels", "inputs")
}
PLANNING_FILES |= {PACKAGE, f"{PACKAGE}.scheduler"}
HEAVY = {"torch", "transformers", "diffusers"}


class Import(NamedTuple):
    """An import of `target` in line `line`; `late`: inside a function; `types_only`: under `if TYPE_CHECKING`."""

    target: str
    line: int
    late: bool
    types_only: bool


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


@cache
def imports_of(module: str) -> list[Import]:
    """All imports of a module: statements, and names of modules in a file that uses `import_module`."""
    tree = ast.parse(MODULES[module].read_text("utf-8"))
    found: list[Import] = []

    def visit(node: ast.AST, late: bool, types_only: bool) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            late = True
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for child in node.body:
                visit(child, late, True)
            for child in node.orelse:
                visit(child, late, types_only)
            return
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, late, types_only) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.append(Import(inner if inner in MODULES else node.module, node.lineno, late, types_only))
        for child in ast.iter_child_nodes(node):
            visit(child, late, types_only)

    visit(tree, False, False)
    if any(found_import.target == "importlib" for found_import in found):
        strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
        found += [Import(node.value, node.lineno, True, False) for node in strings if node.value in MODULES]
    return found


def room_of(module: str) -> str:
    if module == PACKAGE:
        return "facade"
    name = module.split(".")[1]
    return "ground" if name in GROUND else name


def test_imports_between_rooms_go_one_way():
    """Also those in functions and under TYPE_CHECKING, which name types."""
    wrong = []
    for module in MODULES:
        assert room_of(module) in ALLOWED, f"{module} is in no room"
        for found in imports_of(module):
            if found.target.split(".")[0] != PACKAGE or module in FACADES or room_of(module) == room_of(found.target):
                continue
            if room_of(found.target) not in ALLOWED[room_of(module)]:
                wrong.append(f"{MODULES[module].relative_to(ROOT)}:{found.line}: imports {found.target}")
    assert not wrong, "\n".join(wrong)


def test_only_run_and_the_scripts_import_run():
    users = [*ROOT.glob("*.py")]
    assert {path.name for path in users if f"{PACKAGE}.run" in path.read_text()} == {
        "caption_video.py",
        "generate_video.py",
        "generate_video_df.py",
    }
    importers = {room_of(module) for module in MODULES for found in imports_of(module) if is_in(found.target, "run")}
    assert importers == {"run"}


def is_in(target: str, room: str) -> bool:
    return target == f"{PACKAGE}.{room}" or target.startswith(f"{PACKAGE}.{room}.")


def test_no_module_imports_itself_through_others():
    """Imports in functions count; those under TYPE_CHECKING do not, since they never run; nor do facades."""
    edges = {
        module: {
            found.target
            for found in imports_of(module)
            if found.target in MODULES and not found.types_only and found.target not in FACADES
        }
        for module in MODULES
        if MODULES[module].name != "__init__.py"
    }
    done: set[str] = set()

    def follow(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for target in sorted(edges.get(module, ())):
                follow(target, (*path, module))
            done.add(module)

    for module in edges:
        follow(module, ())


def test_planning_files_import_no_torch():
    """At module level; media nowhere."""
    planning = [m for m in MODULES if room_of(m) in WITHOUT_TORCH or m in PLANNING_FILES]
    assert len(planning) > 25
    for module in planning:
        for found in imports_of(module):
            heavy = found.target.split(".")[0] in HEAVY
            assert not heavy or found.types_only or (found.late and room_of(module) != "media"), (
                f"{MODULES[module].relative_to(ROOT)}:{found.line}: imports {found.target}"
            )


def test_planning_a_run_loads_no_torch():
    names = ["cli.arguments", "cli.planning", "plan.show", "run.main", "run.batch", "run.captions"]
    code = f"import sys, {', '.join(f'{PACKAGE}.{name}' for name in names)}\nprint(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"{PACKAGE}.run.jobs" in loaded
    assert not HEAVY & loaded


# Documentation


def test_paths_in_the_documentation_exist():
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    table = text.partition("## Where do I find")[2]
    rows = re.findall(r"^\| (.+) \| `(.+)` \|$", table, re.MULTILINE)
    assert len(rows) >= 25
    assert len({concern for concern, _ in rows}) == len(rows)
    named = {path for _, path in rows}
    named |= set(re.findall(r"`(\w+(?:/\w+)*\.py)(?::|`)", text))
    missing = [path for path in named if not (ROOT / path).is_file() and not (ROOT / PACKAGE / path).is_file()]
    assert not missing


def test_functions_in_the_documentation_exist():
    """Written as `file.py: name` or `file.py: Class.method`."""
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    named = re.findall(r"`(\w+(?:/\w+)*\.py): ([\w.]+)`", text)
    assert len(named) > 10
    for path, name in named:
        source = (ROOT / PACKAGE / path).read_text("utf-8")
        for part in name.split("."):
            assert re.search(rf"^\s*(def|class) {part}\b", source, re.MULTILINE), f"{path}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_names_in_the_documentation_exist(document):
    """Tests as `test_file.py::test_name`, files of tests, modules of the package, links to other documents."""
    text = document.read_text("utf-8")
    tests = {path.name: path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")}
    for file in set(re.findall(r"\btest_\w+\.py\b", text)):
        assert file in tests, file
    for file, name in re.findall(r"\b(test_\w+\.py)::[\w.]*?(?:::)?(test_\w+)", text):
        assert re.search(rf"\bdef {name}\b", tests[file]), f"{file}::{name}"
    for module in set(re.findall(rf"\b{PACKAGE}(?:\.[a-z_0-9]+)+", text)):
        assert module in MODULES or module.rpartition(".")[0] in MODULES, module
    for path in re.findall(r"(?<![/\w.])(?:tests|docs|training|benchmarks)/[\w/]+\.\w+", text):
        assert (ROOT / path).is_file(), path
    for link, anchor in re.findall(
        r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    ):
        target = document.parent / link if link else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), f"{link}#{anchor}"


def anchors_of(document: Path) -> set[str]:
    """The anchors that GitHub makes from headings."""
    headings = re.findall(
        r"^#+ (.+)$", re.sub(r"```.*?```", "", document.read_text("utf-8"), flags=re.DOTALL), re.MULTILINE
    )
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# Words

# Phrases that a reader has to decipher; see also the section "Words" of the contributors' design.
RIDDLES = (
    "is handed",
    "are handed",
    "is told",
    "are told",
    "foretold",
    "what is to be seen",
    "which wants",
    "goes on from",
    "go on from",
    "going on from",
    "who this one is",
    "can mend",
)
PLAIN = ("__init__", *sorted(GROUND), "cli", "plan", "run", "chat", "captioner", "pipelines")  # files and rooms


def riddles_in(text: str) -> list[str]:
    words = " ".join(re.sub(r"^\s*#", " ", text, flags=re.MULTILINE).split()).lower()
    return [phrase for phrase in RIDDLES if re.search(rf"\b{phrase}\b", words)]


def test_riddles_are_found():
    assert riddles_in("the layer\n    # is\n    # handed a tensor") == ["is handed"]
    assert not riddles_in("this told, a history told")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_documents_are_plain(document):
    assert not riddles_in(document.read_text("utf-8"))


@pytest.mark.parametrize("parse", [parse_generate, parse_diffusion_forcing, parse_captions])
def test_help_is_plain(parse, capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert not riddles_in(capsys.readouterr().out)


def test_code_is_plain():
    for name in PLAIN:
        path = ROOT / PACKAGE / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]:
            assert not riddles_in(file.read_text("utf-8")), file.relative_to(ROOT)
