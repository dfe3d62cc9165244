"""Files at addresses: kept once, within limits, and only if they are what they should be."""

import functools
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
from clips import clip, write

from skyreels_v2_infer.errors import InputError
from skyreels_v2_infer.media import download
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


def test_a_disk_that_is_full_is_not_the_networks_fault(tmp_path, address, monkeypatch):
    write(tmp_path / "there", clip(1))
    (tmp_path / "cache").write_text("")  # a file where the folder would be
    with pytest.raises(OSError, match="cannot be saved in"):
        download.download_video(f"{address}/clip.mp4")
