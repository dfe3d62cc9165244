"""Tensors are small here: a second thread costs more than it brings, several times more on a busy machine."""

import os

import pytest

from skyreels_v2_infer import hub

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; the scripts that tests start inherit it
SILENCE = hub.silence


@pytest.fixture
def asked_hub(monkeypatch):
    """For tests with a hub of their own: it is asked whether it answers."""
    monkeypatch.setattr(hub, "silence", SILENCE)


@pytest.fixture(autouse=True)
def hub_is_there(monkeypatch, request):
    """No test depends on a network: those that replace downloads find a hub that answers."""
    if "asked_hub" not in request.fixturenames:
        monkeypatch.setattr(hub, "silence", lambda endpoint: None)
