"""Shared by the tests of scorers."""

from pathlib import Path

import pytest
from preference_models import random_model


@pytest.fixture(scope="session")
def random_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random preference model; copied where a test changes it."""
    return random_model(tmp_path_factory.mktemp("clip") / "model")
