"""Shared fixtures: a tiny random SD3 pipeline of the true classes, saved to disk; a model hub on this machine."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from hub_server import Hub, point_to, silence
from huggingface_hub import constants


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's architecture with random weights."""
    from star.pretraining import base

    folder = tmp_path_factory.mktemp("random-base")
    base.pipeline(seed=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def scalar_run(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of the scalar method on random weights, to read and to copy."""
    from trainings import train

    out = tmp_path_factory.mktemp("scalar")
    train(random_base, out, "flow_grpo")
    return out


@pytest.fixture(scope="session")
def star_run(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three epochs of STAR on the same prompts and noise."""
    from trainings import train

    out = tmp_path_factory.mktemp("star")
    train(random_base, out, "star")
    return out


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, nothing locked, and nobody logged in."""
    monkeypatch.setattr("star.hub.lock.FILE", tmp_path / "config/weights.lock.json")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def running_hub() -> Iterator[Hub]:
    """At one address for all tests, because transformers keeps the first one that it sees."""
    with Hub().running() as served:
        yield served


@pytest.fixture
def hub_server(running_hub: Hub, hub_cache: Path, random_base: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A hub with the miniature's preference model and a random pipeline."""
    running_hub.folders = {"some/clip": Path("resources/miniature/pickscore").resolve(), "some/pipeline": random_base}
    running_hub.gated, running_hub.broken = set(), False
    running_hub.asked.clear()
    point_to(running_hub.url, monkeypatch)
    return running_hub


@pytest.fixture
def silent_hub(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[socket.socket]]:
    """The connections to a hub that says nothing."""
    monkeypatch.setattr("star.hub.check.TIMEOUT", 0.3)
    with silence() as (url, taken):
        point_to(url, monkeypatch)
        yield taken
