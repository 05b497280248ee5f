"""The lock of weights, against a hub on loopback: what it holds, what it refuses, and what wins over it."""

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hub_server import COMMIT, Hub

from star import cli
from star.config import load
from star.errors import InputError
from star.hub import fetch, lock
from star.hub.check import Source

ROOT = Path(__file__).parents[2]
MOVED = "b" * 40
CLIP = Source("scorers.pickscore.model", "some/clip", None, ("model", "tokenizer", "images"))


@pytest.fixture
def config(hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that takes base and PickScore from the hub, unpinned, in an empty folder."""
    clip = {"model": "some/clip", "revision": None, "processor": "some/clip", "processor_revision": None}
    quick = str(ROOT / "config/miniature-quick.yaml")
    document = {"extends": quick, "policy": {"model": "some/pipeline"}, "scorers": {"pickscore": clip}}
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    monkeypatch.chdir(tmp_path)
    return file


def _fetch(config: Path, *overrides: str) -> list[str]:
    return list(fetch.fetch(load(config, list(overrides))))


def _sample(config: Path, *overrides: str) -> int:
    """The exit code of sampling one prompt into pictures/."""
    record = {"id": "0", "task": "geneval", "tag": "free", "prompt": "a red ring", "core": [], "metadata": {}}
    Path("prompts.jsonl").write_text(json.dumps(record) + "\n")
    options = [f"--set={override}" for override in overrides]
    return cli.main(["sample", "--config", str(config), "--prompts=prompts.jsonl", "--images=1", "--out=pictures", *options])


def _snapshot(cache: Path, name: str) -> Path:
    return cache / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


def _changed(file: Path) -> None:
    """Flip the last bit of a file."""
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("path", ["transformer/diffusion_pytorch_model.safetensors", "tokenizer_3/tokenizer_config.json"])
def test_a_changed_file_is_refused_before_work(path: str, config: Path, hub_cache: Path, capsys: pytest.CaptureFixture) -> None:
    _fetch(config)
    file = _snapshot(hub_cache, "some/pipeline") / path
    _changed(file)
    assert _sample(config) == 2 and not Path("pictures").exists()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"star sample: policy.model: {file} is not the file that") and "locked" in error
    with pytest.raises(InputError, match=rf"remove {file.resolve()} and run `star fetch"):
        _fetch(config)

    # The remedy is one.
    file.resolve().unlink()
    _fetch(config)
    assert _sample(config) == 0


def test_a_file_that_the_lock_does_not_have_is_refused(config: Path, hub_cache: Path) -> None:
    _fetch(config)
    stranger = _snapshot(hub_cache, "some/clip") / "added_tokens.json"
    stranger.write_text('{"red": 7}')
    with pytest.raises(InputError, match=rf"scorers\.pickscore\.model: .* does not have {stranger}; run `star fetch"):
        lock.check(CLIP, COMMIT)
    with pytest.raises(InputError, match=rf"{stranger} is not the file that the hub has; remove"):
        _fetch(config)


def test_a_broken_download_is_never_locked(config: Path, hub_cache: Path) -> None:
    _fetch(config)
    before = lock.FILE.read_bytes()
    lock.FILE.unlink()
    weights, vocabulary = (_snapshot(hub_cache, "some/clip") / name for name in ("model.safetensors", "tokenizer.json"))
    for file in (weights, vocabulary):
        _changed(file)
        with pytest.raises(InputError, match=rf"{file} is not the file that the hub has"):
            _fetch(config)
        file.resolve().unlink()
        _fetch(config)
        assert lock.FILE.read_bytes() == before
        lock.FILE.unlink()


def test_a_branch_that_moved_changes_nothing(
    config: Path, hub_server: Hub, hub_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = _fetch(config)
    later = tmp_path / "later"
    shutil.copytree(hub_server.folders["some/pipeline"], later)
    _changed(later / "transformer/diffusion_pytorch_model.safetensors")
    monkeypatch.setattr(hub_server, "moved", {"some/pipeline": (MOVED, later)})
    assert _fetch(config) == lines
    shutil.rmtree(hub_cache)
    assert _fetch(config) == lines and not list(hub_cache.rglob(MOVED))

    # Without the lock the branch is followed, and other weights are another key.
    held = lock.FILE.read_text()
    lock.FILE.unlink()
    assert f"some/pipeline@{MOVED}" in _fetch(config)[0]
    assert lock.commit("some/pipeline", None) == MOVED
    lock.FILE.write_text(held)
    assert lock.commit("some/pipeline", None) == COMMIT


def test_a_pinned_revision_wins(config: Path, hub_server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    later = tmp_path / "later"
    shutil.copytree(hub_server.folders["some/pipeline"], later)
    monkeypatch.setattr(hub_server, "moved", {"some/pipeline": (MOVED, later)})
    _fetch(config)
    assert lock.commit("some/pipeline", None) == MOVED
    pinned = f"policy.revision={COMMIT}"
    assert f"some/pipeline@{COMMIT}" in _fetch(config, pinned)[0]
    assert lock.commit("some/pipeline", COMMIT) == COMMIT and lock.commit("some/pipeline", None) == MOVED
    assert {f"some/pipeline@{COMMIT}", f"some/pipeline@{MOVED}"} <= lock.read().files.keys()
    hub_server.asked.clear()
    assert _sample(config, pinned) == 0 and hub_server.asked == []


def test_what_is_neither_pinned_nor_locked_is_refused_with_the_remedy(
    config: Path, hub_server: Hub, capsys: pytest.CaptureFixture
) -> None:
    hub_server.asked.clear()
    assert _sample(config) == 2 and hub_server.asked == []
    error = capsys.readouterr().err.strip()
    assert error.startswith("star sample: policy.revision: some/pipeline has no commit") and error.endswith(
        "run `star fetch --config ...` once, with a network"
    )


def test_a_lock_that_cannot_be_written_is_said_before_work(config: Path, hub_server: Hub) -> None:
    lock.FILE.parent.write_text("a file where the folder should be")
    hub_server.asked.clear()
    for overrides in ((), (f"policy.revision={COMMIT}", "scorers.pickscore.model=resources", "scorers.pickscore.processor=.")):
        with pytest.raises(InputError, match=r"weights\.lock\.json: cannot be written \("):
            _fetch(config, *overrides)
    assert hub_server.asked == []


@pytest.mark.parametrize(
    ("content", "says"),
    [("<<<<<<< ours\n", "Invalid JSON"), ('{"commits": {"some/clip": "main"}}', r"commits\.some/clip: String should match")],
)
def test_a_lock_that_is_none_is_named(content: str, says: str, hub_cache: Path) -> None:
    lock.FILE.parent.mkdir()
    lock.FILE.write_text(content)
    with pytest.raises(InputError, match=rf"weights\.lock\.json: .*{says}.*take it back from git"):
        lock.commit("some/clip", None)


MERGE = """
import sys
from pathlib import Path
from star.hub import lock

lock.FILE = Path(sys.argv[1])
for number in range(10):
    name = f"some/{sys.argv[2]}-{number}"
    lock.merge(lock.Lock(commits={name: "a" * 40, "some/shared": sys.argv[2] * 40}))
"""


def test_no_line_is_lost_when_four_write_at_once(hub_cache: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", MERGE, str(lock.FILE), digit], cwd=ROOT) for digit in "0123"]
    assert [process.wait() for process in running] == [0] * 4
    commits = lock.read().commits
    assert commits.keys() == {"some/shared", *(f"some/{digit}-{number}" for digit in "0123" for number in range(10))}
    assert commits["some/shared"] in [digit * 40 for digit in "0123"]


def test_a_file_is_hashed_again_only_when_it_was_touched(
    config: Path, hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fetch(config)
    hashed, digest = [], hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: hashed.append(file.name) or digest(file, name))
    lock.check(CLIP, COMMIT)
    assert hashed == []
    weights = _snapshot(hub_cache, "some/clip") / "model.safetensors"
    weights.touch()
    lock.check(CLIP, COMMIT)
    assert hashed == [str(weights)]
    shutil.copy(hub_cache / "models--some--clip" / lock.CHECKED, "kept")
    _fetch(config)  # keeps the new time
    hashed.clear()
    lock.check(CLIP, COMMIT)
    assert hashed == []
