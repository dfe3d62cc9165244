"""The report page as a file: what it holds, that nothing in it is taken as HTML, and how it is written."""

import errno
import hashlib
import json
import os
import re
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image
from report_folders import add, add_preview, data_of, manifest

from skyreels_v2_infer.media import preview, report
from skyreels_v2_infer.media.report import ForeignPageError, main, refresh_report, write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'`${1}\x00\x1b[2J\u2028\u202e\udcff<!--"


class Elements(HTMLParser):
    """Elements of a page with their attributes, and the text inside each."""

    def __init__(self, page: Path):
        super().__init__()
        self.found: list[tuple[str, dict, str]] = []
        self.feed(page.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs), ""))

    def handle_data(self, data):
        if self.found:
            tag, attributes, text = self.found[-1]
            self.found[-1] = (tag, attributes, text + data)

    def named(self, tag: str) -> list[tuple[dict, str]]:
        return [(attributes, text) for name, attributes, text in self.found if name == tag]


def test_what_the_page_shows_of_a_video(tmp_path):
    about = manifest(pieces=(9, 8, 8), seed=2**60 + 1, teacache=True, lora=["/a.safetensors:0.5"])
    about["pieces"][1]["seam"] = 0.25
    add(tmp_path, "long", about)
    [video] = data_of(write_report(tmp_path))["videos"]
    assert (video["name"], video["src"], video["prompt"]) == ("long", "./long.mp4", "a red circle")
    assert (video["frames"], video["fps"], video["height"], video["width"]) == (25, 8, 48, 80)
    assert [piece["frames"] for piece in video["pieces"]] == [9, 8, 8] and video["pieces"][1]["seam"] == 0.25
    assert video["seconds"]["total"] == 4.5 and video["memory"] == {"host": 0.5}
    assert video["script"] == "generate_video_df.py" and not video["continued"]
    assert video["warnings"] == ["the picture jumps where window 2 begins (mean difference 0.25 of 1)"]
    settings = data_of(tmp_path / "report.html")["common"]["settings"]
    assert settings["seed"] == str(2**60 + 1)  # as a number JavaScript would round it
    assert (settings["teacache"], settings["lora"]) == ("on", "/a.safetensors:0.5")
    assert data_of(tmp_path / "report.html")["common"]["about"]["versions: torch"] == "2.13.0"


def test_settings_that_all_videos_share_are_stored_once(tmp_path):
    for number, scale in enumerate((2.0, 4.0)):
        add(tmp_path, f"clip_{number}", manifest(guidance_scale=scale))
    found = data_of(write_report(tmp_path))
    assert [video["settings"] for video in found["videos"]] == [{"guidance_scale": "2"}, {"guidance_scale": "4"}]
    assert found["common"]["settings"]["fps"] == "8" and "guidance_scale" not in found["common"]["settings"]


def test_the_prompts_of_a_story_are_its_prompt(tmp_path):
    about = manifest(story=json.dumps([{"start": 0, "prompt": "a sun"}, {"start": 9, "prompt": "a moon"}]))
    del about["settings"]["prompt"]
    add(tmp_path, "story", about)
    add(tmp_path, "torn", manifest(story="[{]"))
    assert [video["prompt"] for video in data_of(write_report(tmp_path))["videos"]] == ["a sun\na moon", "a red circle"]


def test_a_continued_video_is_no_window(tmp_path):
    about = manifest(pieces=(9, 8), video_path="/old.mp4")
    about["pieces"][0]["brightness"] = 0.9  # not made by this run, so no drift
    add(tmp_path, "more", about)
    [video] = data_of(write_report(tmp_path))["videos"]
    assert video["continued"] and video["warnings"] == []


def test_videos_are_sorted_by_the_numbers_in_their_names(tmp_path):
    for name in ("clip-10", "clip-9", "clip-1", "another"):
        add(tmp_path, name, manifest())
    names = [video["name"] for video in data_of(write_report(tmp_path))["videos"]]
    assert names == ["another", "clip-1", "clip-9", "clip-10"]


def test_what_is_no_finished_video_is_left_out(tmp_path):
    add(tmp_path, "good", manifest())
    add(tmp_path, ".hidden", manifest())
    add(tmp_path, "gone", manifest()).unlink()
    (tmp_path / "foreign.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    (tmp_path / "folder.json").write_text(json.dumps(manifest()))
    assert [video["name"] for video in data_of(write_report(tmp_path))["videos"]] == ["good"]


@pytest.mark.parametrize("change", ["nan", "huge", "types", "pieces", "unicode", "empty"])
def test_malformed_fields_are_left_out(tmp_path, change):
    about = manifest()
    if change == "nan":
        about["seconds"] = {"total": float("nan"), "loading": float("inf")}
        about["pieces"][0]["brightness"] = float("-inf")
    elif change == "huge":
        about["settings"] |= {"fps": 10**400, "height": 10**400, "seed": 10**400, "prompt": "x" * 10**6}
        about["peak_memory_gib"] = {"host": 10**400}
    elif change == "types":
        about |= {"seconds": [1], "peak_memory_gib": "much", "details": 3, "machine": None, "script": ["rm"]}
        about["settings"] |= {"fps": "8", "width": True, "prompt": {"a": [1]}, "shift": [[["deep"]]], "story": 3}
    elif change == "pieces":
        about["pieces"] = [{"frames": 0}, {"frames": -3, "seam": "x"}, {}]
    elif change == "unicode":
        about["settings"] |= {"prompt": "\ud800\udfff\x00", "not a flag": 1, "<b>": 2}
    elif change == "empty":
        about = {"settings": {}}
    add(tmp_path, "odd", about)
    add(tmp_path, "plain", manifest())
    text = write_report(tmp_path).read_text("utf-8")
    found = data_of(tmp_path / "report.html")
    assert [video["name"] for video in found["videos"]] == ["odd", "plain"]
    assert not re.search(r"\bNaN\b|\bInfinity\b", text.partition('id="data">')[2].partition("</script>")[0])
    assert len(text) < 200_000
    assert set(found["videos"][0]["settings"]) <= set(manifest()["settings"]) | {"shift"}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"settings": []}', "[" * 10**5, '{"a": ' * 10**4, "\ufeff\x00"])
def test_files_that_are_no_manifest_are_left_out(tmp_path, text):
    add(tmp_path, "broken", text)
    add(tmp_path, "good", manifest())
    assert [video["name"] for video in data_of(write_report(tmp_path))["videos"]] == ["good"]


def test_nothing_from_files_becomes_html(tmp_path):
    about = manifest(prompt=HOSTILE, solver=HOSTILE) | {"script": HOSTILE, "details": {HOSTILE: HOSTILE}}
    name = "a\"b<c>&'%2F#?\\é\n</noscript><script>javascript:alert(1)"
    name = name.replace("/", "_")
    add(tmp_path, name, about)
    rows = {"row": 1, "name": HOSTILE, "status": HOSTILE, "error": HOSTILE}
    (tmp_path / "summary.jsonl").write_text(json.dumps(rows) + "\n")
    page = Elements(write_report(tmp_path))
    add(tmp_path, "plain", manifest())
    plain = Elements(write_report(tmp_path))
    tags = [tag for tag, _, _ in page.found]
    assert tags.count("script") == 2 and "img" not in tags
    assert [tag for tag, _, _ in plain.found if tag not in ("a", "li")] == [t for t in tags if t not in ("a", "li")]
    assert not [name for _, attributes, _ in page.found for name in attributes if name.startswith("on")]
    found = json.loads(page.named("script")[0][1])
    assert found["videos"][0]["prompt"] == HOSTILE.replace("\udcff", "\ufffd")
    assert found["videos"][0]["script"] is None  # no command of a stranger's is offered for copying
    [(link, text)] = page.named("a")
    assert unquote_to_bytes(link["href"]) == b"./" + os.fsencode(name) + b".mp4" and text.rstrip() == name
    assert re.fullmatch(r"[./\w%~-]+", link["href"])


def test_a_name_that_is_not_unicode(tmp_path):
    try:
        add(tmp_path, os.fsdecode(b"caf\xe9"), manifest())
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    [video] = data_of(write_report(tmp_path))["videos"]
    assert (video["src"], video["name"]) == ("./caf%E9.mp4", "caf\ufffd")


def test_the_policy_admits_the_page_itself_and_nothing_else(tmp_path):
    add(tmp_path, "clip", manifest())
    page = Elements(write_report(tmp_path))
    [policy] = [a["content"] for a, _ in page.named("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["media-src"] == "'self'" and rules["img-src"] == "'self' data:"
    text = (tmp_path / "report.html").read_text("utf-8")
    for rule, element in (("script-src", "<script>"), ("style-src", "<style>")):
        inside = text.partition(element)[2].partition(element.replace("<", "</"))[0]
        assert rules[rule] == f"'sha256-{b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", text)  # a name space, not an address
    # A style attribute or HTML made from text would need a weaker policy.
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|<[^>]* style=", text)


def test_jobs_without_a_video_are_listed(tmp_path):
    for name in ("b", "a"):
        add(tmp_path, name, manifest())
    rows = [
        {"row": 1, "name": "b", "status": "waiting"},
        {"row": 1, "name": "b", "status": "done", "path": "elsewhere/b.mp4", "seconds": 3},
        {"row": 2, "name": "a", "status": "done", "path": str(tmp_path / "a.mp4")},
        {"row": 3, "name": "c", "status": "failed", "error": "out of memory"},
        {"name": "d", "status": "waiting"},
        {"row": "x", "status": ["odd"], "path": 7},
        {"row": 5, "name": None, "status": "invalid", "error": "--seed x"},
        {"row": 6, "name": None, "status": "invalid", "error": "--fps x"},
        {"row": 6, "name": "6", "status": "done", "path": "6.mp4"},
        {"row": 6, "name": "row", "status": "failed"},
    ]
    lines = [json.dumps(row) for row in rows] + ["{", "3", "", "[1]", '{"row": NaN}']
    lines += [r'{"row": 8, "name": "8", "path": "\ud800"}', '{"row": 9, "error": %s}' % ("[" * 600 + "]" * 600)]
    (tmp_path / "summary.jsonl").write_text("\n".join(lines))
    found = data_of(write_report(tmp_path))
    assert [(video["name"], video["row"]) for video in found["videos"]] == [("b", 1), ("a", 2)]
    assert {"row": "3", "name": "c", "status": "failed", "error": "out of memory"} in found["jobs"]
    assert {"name": "d", "status": "waiting"} in found["jobs"]
    assert not [job for job in found["jobs"] if job.get("name") in ("a", "b")]
    rows = [(job["row"], job["status"], job.get("error")) for job in found["jobs"] if job.get("row") in ("5", "6")]
    gone = ("6", "done", "the file is not in this folder")
    assert rows == [("5", "invalid", "--seed x"), gone, ("6", "failed", None)]


# The poster is a part of the preview


@pytest.mark.parametrize(
    "height, width, windows",
    [(48, 80, 1), (544, 960, 1), (544, 960, 3), (960, 544, 3), (720, 1280, 20), (16, 640, 3), (272, 480, 150)],
)
def test_the_poster_is_where_the_preview_has_the_first_frame(tmp_path, height, width, windows):
    about = manifest(pieces=(9,) * windows, height=height, width=width)
    path = add(tmp_path, "clip", about)
    add_preview(path, about)
    poster = data_of(write_report(tmp_path))["videos"][0]["poster"]
    picture = np.asarray(Image.open(path.with_suffix(".png")))
    assert poster["src"] == "./clip.png" and poster["size"] == [picture.shape[1], picture.shape[0]]
    x, y, width, height = poster["box"]
    assert (picture[y : y + height - 1, x : x + width - 1] == 120).all()
    assert (picture[y + height + 1, x : x + width] != 120).all() and (picture[y, x + width] != 120).any()


def test_another_picture_is_no_poster(tmp_path):
    path = add(tmp_path, "clip", manifest())
    assert data_of(write_report(tmp_path))["videos"][0]["poster"] is None
    for content in (b"", b"\x89PNG\r\n\x1a\n", b"no picture at all, but long enough"):
        path.with_suffix(".png").write_bytes(content)
        assert data_of(write_report(tmp_path))["videos"][0]["poster"] is None
    preview.thumbnail(np.zeros((200, 200, 3), np.uint8)).save(path.with_suffix(".png"))
    assert data_of(write_report(tmp_path))["videos"][0]["poster"] is None


# Writing


def test_the_same_folder_gives_the_same_page(tmp_path):
    for name in ("a", "b"):
        add(tmp_path, name, manifest())
    first = write_report(tmp_path)
    assert first == tmp_path / "report.html"
    content = first.read_bytes()
    assert write_report(tmp_path).read_bytes() == content
    add(tmp_path, "c", manifest())
    assert write_report(tmp_path).read_bytes() != content


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch, capsys, step):
    old = write_report(tmp_path).read_bytes()
    add(tmp_path, "clip", manifest())

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(report.os, step, full)
    with pytest.raises(OSError, match="No space"):
        write_report(tmp_path)
    refresh_report(tmp_path)
    assert capsys.readouterr().err == "no report page: [Errno 28] No space left on device\n"
    assert (tmp_path / "report.html").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.json", "clip.mp4", "report.html"]


@pytest.mark.parametrize("kind", ["page", "empty", "link", "folder"])
def test_a_foreign_page_is_kept(tmp_path, capsys, kind):
    page = tmp_path / "report.html"
    if kind == "page":
        page.write_text("<!DOCTYPE html><title>ours</title>")
    elif kind == "empty":
        page.touch()
    elif kind == "folder":
        page.mkdir()
    else:
        (tmp_path / "real").mkdir()
        page.symlink_to(write_report(tmp_path / "real"))
    before = os.lstat(page)
    with pytest.raises(ForeignPageError):
        write_report(tmp_path)
    refresh_report(tmp_path)
    assert capsys.readouterr().err == f"no report page: {page} was not written by this program and is kept\n"
    refresh_report(tmp_path, create=False)  # a run that would not have made a page has nothing to say
    assert capsys.readouterr().err == "" and os.path.samestat(before, os.lstat(page))


def test_without_create_only_an_existing_page_is_written(tmp_path):
    refresh_report(tmp_path, create=False)
    assert list(tmp_path.iterdir()) == []
    old = write_report(tmp_path).read_bytes()
    add(tmp_path, "clip", manifest())
    refresh_report(tmp_path, create=False)
    assert (tmp_path / "report.html").read_bytes() != old


def test_a_bug_in_the_page_does_not_fail_the_video(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(report, "page_of", lambda folder: 1 / 0)
    refresh_report(tmp_path)
    assert capsys.readouterr().err == "no report page: division by zero\n"


def test_the_command_writes_the_page_of_any_folder(tmp_path, capsys):
    add(tmp_path, "clip", manifest())
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'report.html'}\n"
    assert main([]) == main([str(tmp_path / "clip.mp4")]) == 2
    (tmp_path / "report.html").write_text("mine")
    assert main([str(tmp_path)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".json", ".png", "jsonl"])
def test_a_pipe_in_a_file_s_place_is_not_waited_for(tmp_path, suffix):
    path = add(tmp_path, "clip", manifest())
    add(tmp_path, "other", manifest())
    place = tmp_path / "summary.jsonl" if suffix == "jsonl" else path.with_suffix(suffix)
    place.unlink(missing_ok=True)
    os.mkfifo(place)
    names = [video["name"] for video in data_of(write_report(tmp_path))["videos"]]
    assert names == (["other"] if suffix in (".mp4", ".json") else ["clip", "other"])
