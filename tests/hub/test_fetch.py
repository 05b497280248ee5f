"""`star fetch` in processes of its own, against a hub on loopback."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hub_server import COMMIT, Hub
from PIL import Image

from star.config import load
from star.errors import InputError
from star.hub import fetch, lock

ROOT = Path(__file__).parents[2]
GATED, DECOY = "acme/gated", b"not to be fetched"
NOWHERE = "http://127.0.0.1:9"
LOCAL_BASE = ("policy.model=resources/miniature/base",)


@pytest.fixture(scope="module")
def hub(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub with a base and a PickScore model among files that nobody should fetch, and a gated copy of the base."""
    place = tmp_path_factory.mktemp("hub")
    base, score = place / "base", place / "score"
    shutil.copytree(random_base, base)
    shutil.copytree(ROOT / "resources/miniature/pickscore", score)
    for decoy in (
        "base/whole.safetensors",
        "base/text_encoder/pytorch_model.bin",
        "base/vae/diffusion_pytorch_model.fp16.safetensors",
    ):
        (place / decoy).write_bytes(DECOY)
    for decoy in ("score/open_clip_model.safetensors", "score/pytorch_model.bin", "score/README.md"):
        (place / decoy).write_bytes(DECOY)
    (place / "pickle").mkdir()
    (place / "pickle/pytorch_model.bin").write_bytes(DECOY)
    (place / "pickle/config.json").write_text("{}")
    (place / "unknown").mkdir()
    (place / "unknown/model_index.json").write_text('{"_class_name": "UnknownPipeline"}')
    with Hub().running() as server:
        server.folders = {"acme/base": base, GATED: base, "acme/score": score}
        server.folders |= {f"acme/{name}": place / name for name in ("pickle", "unknown")}
        server.gated = {GATED}
        yield server


class Machine:
    """A machine with an empty hub cache and a configuration that takes base and PickScore from the hub, unpinned."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.lock = folder, folder / "config/weights.lock.json"
        self.environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
        score = {"model": "acme/score", "revision": None, "processor": "acme/score", "processor_revision": None}
        quick = str(ROOT / "config/miniature-quick.yaml")
        config = {"extends": quick, "policy": {"model": "acme/base"}, "scorers": {"pickscore": score}}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))
        (folder / "resources").symlink_to(ROOT / "resources")

    def command(self, *arguments: str) -> dict:
        """A python command of this machine, for subprocess."""
        return {"args": [sys.executable, *arguments], "cwd": self.folder, "text": True}

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(**self.command(*arguments), env=self.environment | environment, capture_output=True)

    def fetch(self, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
        options = [option for override in overrides for option in ("--set", override)]
        return self.python("-m", "star.cli", "fetch", "--config", str(self.config), *options, **environment)


OFFLINE = """
import sys
from pathlib import Path
from star import cli
from star.scoring import golden

known = golden.preferences("resources/miniature/pickscore")
golden.preferences = lambda model: known  # the built-in pictures are for PickScore itself
config = ["--config", "config.yaml"]
assert cli.main(["fetch", *config]) == 0
print("prompts")
assert cli.main(["prompts", *config, "--task", "preference", "--split", "test", "--out", "all.jsonl"]) == 0
Path("two.jsonl").write_text("".join(Path("all.jsonl").read_text().splitlines(keepends=True)[:2]))
assert cli.main(["prompts", *config, "--show-core", "two.jsonl"]) == 0
for base in ("acme/base", sys.argv[1]):
    options = [*config, "--set", f"policy.model={base}", "--prompts", "two.jsonl", "--images", "1"]
    assert cli.main(["sample", *options, "--out", Path(base).name]) == 0
assert cli.main(["score", *config, "--scorer", "pickscore", "--images", "base", "--out", "scores.jsonl"]) == 0
"""


def _served(folder: Path) -> dict[str, str]:
    """SHA-256 of the files of a folder that are no decoys."""
    files = {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    return {path: hashlib.sha256(content).hexdigest() for path, content in files.items() if content != DECOY}


def test_from_an_empty_lock_to_an_offline_run(hub: Hub, random_base: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path, hub.url)
    done = machine.fetch()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    keys = ["policy.model", "scorers.pickscore.model", "scorers.pickscore.processor"]
    assert [line.split(":")[0] for line in lines] == keys and f"acme/base@{COMMIT}" in lines[0]

    # Nothing else was fetched, and what was is locked.
    cached = [f for f in (tmp_path / "cache/hub").rglob("snapshots/**/*") if f.is_file()]
    assert len(cached) > 10 and not any(f.read_bytes() == DECOY for f in cached)
    lock = json.loads(machine.lock.read_text())
    assert lock["commits"] == {"acme/base": COMMIT, "acme/score": COMMIT}
    for name in ("acme/base", "acme/score"):
        locked, served = lock["files"][f"{name}@{COMMIT}"], _served(hub.folders[name])
        assert locked.items() <= served.items()
        weights = {path for path in served if path.endswith((".safetensors", "config.json", "tokenizer.json"))}
        assert weights <= locked.keys()

    # Offline it runs, to the pictures of a folder with the same weights.
    nowhere = {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "1"}
    ran = machine.python("-c", OFFLINE, str(random_base), **nowhere)
    assert ran.returncode == 0 and ran.stdout.startswith(f"{done.stdout}prompts"), ran.stderr
    pictures = [
        [np.asarray(Image.open(picture)) for picture in sorted((tmp_path / folder).rglob("*.png"))]
        for folder in ("base", random_base.name)
    ]
    assert len(pictures[0]) == 2 and all(map(np.array_equal, *pictures))
    assert len((tmp_path / "scores.jsonl").read_text().splitlines()) == 2

    next(f for f in cached if f.name == "model.safetensors" and "acme--score" in str(f)).unlink()
    incomplete = machine.fetch(*LOCAL_BASE, **nowhere)
    assert incomplete.returncode == 2 and "acme/score is not whole in the hub cache" in incomplete.stderr


def test_two_fetches_at_once_keep_each_other_s_lines(hub: Hub, tmp_path: Path) -> None:
    """From one folder into two caches, each of another part of the configuration."""
    machine = Machine(tmp_path, hub.url)
    local = "resources/miniature/pickscore"
    parts = (LOCAL_BASE, (f"scorers.pickscore.model={local}", f"scorers.pickscore.processor={local}"))
    running = []
    for number, overrides in enumerate(parts):
        options = [option for override in overrides for option in ("--set", override)]
        command = machine.command("-m", "star.cli", "fetch", "--config", "config.yaml", *options)
        environment = machine.environment | {"HF_HOME": str(tmp_path / f"cache{number}")}
        running.append(subprocess.Popen(**command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    for process in running:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    lock = json.loads(machine.lock.read_text())
    assert lock["commits"].keys() == {"acme/base", "acme/score"}
    assert lock["files"].keys() == {f"acme/base@{COMMIT}", f"acme/score@{COMMIT}"}


def test_snakemake_locks_commits_by_itself(hub: Hub, tmp_path: Path) -> None:
    """Their files follow with the rule fetch, so that no step is left to a person."""
    machine = Machine(tmp_path, hub.url)
    dry_run = ("-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", "config.yaml", "--dry-run")
    unreached = machine.python(*dry_run, HF_ENDPOINT=NOWHERE)
    assert unreached.returncode == 1 and not machine.lock.exists()
    assert "policy.revision: acme/base has no commit in config/weights.lock.json" in unreached.stdout + unreached.stderr
    planned = machine.python(*dry_run)
    assert planned.returncode == 0, planned.stderr
    assert json.loads(machine.lock.read_text())["commits"] == {"acme/base": COMMIT, "acme/score": COMMIT}
    assert machine.python(*dry_run, HF_ENDPOINT=NOWHERE).returncode == 0


SEVERAL = """
import json, sys
from star import cli

for overrides in json.loads(sys.argv[2]):
    code = cli.main(["fetch", "--config", sys.argv[1], *(o for override in overrides for o in ("--set", override))])
    print(f"exit code {code}", file=sys.stderr)
"""


def test_what_cannot_be_had_is_one_line(hub: Hub, tmp_path: Path) -> None:
    told = {
        (f"policy.model={GATED}",): f"acme/gated is gated; accept its licence at {hub.url}/acme/gated, and with",
        ("policy.model=acme/nothing",): "acme/nothing is not on the hub, or private; correct the name",
        ("policy.revision=main",): "policy.revision: 'main' of acme/base can come to mean something else; give a commit",
        ("policy.model=acme/unknown",): "acme/unknown cannot be fetched: module diffusers has no attribute UnknownPipeline",
        (*LOCAL_BASE, f"scorers.pickscore.revision={'f' * 40}"): "acme/score has no commit ffff",
        (*LOCAL_BASE, "scorers.pickscore.model=acme/pickle"): "acme/pickle has no safetensors weights",
    }
    machine = Machine(tmp_path, hub.url)
    done = machine.python("-c", SEVERAL, str(machine.config), json.dumps(list(told)))
    errors = [line for line in done.stderr.splitlines() if ": fetching acme/" not in line]
    assert errors[1::2] == ["exit code 2"] * len(told), done.stderr
    for error, words in zip(errors[::2], told.values(), strict=True):
        assert error.startswith("star fetch: ") and words in error


def test_a_configuration_on_this_disk_needs_nothing_and_the_paper_s_needs_these(hub_cache: Path) -> None:
    assert fetch.needs(load(ROOT / "config/miniature.yaml")) == []
    lock.merge(lock.Lock(commits={"facebook/mask2former-swin-small-coco-instance": COMMIT}))
    lines = fetch.needs(load(ROOT / "config/sd35-medium.yaml"))
    assert f"facebook/mask2former-swin-small-coco-instance@{COMMIT}" in lines
    assert {line.split("@")[0] for line in lines} == {
        "stabilityai/stable-diffusion-3.5-medium",
        "yuvalkirstain/PickScore_v1",
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "facebook/mask2former-swin-small-coco-instance",
        "openai/clip-vit-large-patch14",
        *(f"dataset/{task}/{split}.txt" for task in ("ocr", "pickscore") for split in ("train", "test")),
        "easyocr",
    }


def test_prompt_files_of_a_mirror_are_checked_before_anything_is_fetched(tmp_path: Path) -> None:
    config = load(ROOT / "config/sd35-medium.yaml", [f"prompts.mirror={tmp_path}", f"scorers.geneval.revision={COMMIT}"])
    with pytest.raises(InputError, match=re.escape("dataset/ocr/train.txt")):
        next(fetch.fetch(config))


LARGE_BASES = ("sd35-large", "flux1-dev", "qwen-image", "z-image")


@pytest.mark.parametrize("name", LARGE_BASES)
def test_a_large_base_is_planned_by_snakemake_once_it_is_locked(name: str, tmp_path: Path) -> None:
    """From the lock alone, without a network, and without its weights; unlocked, the line names the remedy."""
    machine, file = Machine(tmp_path, NOWHERE), ROOT / f"config/{name}.yaml"
    dry_run = ("-m", "snakemake", "--snakefile", str(ROOT / "Snakefile"), "--configfile", str(file), "--dry-run")
    unlocked = machine.python(*dry_run)
    assert unlocked.returncode == 1 and "has no commit in config/weights.lock.json" in unlocked.stdout + unlocked.stderr
    unpinned = (load(file).policy.model, "facebook/mask2former-swin-small-coco-instance")
    machine.lock.parent.mkdir(exist_ok=True)
    machine.lock.write_text(json.dumps({"commits": dict.fromkeys(unpinned, COMMIT)}))
    planned = machine.python(*dry_run)
    assert planned.returncode == 0, planned.stderr
    assert "train" in planned.stdout + planned.stderr
