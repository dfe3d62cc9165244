"""The process of a script."""

import warnings

import pytest

from skyreels_v2_infer.run.main import run_process


class Warns:
    """Work in which a library warns."""

    makes = "video"

    def run(self, interrupts):
        warnings.warn("a remark to programmers", UserWarning, stacklevel=1)
        return "done"

    def left(self) -> str:
        return ""


@pytest.mark.filterwarnings("default")
def test_warnings_of_libraries_are_no_messages(capfd, monkeypatch):
    monkeypatch.setattr("sys.warnoptions", [])
    monkeypatch.setattr(warnings, "showwarning", lambda message, *rest, **_: print(message))
    assert run_process("prog", Warns()) == 0
    assert capfd.readouterr() == ("done\n", "")
    monkeypatch.setattr("sys.warnoptions", ["default"])  # asked for: python -W default
    run_process("prog", Warns())
    assert "a remark" in capfd.readouterr().out
