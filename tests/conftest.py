"""Shared fixtures: a tiny random SD3 pipeline of the true classes, saved to disk."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def random_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The miniature's architecture with random weights."""
    from star.miniature import base

    folder = tmp_path_factory.mktemp("random-base")
    base.pipeline(seed=1).save_pretrained(folder)
    return folder
