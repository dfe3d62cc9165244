"""The report page in a real browser: it plays, compares, searches, needs no mouse, and asks for nothing else.

Needs Chromium (Debian: `apt-get install chromium`). `.ci/run` installs it; elsewhere these tests run where it is found.
"""

import functools
import http.server
import json
import os
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser
from report_folders import add, add_preview, clip, manifest

from skyreels_v2_infer.media.report import write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the PATH"),
]

SECONDS, MEGABYTES = 2.0, 300  # for a page of 500 videos
HOSTILE = "</script><img src=x onerror=window.caught=1><b>\"'&\u202e\x1b[0m"
ODD = ("it's", "a $(touch caught) `b`", 'say "x"', "new\nline", "esc\x1b[201~", "-flag", "naïve 100%", "tab\t#?&")


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _window(browser):
    browser.resize(1200, 900)
    browser("Input.dispatchMouseEvent", type="mouseMoved", x=1, y=1)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two prompts by three guidance scales by two seeds, and a long video, of different rates and lengths."""
    folder = tmp_path_factory.mktemp("outputs") / "sweep"
    folder.mkdir()
    clips = {(frames, fps): clip(folder, frames, fps) for frames, fps in ((9, 8), (24, 24), (33, 16))}
    for prompt, (frames, fps) in (("a red circle", (9, 8)), ("a blue square", (24, 24))):
        for scale in (2.0, 10.0, 4.5):
            for seed in (1, 2):
                about = manifest(prompt, (frames,), guidance_scale=scale, seed=seed, fps=fps)
                path = add(folder, f"{prompt.replace(' ', '-')}_{scale:g}_{seed}", about, clips[frames, fps])
                add_preview(path, about)
    about = manifest("a long way", (17, 8, 8), guidance_scale=2.0, seed=7, fps=16)
    about["pieces"][2] |= {"seam": 0.3, "brightness": 0.4}
    add(folder, "long", about, clips[33, 16])
    return write_report(folder)


@pytest.fixture(scope="module")
def single(tmp_path_factory) -> Path:
    """A video of three windows."""
    folder = tmp_path_factory.mktemp("single")
    about = manifest("a long way", (17, 8, 8), fps=16)
    add_preview(add(folder, "long", about, clip(folder, 33, 16)), about)
    return write_report(folder)


class Served:
    """A folder behind a server without byte ranges, as simple stores of artifacts are; `paths`: what was asked for."""

    def __init__(self, folder: Path):
        paths = self.paths = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                paths.append(self.path)

        self.server = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
        )
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


IN_STEP = """[...clock.players].every((player) => {
    const goal = Math.min(clock.time, player.length - 0.5 / player.fps);
    return player.element.readyState >= 2 && Math.abs(player.element.currentTime - goal) < 1.5 / player.fps; })"""


@pytest.mark.parametrize("by", ["file", "http"])
def test_all_play_in_step(browser, sweep, by):
    browser.resize(1200, 1800)  # the long one is at the end
    with Served(sweep.parent.parent) as served:
        browser.open(sweep.as_uri() if by == "file" else f"{served.address}/sweep/report.html")
        assert browser.run("document.querySelectorAll('video[src]').length") <= 1  # the one that has no preview
        browser.until("document.querySelectorAll('.tile canvas').length === 12")  # parts of the previews
        if by == "http":  # pixels of files on the disk cannot be read
            level = "([x, y]) => canvas.getContext('2d').getImageData(x, y, 1, 1).data[0]"
            corners = f"[[0, 0], [79, 0], [79, 47]].map({level})"
            corners = f"[...document.querySelectorAll('.tile canvas')].flatMap((canvas) => {corners})"
            browser.until(f"String({corners}) === '{','.join(['120'] * 36)}'")
        browser.click("#play")
        browser.until(f"clock.players.size > 6 && clock.time > 0.5 && clock.time < 0.9 && {IN_STEP}")
        # Shorter videos hold their last frame until the longest ends and all begin again.
        browser.until("[...clock.players].some((player) => player.length > 2)")
        browser.until(f"clock.time > 1.4 && {IN_STEP}")
        assert browser.run("[...clock.players].some((player) => player.element.currentTime > 1.2)")
        browser.until(f"clock.time < 1 && {IN_STEP}")
        browser.click("#play")
        browser.until("!clock.running && !document.querySelector('video.ready:not(:only-child)')")
        assert browser.errors == []
        inside = sweep.parent.as_uri() if by == "file" else f"{served.address}/sweep/"
        outside = [address for address in browser.requests if not address.startswith((inside, "data:"))]
        assert outside == [] and len(browser.requests) > 10
        assert all(path.startswith("/sweep/") for path in served.paths)


def test_the_page_can_reach_nothing_else(browser, sweep):
    """Not even if it would: its policy blocks what its script does not do."""
    browser.open(sweep.as_uri())
    with Served(sweep.parent) as served:
        for code in ("fetch(A)", "new Image().src = A", "new WebSocket(A)", "navigator.sendBeacon(A)", "open(A)"):
            if code.startswith("open"):
                continue  # the page's own function
            browser.run(f"(async () => {{ const A = '{served.address}/out'; try {{ await ({code}) }} catch {{}} }})()")
        browser.run(f"document.body.append(make('iframe', {{src: '{served.address}/out'}}))")
        browser.run(f"document.body.append(make('video', {{src: '{served.address}/out', autoplay: true}}))")
        browser.run("document.body.append(make('script', {}, 'window.caught = 1'))")
        time.sleep(1)
        assert served.paths == [] and browser.run("window.caught") is None


def test_rows_are_prompts_and_columns_are_what_was_varied(browser, sweep):
    browser.open(sweep.as_uri())
    titles = "[...document.querySelectorAll('.row h2')].map((title) => title.textContent)"
    assert browser.run(titles) == ["a blue square", "a red circle", "a long way"]
    heads = "[...document.querySelectorAll('#heads span')].map((head) => head.textContent)"
    assert browser.run(heads) == ["guidance_scale 2", "guidance_scale 4.5", "guidance_scale 10"]
    places = """[...document.querySelectorAll('.tile')].map((tile) => [tile.video.name, tile.style.gridColumn[0],
        Math.round(tile.getBoundingClientRect().left)])"""
    lefts = {}
    for name, column, left in browser.run(places):
        scale = "2" if name == "long" else name.split("_")[1]
        assert column == str(["2", "4.5", "10"].index(scale) + 1)
        lefts.setdefault(scale, set()).add(left)
    assert all(len(left) == 1 for left in lefts.values())
    assert max(lefts["2"]) < max(lefts["4.5"]) < max(lefts["10"])
    # Captions say what their place does not.
    caption = browser.run("tiles.get(order[0]).querySelector('.caption').textContent")
    assert "seed 1" in caption and "made in 4.5 s" in caption and "guidance" not in caption
    long = browser.run("tiles.get(data.videos.find((video) => video.name === 'long')).textContent")
    assert "largest seam 0.30" in long and "brightness moved from 0.25 to 0.40" in long
    browser.run("byId('rows').value = 'seed'; byId('rows').dispatchEvent(new Event('change'))")
    assert browser.run(titles) == ["seed 1", "seed 2", "seed 7"]
    browser("Page.reload")
    browser.until("document.readyState === 'complete' && byId('rows')?.value === 'seed'")  # kept in the address


def test_search(browser, sweep):
    browser.open(sweep.as_uri())
    browser.run("byId('search').focus()")
    for letter in "BLUE seed=2":
        browser("Input.insertText", text=letter)
    browser.until("document.querySelectorAll('.tile').length === 3")
    assert browser.run("byId('summary').textContent").startswith("3 of 13 videos")
    browser("Input.insertText", text=" nothing like it")
    browser.until("document.querySelectorAll('.tile').length === 0")
    assert browser.run("byId('main').textContent") == "No video matches the search."


def test_hovering_plays_a_line_of_tiles(browser, sweep):
    browser.open(sweep.as_uri())
    browser.until("visible.size > 5")
    browser.move(".tile .picture")
    browser.until(f"clock.running && clock.time > 0.3 && {IN_STEP}")
    names = browser.run("[...players].filter(([, p]) => clock.players.has(p)).map(([tile]) => tile.video.name).sort()")
    assert names == ["a-blue-square_10_1", "a-blue-square_2_1", "a-blue-square_4.5_1"]
    browser.move("h1")
    browser.until("!clock.running && clock.players.size === 0")


def test_two_are_compared_without_a_mouse(browser, sweep):
    browser.open(sweep.as_uri())
    browser.run("document.querySelector('.tile .picture').focus()")
    browser.press("Tab")
    browser.press(" ")
    browser.press("Tab")
    browser.press("ArrowRight")  # to the third tile
    browser.press("Tab")
    browser.press(" ")
    assert browser.run("picked.length") == 2
    browser.run("byId('compare').focus()")
    browser.press("Enter")
    browser.until("dialog.open && viewer.players.every((player) => player.element.readyState >= 2)")
    assert browser.run("document.activeElement.id") == "toggle"
    browser.press(" ")  # pauses
    browser.until("!viewer.clock.running")
    browser.run("viewer.clock.seek(0)")
    for _ in range(3):
        browser.press("ArrowRight")
    at = "viewer.players.map((player) => Math.floor(player.element.currentTime * player.fps))"
    browser.until(f"String({at}) === '3,3'")
    browser.press("ArrowLeft")
    browser.until(f"String({at}) === '2,2'")
    differs = browser.run("[...document.querySelectorAll('.info tr.differs')].map((row) => row.textContent)")
    assert "guidance_scale210" in differs
    browser.run("document.querySelector('input[value=wipe]').focus()")
    browser.press(" ")
    browser.run("byId('divider').focus()")
    for _ in range(4):
        browser.press("ArrowRight")
    clips = "[...document.querySelectorAll('.stage .screen')].map((screen) => screen.style.clipPath)"
    assert browser.run(clips) == ["", "inset(0px 0px 0px 52%)"]
    boxes = browser.run(
        "[...document.querySelectorAll('.stage .screen')].map((s) => JSON.stringify(s.getBoundingClientRect()))"
    )
    assert boxes[0] == boxes[1]  # one above the other
    browser.press("Escape")
    browser.until("!dialog.open && document.activeElement.matches('.picture')")
    assert browser.run("document.querySelectorAll('dialog video').length") == 0 and browser.errors == []


def test_seams_are_marked(browser, sweep, single):
    browser.open(sweep.as_uri())
    seams = "[...document.querySelectorAll('.seam')].map((seam) => [seam.style.left, seam.className])"
    assert browser.run(seams) == [["51.5152%", "seam"], ["75.7576%", "seam jump"]]
    browser.open(single.as_uri())  # a single video is shown at once
    assert browser.run("byId('bar').hidden && document.querySelectorAll('.windows button').length") == 3
    browser.click(".windows button:nth-child(3)")
    browser.until("Math.floor(viewer.players[0].element.currentTime * 16) === 25")
    assert browser.run("document.querySelector('.windows .now').textContent") == "3"
    cells = "[...document.querySelectorAll('.info section:nth-of-type(4) tbody td:nth-child(2)')]"
    assert browser.run(f"{cells}.map((cell) => cell.textContent)") == ["0–16", "17–24", "25–32"]
    assert browser.errors == []


def test_the_command_is_copied(browser, single):
    browser("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.open(single.as_uri())
    browser.click(".command button")
    browser.until("document.querySelector('.command button').textContent === 'Copied'")
    text = browser.run("navigator.clipboard.readText()")
    assert text == f"python generate_video_df.py --replay {single.with_name('long.mp4')}"


def test_names_reach_a_shell_as_one_word(browser, tmp_path):
    folder = tmp_path / "it's $HOME"
    folder.mkdir()
    for name in (*ODD, os.fsdecode(b"caf\xe9")):
        add(folder, name, manifest())
    page = write_report(folder)
    browser.open(page.as_uri())
    shown = [word for word in browser.run("data.videos.map(commandOf)")]
    got = set()
    for command in shown:
        script = f'python() {{ printf "%s\\0" "$@"; }}; {command}'
        done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, check=True, timeout=10)
        *_, flag, path, end = done.stdout.split(b"\0")
        assert flag == b"--replay" and end == b"" and not re.search(r"[\x00-\x1f]", command)
        got.add(path)
    assert got == {os.fsencode(path) for path in folder.glob("*.mp4")}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_text_from_files_is_shown_as_text(browser, tmp_path):
    for number in range(2):
        about = manifest(f"{HOSTILE}{number}", solver=HOSTILE, fps=24) | {"details": {HOSTILE: HOSTILE}}
        add(tmp_path, f"clip_{number}<b>", about, clip(tmp_path, 9, 24))
    rows = {"row": 1, "name": HOSTILE, "status": HOSTILE, "error": HOSTILE}
    (tmp_path / "summary.jsonl").write_text(json.dumps(rows))
    browser.open(write_report(tmp_path).as_uri())
    texts = browser.run("[...document.querySelectorAll('.tile .text')].map((text) => text.textContent)")
    assert texts == [f"{HOSTILE}0", f"{HOSTILE}1"]
    browser.run("open(order)")
    browser.until("dialog.open")
    assert browser.run("document.querySelectorAll('main img, dialog img, main b b, td b').length") == 0
    assert browser.run("window.caught") is None
    assert browser.errors == []


def test_a_video_that_cannot_be_played_is_named(browser, tmp_path):
    for number in range(2):
        add(tmp_path, f"clip_{number}", manifest(), b"no video")
    browser.open(write_report(tmp_path).as_uri())
    browser.click("#play")
    browser.until("document.querySelectorAll('.tile .failed').length === 2")


def test_a_page_without_script_links_the_videos(browser, sweep):
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.events.clear()
        browser("Page.navigate", url=sweep.as_uri())

        def links() -> int:
            root = browser("DOM.getDocument")["root"]["nodeId"]
            return len(browser("DOM.querySelectorAll", nodeId=root, selector="ul.plain a[href$='.mp4']")["nodeIds"])

        browser.wait(lambda: browser.run("1") == 1 and "Page.loadEventFired" in browser.events, "loaded")
        assert links() == 13
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)


@pytest.mark.parametrize("width", [320, 390, 700])
def test_nothing_is_wider_than_a_phone(browser, sweep, width):
    browser.resize(width, 800, scale=2, touch=width < 600)
    browser.open(sweep.as_uri())
    fits = "document.documentElement.scrollWidth <= innerWidth && dialog.scrollWidth <= dialog.clientWidth"
    assert browser.run(fits)
    for videos in ("[data.videos.find((video) => video.name === 'long')]", "order.slice(0, 2)"):
        browser.run(f"open({videos})")
        browser.until("dialog.open")
        assert browser.run(fits)
    assert browser.run("(viewer.setMode('wipe'), true)") and browser.run(fits)


@pytest.mark.parametrize("dark", [False, True])
def test_text_stands_out_in_both_schemes(browser, sweep, dark):
    browser.resize(1200, 900, dark=dark)
    browser.open(sweep.as_uri())
    pairs = [("text", "ground"), ("text", "surface"), ("muted", "ground"), ("muted", "surface"), ("bad", "surface")]
    pairs += [("on-accent", "accent"), ("warning", "warning-ground"), ("accent", "surface")]

    def luminance(name: str) -> float:
        code = browser.run(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim().slice(1)")
        code = "".join(2 * letter for letter in code) if len(code) == 3 else code
        levels = [int(code[start : start + 2], 16) / 255 for start in (0, 2, 4)]
        linear = [level / 12.92 if level <= 0.04045 else ((level + 0.055) / 1.055) ** 2.4 for level in levels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    for one, other in pairs:  # at least as WCAG 2 level AA asks
        low, high = sorted((luminance(one), luminance(other)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (one, other)
    assert (luminance("ground") < 0.2) == dark


def test_every_control_has_a_name(browser, sweep):
    browser.open(sweep.as_uri())
    for code in ("0", "open(order.slice(0, 2)) || viewer.setMode('wipe')", "open([data.videos.at(-1)])"):
        browser.run(f"({code}, 0)")
        nodes = browser("Accessibility.getFullAXTree")["nodes"]
        roles = {"button", "checkbox", "slider", "combobox", "searchbox", "radio", "dialog"}
        controls = [node for node in nodes if not node["ignored"] and node.get("role", {}).get("value") in roles]
        assert len(controls) > 8
        assert [node for node in controls if not node.get("name", {}).get("value")] == []


def memory_of(browser: Browser) -> float:
    """MB of all processes of the browser; shared pages count by their share."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            children.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
        except OSError:
            continue
    processes, total = [browser.process.pid], 0
    for process in processes:
        processes += children.get(process, [])
        try:
            total += int(re.search(r"^Pss: +(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(), re.M)[1])
        except OSError:
            continue
    return total / 1024


def test_500_videos(tmp_path):
    """In a browser of its own, against an empty page: open, then scrolled from end to end."""
    first = None
    for number in range(500):
        about = manifest(f"prompt {number // 10}, " + "a long caption " * 30, (49,), height=544, width=960, fps=24)
        about["settings"] |= {"seed": number % 2, "guidance_scale": number % 10 // 2, "negative_prompt": "bad " * 100}
        path = tmp_path / f"clip_{number}.mp4"
        if first is None:
            first = add(tmp_path, path.stem, about, clip(tmp_path, 49, 24, 544, 960))
            add_preview(first, about)
            continue
        path.with_suffix(".json").write_text(json.dumps(about))
        for suffix in (".mp4", ".png"):
            os.link(first.with_suffix(suffix), path.with_suffix(suffix))
    page = write_report(tmp_path)
    with Browser(tmp_path / "profile") as browser:
        browser.resize(1280, 860)
        browser.open("data:text/html,empty")
        time.sleep(2)
        empty = memory_of(browser)
        shown = []
        for _ in range(3):  # other processes may delay one
            browser.open(page.as_uri())
            assert browser.run("document.querySelectorAll('.tile').length") == 500
            painted = "requestAnimationFrame(() => setTimeout(() => done(performance.now() / 1000)))"
            shown.append(browser.run(f"new Promise((done) => {painted})"))
        time.sleep(2)
        opened = memory_of(browser) - empty
        browser.run(
            "(async () => { for (let y = 0; y < document.body.scrollHeight; y += 700) {"
            " scrollTo(0, y); await new Promise((done) => setTimeout(done, 120)); } })()"
        )
        scrolled = memory_of(browser) - empty
        assert min(shown) < SECONDS and max(opened, scrolled) < MEGABYTES, (shown, opened, scrolled)
        assert browser.errors == []
        print(f"500 videos: {min(shown):.2f} s, {opened:.0f} MB, scrolled {scrolled:.0f} MB more than an empty page")
