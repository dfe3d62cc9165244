"""Files at addresses: kept once, within limits, and only if they are what they should be."""

import functools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from clips import clip, write

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import download, shared_download, web
from skyreels_v2_infer.media.probe import probe_file


class _Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *about):
        pass


@pytest.fixture
def address(tmp_path, monkeypatch):
    """The address of a folder ``tmp_path / "there"``."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    (tmp_path / "there").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(tmp_path / "there")))
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_video_is_downloaded_once(tmp_path, address):
    content = write(tmp_path / "there", clip(3)).read_bytes()
    path = download.download_video(f"{address}/clip.mp4")
    assert path.read_bytes() == content and probe_file(path).stored == (64, 96)
    assert download.download_video(f"{address}/clip.mp4") == path
    assert list((tmp_path / "cache").rglob("*.*")) == []  # nothing partial


def test_what_is_refused_leaves_nothing(tmp_path, address, monkeypatch):
    write(tmp_path / "there", clip(3))
    (tmp_path / "there" / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nfile:/etc/passwd\n#EXT-X-ENDLIST\n")
    with pytest.raises(InputError, match=f"--video_path {address}/list.m3u8: must be a (complete )?video"):
        download.download_video(f"{address}/list.m3u8")
    with pytest.raises(InputError, match="404"):
        download.download_video(f"{address}/none.mp4")
    monkeypatch.setattr(download, "VIDEO_BYTES", 2**10)
    with pytest.raises(InputError, match="must be a video of at most 0 MB"):
        download.download_video(f"{address}/clip.mp4")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_what_ends_early_or_never_is_the_networks_fault(tmp_path, address, monkeypatch):
    def answer(self):
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(b"some")

    monkeypatch.setattr(_Quiet, "do_GET", answer, raising=False)
    with pytest.raises(OSError, match="ended after 4 of 1000 bytes"):
        download.download_video(f"{address}/clip.mp4")
    monkeypatch.setattr(download, "STARTING", 0)
    monkeypatch.setattr(download, "SLOWEST", 10**12)
    with pytest.raises(OSError, match="bytes a second"):
        download.download_video(f"{address}/clip.mp4")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_redirections_stay_on_the_web(address, monkeypatch):
    def to(target):
        def answer(self):
            self.send_response(302)
            self.send_header("Location", target)
            self.end_headers()

        monkeypatch.setattr(_Quiet, "do_GET", answer, raising=False)

    to("ftp://127.0.0.1:1/clip.mp4")
    with pytest.raises(InputError, match=r"leads to ftp://127\.0\.0\.1:1/clip\.mp4, which is no address of http"):
        download.download_video(f"{address}/clip.mp4")
    to("http://127.0.0.1:1/clip.mp4")
    with pytest.raises(OSError, match="refused"):
        download.download_video(f"{address}/clip.mp4")


INSIDE = ["127.0.0.1", "::1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0"]
INSIDE += ["fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1", "224.0.0.1"]


def test_which_hosts_are_public():
    assert not any(map(web.is_public, INSIDE)) and all(map(web.is_local, INSIDE))
    assert all(map(web.is_public, ["93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34"]))
    assert all(map(web.is_local, ["localhost", "nas", "NAS.local", "printer.lan.", "[::1]", "2130706433"]))
    assert not any(map(web.is_local, ["example.org", "127.1.example.org", "8.8.8.8"]))


def test_redirections_do_not_lead_inside(address, monkeypatch, tmp_path):
    """From a host, to another one of the own network; to the same host they do."""
    content, port, asked = write(tmp_path / "there", clip(1)).read_bytes(), address.rpartition(":")[2], []
    whole = _Quiet.do_GET

    def answer(self):
        asked.append(self.headers["Host"])
        if self.path != "/clip.mp4":
            self.send_response(302)
            self.send_header("Location", targets[self.path])
            self.end_headers()
        else:
            whole(self)

    targets = {"/same": f"{address}/clip.mp4", "/other": f"http://127.0.0.2:{port}/clip.mp4"}
    targets |= {"/name": f"http://localhost:{port}/clip.mp4", "/public": f"http://www.example.org:{port}/clip.mp4"}
    monkeypatch.setattr(_Quiet, "do_GET", answer)
    assert download.download_video(f"{address}/same").read_bytes() == content
    asked.clear()
    for path, where in (("/other", r"127\.0\.0\.2"), ("/name", "localhost")):
        with pytest.raises(InputError, match=f"{address}{path}: leads to {where}, which is not public"):
            download.download_video(f"{address}{path}")
    find = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **words: find("127.0.0.1", *more, **words))
    for start in (f"{address}/public", f"http://www.example.org:{port}/clip.mp4", f"https://example.org:{port}/"):
        with pytest.raises(InputError, match=r"leads to 127\.0\.0\.1, which is not public"):
            download.download_video(start)
    assert asked == [f"127.0.0.1:{port}"] * 3
    asked.clear()
    assert download.download_video(f"http://nas:{port}/clip.mp4").read_bytes() == content  # plainly a local name


def test_a_public_host_is_connected_as_it_was_looked_up(address, monkeypatch, tmp_path):
    """A second answer for the same name is not asked for; the first number that answers is used."""
    content, port = write(tmp_path / "there", clip(1)).read_bytes(), address.rpartition(":")[2]
    connect, tried = socket.create_connection, []

    def instead(target, *more):
        tried.append(target[0])
        if target[0] == "93.184.216.34":
            raise OSError("no route")
        return connect(("127.0.0.1", target[1]), *more)

    find, found = socket.getaddrinfo, [(0, 0, 0, "", (number, 0)) for number in ("93.184.216.34", "93.184.216.35")]
    answers = lambda host, *more, **words: found if "example" in host else find(host, *more, **words)  # noqa: E731
    monkeypatch.setattr(socket, "getaddrinfo", answers)
    monkeypatch.setattr(socket, "create_connection", instead)
    assert download.download_video(f"http://www.example.org:{port}/clip.mp4").read_bytes() == content
    assert tried[:2] == ["93.184.216.34", "93.184.216.35"]


def test_a_companys_name_is_reached_and_no_redirection_to_it(address, monkeypatch, tmp_path):
    content, port = write(tmp_path / "there", clip(1)).read_bytes(), address.rpartition(":")[2]
    whole, connect, find = _Quiet.do_GET, socket.create_connection, socket.getaddrinfo

    def answer(self):
        if self.path == "/clip.mp4":
            return whole(self)
        self.send_response(302)
        self.send_header("Location", f"http://files.corp.example:{port}/clip.mp4")
        self.end_headers()

    numbers = {"files.corp.example": "10.1.2.3", "www.example.org": "93.184.216.34", "other.corp.example": "10.1.2.4"}
    found = lambda host: [(0, 0, 0, "", (numbers[host], 0))]  # noqa: E731
    looked_up = lambda host, *more, **words: found(host) if host in numbers else find(host, *more, **words)  # noqa: E731
    monkeypatch.setattr(_Quiet, "do_GET", answer)
    monkeypatch.setattr(socket, "getaddrinfo", looked_up)
    monkeypatch.setattr(socket, "create_connection", lambda to, *more: connect(("127.0.0.1", to[1]), *more))
    for path in ("/clip.mp4", "/elsewhere"):
        assert download.download_video(f"http://files.corp.example:{port}{path}").read_bytes() == content
    for host in ("www.example.org", "other.corp.example"):
        with pytest.raises(InputError, match=r"leads to 10\.1\.2\.3, which is not public"):
            download.download_video(f"http://{host}:{port}/elsewhere")


def test_a_proxy_may_be_inside(address, monkeypatch, tmp_path):
    content = write(tmp_path / "there", clip(1)).read_bytes()
    whole = _Quiet.do_GET

    def answer(self):
        assert self.path == "http://www.example.org/clip.mp4"
        self.path = "/clip.mp4"
        whole(self)

    monkeypatch.setattr(_Quiet, "do_GET", answer)
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("http_proxy", address)
    assert download.download_video("http://www.example.org/clip.mp4").read_bytes() == content


def test_a_disk_that_is_full_is_not_the_networks_fault(tmp_path, address, monkeypatch):
    write(tmp_path / "there", clip(1))
    (tmp_path / "cache").write_text("")  # a file where the folder would be
    with pytest.raises(OSError, match="cannot be saved in"):
        download.download_video(f"{address}/clip.mp4")


def launched(address: str, count: int) -> list:
    """What `count` processes of one launch get."""

    def one(i):
        try:
            return download.download_video(address)
        except (InputError, OSError) as error:
            return f"{type(error).__name__} {error}"

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(one, range(count)))


@pytest.fixture
def asked(monkeypatch) -> list[str]:
    """The paths that the server is asked for."""
    paths: list[str] = []
    real = _Quiet.do_GET
    monkeypatch.setattr(_Quiet, "do_GET", lambda self: (paths.append(self.path), real(self)), raising=False)
    return paths


def test_of_the_processes_of_a_launch_one_downloads(tmp_path, address, asked, monkeypatch):
    content = write(tmp_path / "there", clip(3)).read_bytes()
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    [path] = {*launched(f"{address}/clip.mp4", 4)}
    assert path.read_bytes() == content and asked == ["/clip.mp4"]
    [said] = {*launched(f"{address}/none.mp4", 4)}
    assert said.startswith(f"InputError --video_path {address}/none.mp4: cannot be downloaded (") and len(asked) == 2
    path.unlink()
    assert {*launched(f"{address}/clip.mp4", 2)} == {path} and len(asked) == 3 and path.exists()

    monkeypatch.setattr(shared_download, "launcher", lambda: "another launch")
    monkeypatch.setattr(shared_download, "OLD", -10)
    assert launched(f"{address}/clip.mp4", 1) == [path] and asked[-1] == "/clip.mp4"
    assert len([*(tmp_path / "cache").rglob("*.launch")]) == 1


def test_a_failure_of_the_network_is_that_of_all(address, monkeypatch):
    tries = []

    def answer(self):
        tries.append(1)
        self.send_error(503)

    monkeypatch.setattr(_Quiet, "do_GET", answer, raising=False)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    [said] = {*launched(f"{address}/clip.mp4", 2)}
    assert said.startswith("OSError --video_path ") and "503" in said and len(tries) == 1
