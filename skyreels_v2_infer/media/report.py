"""The report page of a folder of videos: one HTML file that needs neither a server nor a network.

The page is a function of the folder's files: the videos with the manifest beside each, the previews, and
`summary.jsonl` of a job file if there is one. They may come from strangers: the page holds their text as JSON data,
which its script shows as text only, and a Content-Security-Policy admits no other script and no foreign address.

`python -m skyreels_v2_infer.media.report FOLDER` writes the page of any folder.
"""

from __future__ import annotations

import errno
import hashlib
import html
import json
import os
import re
import secrets
import sys
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template
from urllib.parse import quote

from skyreels_v2_infer.console import say
from skyreels_v2_infer.errors import first_line, printable
from skyreels_v2_infer.media import preview
from skyreels_v2_infer.media.files import read_small
from skyreels_v2_infer.media.rates import HIGHEST
from skyreels_v2_infer.media.statistics import drift

NAME, SUMMARY = "report.html", "summary.jsonl"
GENERATOR = b'<meta name="generator" content="skyreels_v2_infer">'
PARTS = Path(__file__).with_name("report_page")
PROGRAM = ("basics.js", "clock.js", "viewer.js", "dialog.js", "tiles.js", "grid.js")  # one script, in this order
SCRIPTS = ("generate_video.py", "generate_video_df.py")
SETTING = re.compile("(?!prompt$|story$)[a-z][a-z0-9_]{0,60}")
MOST_MANIFEST = 4 * 2**20  # bytes
MOST_TEXT, MOST_PIECES = 20_000, 10_000  # characters of a setting, pieces of a video
FIGURES = ("brightness", "saturation", "seam")  # of a piece, 0 to 1
BROKEN = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    RecursionError,
)  # raised for files that are not as written


class ForeignPageError(OSError):
    """There is a `report.html` that this program did not write."""


def write_report(folder: Path) -> Path:
    """Writes or replaces `report.html` in a folder; readers see the old page or the new one, never a part.

    Raises:
        ForeignPageError: there is a file of that name that this program did not write.
        OSError: the folder cannot be read or written.
    """
    path = Path(folder) / NAME
    if os.path.lexists(path) and not is_ours(path):
        raise ForeignPageError(errno.EEXIST, "was not written by this program and is kept", str(path))
    content = page_of(path.parent).encode("utf-8", "replace")
    part = path.with_name(f".{NAME}.{secrets.token_hex(4)}.part")  # two processes may write at the same time
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # after a power cut an empty file would not be recognised as ours
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise
    return path


def refresh_report(folder: Path, create: bool = True) -> None:
    """As `write_report`, but a failure is only a line on stderr: the videos are complete without the page.

    Args:
        create: also write the page where there is none; else only one that this program wrote is replaced.
    """
    try:
        if create or is_ours(Path(folder) / NAME):
            write_report(folder)
    except Exception as error:
        reason = f"{error.filename} {error.strerror}" if isinstance(error, ForeignPageError) else first_line(error)
        say(printable(f"no report page: {reason}"))


def is_ours(path: Path) -> bool:
    """Whether a file is a page that this program wrote."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return GENERATOR in file.read(1024)


def page_of(folder: Path) -> str:
    """The page as HTML."""
    script = "\n".join((PARTS / name).read_text("utf-8") for name in PROGRAM)
    style = (PARTS / "page.css").read_text("utf-8")
    videos = videos_in(folder)
    jobs = add_jobs(folder, videos)
    name = shown(folder.resolve().name or str(folder.resolve()))
    # "<" could end the element that holds the data; JSON strings may spell it otherwise.
    data = json.dumps({"folder": name, "common": shared(videos), "videos": videos, "jobs": jobs})
    links = (f'<li><a href="{video["src"]}">{html.escape(video["name"])}</a></li>' for video in videos)
    return Template((PARTS / "page.html").read_text("utf-8")).substitute(
        generator=GENERATOR.decode(),
        title=html.escape(name),
        script=script,
        style=style,
        script_sum=sha256(script),
        style_sum=sha256(style),
        data=data.replace("<", "\\u003c"),
        links="\n".join(links),
    )


def sha256(text: str) -> str:
    """A source expression of a Content-Security-Policy that admits exactly this text."""
    return f"sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# Videos


def videos_in(folder: Path) -> list[dict]:
    """What the page shows of every video in a folder that has a manifest, in the natural order of their names."""
    found = []
    for path in folder.iterdir():
        if path.suffix != ".mp4" or path.name.startswith(".") or not path.is_file():
            continue
        with suppress(*BROKEN):
            manifest = json.loads(read_small(path.with_suffix(".json"), MOST_MANIFEST))
            found.append(video_of(path, manifest))
    return sorted(found, key=lambda video: natural(video["name"]))


def natural(name: str) -> list:
    """A key that sorts numbers in names by value."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split("([0-9]{1,9})", name))]


def video_of(path: Path, manifest: dict) -> dict:
    """What the page shows of one video; unknown or malformed fields of the manifest are left out.

    Raises:
        Exception: one of `BROKEN`: it is no manifest.
    """
    written = dict(manifest["settings"].items())
    height, width = (count(written.get(name)) for name in ("height", "width"))
    fps = numbers(written, ["fps"]).get("fps")
    continued = "video_path" in written
    pieces = pieces_of(manifest.get("pieces"))
    frames = sum(piece["frames"] for piece in pieces) or count(written.get("num_frames"))
    measured = bool(pieces) and all(name in piece for piece in pieces for name in FIGURES)
    warning = drift(pieces, int(continued)) if measured and len(pieces) > continued else None
    return {
        "name": shown(path.stem),
        "src": address(path.name),
        "poster": poster_of(path.with_suffix(".png"), height, width, pieces),
        "prompt": prompt_of(written),
        "settings": {name: text_of(value) for name, value in written.items() if SETTING.fullmatch(name)},
        "script": manifest.get("script") if manifest.get("script") in SCRIPTS else None,
        "height": height,
        "width": width,
        "fps": fps if fps and 1 <= fps <= HIGHEST else None,
        "frames": frames,
        "pieces": pieces,
        "continued": continued,
        "warnings": [] if warning is None else [warning],
        "seconds": numbers(manifest.get("seconds")),
        "memory": numbers(manifest.get("peak_memory_gib")),
        "about": about_of(manifest),
    }


def pieces_of(written: object) -> list[dict]:
    """frames, brightness, saturation and seam of each piece; empty unless all have a number of frames."""
    if not isinstance(written, list) or len(written) > MOST_PIECES:
        return []
    pieces = [{"frames": count(piece.get("frames"))} | numbers(piece, FIGURES) for piece in written]
    return pieces if all(piece["frames"] for piece in pieces) else []


def prompt_of(settings: dict) -> str:
    """The prompt, or the prompts of a story's scenes, a line each."""
    if isinstance(story := settings.get("story"), str):
        with suppress(*BROKEN):
            return text_of("\n".join(scene["prompt"] for scene in json.loads(story)))
    return text_of(settings.get("prompt", ""))


def about_of(manifest: dict) -> dict[str, str]:
    """What else a manifest says about the machine and the program."""
    found = {}
    for group in ("machine", "details", "versions"):
        fields = manifest.get(group)
        for name, value in fields.items() if isinstance(fields, dict) else ():
            if isinstance(value, str | bool | int | float):
                found[shown(f"{group}: {name}" if group == "versions" else name)] = text_of(value)
    return found


def poster_of(path: Path, height: int | None, width: int | None, pieces: list[dict]) -> dict | None:
    """The first frame in a preview: its address, size [width, height] and the frame's box [x, y, width, height]."""
    if not path.is_file():  # a pipe would be waited for
        return None
    with suppress(OSError):
        with path.open("rb") as file:
            head = file.read(24)
        size = [int.from_bytes(head[start : start + 4], "big") for start in (16, 20)]
        if not (head.startswith(b"\x89PNG") and height and width and pieces):
            return None
        for thumbnails in preview.counts([piece["frames"] for piece in pieces]):
            expected, box = preview.first_frame(height, width, thumbnails)
            if all(abs(one - other) <= 2 + other // 50 for one, other in zip(size, expected, strict=True)):
                return {"src": address(path.name), "size": size, "box": box}
    return None


def shared(videos: list[dict]) -> dict[str, dict[str, str]]:
    """Settings, and what is known about the machine, that are the same for all videos; removes them from each."""
    found = {}
    for group in ("settings", "about"):
        first, *others = (video[group] for video in videos) if videos else ({},)
        same = {name: text for name, text in first.items() if all(other.get(name) == text for other in others)}
        for video in videos:
            video[group] = {name: text for name, text in video[group].items() if name not in same}
        found[group] = same
    return found


# Jobs


def add_jobs(folder: Path, videos: list[dict]) -> list[dict]:
    """Adds its row of `summary.jsonl` to each video, and returns the rows that have none: failed, invalid, ...

    Videos are sorted by row. The last line of a name counts; one without a name (of an invalid row) until its row has
    another line.
    """
    rows: dict = {}
    with suppress(OSError, ValueError):
        for line in read_small(folder / SUMMARY).splitlines():
            with suppress(*BROKEN):
                row = json.loads(line)
                by_row = "row", str(row.setdefault("row", None))
                rows.pop(by_row, None)
                rows[by_row if row.get("name") is None else ("name", str(row["name"]))] = row
    by_name = {video["src"]: video for video in videos}
    left = []
    for row in rows.values():
        with suppress(*BROKEN):
            path = row.get("path")
            video = by_name.get(address(re.split(r"[/\\]", path)[-1])) if isinstance(path, str) else None
            if video is not None:
                video["row"] = count(row["row"], least=0)
                continue
            if row.get("status") == "done":
                row["error"] = "the file is not in this folder"
            names = ("row", "name", "status", "error", "prompt")
            left.append({name: text_of(row[name]) for name in names if row.get(name) is not None})
    videos.sort(key=lambda video: (video.get("row") is None, video.get("row") or 0))
    return left


# Values from files


def count(value: object, least: int = 1) -> int | None:
    """A whole number of a plausible size, or None."""
    return value if type(value) is int and least <= value < 10**9 else None


def numbers(values: object, names: Sequence[str] | None = None) -> dict[str, float]:
    """The finite numbers among the values of a dictionary."""
    pairs = values.items() if isinstance(values, dict) else ()
    chosen = {shown(name): value for name, value in pairs if names is None or name in names}
    return {name: value for name, value in chosen.items() if type(value) in (int, float) and abs(value) < 10**12}


def text_of(value: object) -> str:
    """A value as the page shows it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(map(text_of, value))[:MOST_TEXT]
    return shown(f"{value:g}" if isinstance(value, float) and abs(value) < 10**6 else str(value))


def shown(text: str) -> str:
    """Text without surrogates, which stand for undecodable bytes in file names and cannot be encoded."""
    return re.sub("[\ud800-\udfff]", "\ufffd", text[:MOST_TEXT])


def address(name: str) -> str:
    """The address of a file beside the page, whatever characters its name has."""
    return "./" + quote(os.fsencode(name), safe="")


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the page of the folder on the command line and prints its path."""
    argv = sys.argv[1:] if argv is None else argv
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        say("usage: python -m skyreels_v2_infer.media.report FOLDER (an existing folder with videos)")
        return 2
    try:
        print(write_report(Path(argv[0])))
    except OSError as error:
        say(printable(f"no report page: {error}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
