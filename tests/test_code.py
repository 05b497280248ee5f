"""The digest of a stage's code: what it follows, what counts, what is kept of it."""

from pathlib import Path

import pytest

from star import code

FILES = {
    "stage.py": "from star import part\n\n\ndef run(x):\n    return part.twice(x)\n",
    "part.py": '"""Doc."""\nimport star.config\nDOOR = {"far": "star.room.far"}\n\n\ndef twice(x):\n    return 2 * x\n',
    "room/__init__.py": "",
    "room/far.py": "SIZE = 3\n",
    "other.py": "NEVER = 1\n",
    "config.py": "DEFAULT = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(code, "PACKAGE", tmp_path)
    return tmp_path


def _digest() -> str:
    code.digest.cache_clear()
    return code.digest("star.stage")


@pytest.mark.parametrize(
    ("file", "old", "new", "counts"),
    [
        ("stage.py", "part.twice(x)", "part.twice(x + 1)", True),
        ("part.py", "2 * x", "2.0 * x", True),  # imported
        ("room/far.py", "3", "4", True),  # named in a string, as a door does
        ("part.py", "    return 2 * x", "    # twice\n    return (2 * x)", False),
        ("part.py", '"""Doc."""', '"""Another."""', False),
        ("other.py", "1", "2", False),  # not reached
        ("config.py", "1", "2", False),  # settings have keys of their own
    ],
)
def test_what_counts(package: Path, file: str, old: str, new: str, counts: bool):
    before = _digest()
    (package / file).write_text(FILES[file].replace(old, new))
    assert (_digest() != before) == counts


def test_every_code_that_took_part_is_kept(package: Path):
    folder, first = package / "run", _digest()
    code.record(folder, "star.stage", fresh=True)
    code.record(folder, "star.stage", fresh=False)
    assert (folder / "code.txt").read_text() == f"{first}\n"
    (package / "stage.py").write_text("run = 0\n")
    second = _digest()
    code.record(folder, "star.stage", fresh=False)
    assert (folder / "code.txt").read_text() == f"{first}\n{second}\n"
    code.record(folder, "star.stage", fresh=True)
    assert (folder / "code.txt").read_text() == f"{second}\n"


def test_stages_reach_what_they_compute_with():
    code.digest.cache_clear()
    assert code.digest("star.training.train") != code.digest("star.sampling.sample")
    assert len(code.digest("star.training.train")) == 12
