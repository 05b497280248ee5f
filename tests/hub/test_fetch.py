"""`star fetch` in processes of its own, against a hub on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from hub_server import COMMIT, Hub

from star.config import load
from star.errors import InputError
from star.hub import fetch

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
    with Hub().running() as server:
        server.folders = {"acme/base": base, GATED: base, "acme/score": score, "acme/pickle": place / "pickle"}
        server.gated = {GATED}
        yield server


class Machine:
    """A machine with an empty hub cache and a configuration that takes base and PickScore from the hub."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        self.environment = os.environ | {"HF_HOME": str(folder / "cache"), "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
        config = {"extends": str(ROOT / "config/miniature-quick.yaml")}
        config["policy"] = {"model": "acme/base", "revision": COMMIT}
        repository = {"model": "acme/score", "revision": COMMIT}
        config["scorers"] = {"pickscore": repository | {"processor": "acme/score", "processor_revision": COMMIT}}
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(config))

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, *arguments], env=self.environment | environment, capture_output=True, text=True, cwd=ROOT
        )

    def fetch(self, *overrides: str, **environment: str) -> subprocess.CompletedProcess:
        options = [option for override in overrides for option in ("--set", override)]
        return self.python("-m", "star.cli", "fetch", "--config", str(self.config), *options, **environment)


OFFLINE = """
import sys
from pathlib import Path
from star import cli
from star.config import load
from star.models.sd3 import load_pipeline
from star.scoring import golden
from star.scoring.pickscore import PickScorer

known = golden.preferences("resources/miniature/pickscore")
golden.preferences = lambda model: known  # the built-in pictures are for PickScore itself
cli.main(["fetch", "--config", sys.argv[1]])
config = load(Path(sys.argv[1]))
load_pipeline(config.policy), PickScorer(config.scorers)
"""


def test_what_was_fetched_loads_without_a_network_and_nothing_else_was_fetched(hub: Hub, tmp_path: Path) -> None:
    machine = Machine(tmp_path, hub.url)
    done = machine.fetch()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    keys = ["policy.model", "scorers.pickscore.model", "scorers.pickscore.processor"]
    assert [line.split(":")[0] for line in lines] == keys and f"acme/base@{COMMIT}" in lines[0]
    cached = [f for f in (tmp_path / "cache/hub").rglob("snapshots/**/*") if f.is_file()]
    assert len(cached) > 10 and not any(f.read_bytes() == DECOY for f in cached)

    nowhere = {"HF_ENDPOINT": NOWHERE, "HF_HUB_OFFLINE": "1"}
    loaded = machine.python("-c", OFFLINE, str(machine.config), **nowhere)
    assert loaded.returncode == 0 and loaded.stdout == done.stdout, loaded.stderr

    next(f for f in cached if f.name == "model.safetensors" and "acme--score" in str(f)).unlink()
    incomplete = machine.fetch(*LOCAL_BASE, **nowhere)
    assert incomplete.returncode == 2 and "acme/score is not whole in the hub cache" in incomplete.stderr


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
        ("policy.revision=null",): "policy.revision: pin the commit of acme/base (40 hex digits)",
        (*LOCAL_BASE, f"scorers.pickscore.revision={'f' * 40}"): "acme/score has no commit ffff",
        (*LOCAL_BASE, "scorers.pickscore.model=acme/pickle"): "acme/pickle has no safetensors weights",
    }
    machine = Machine(tmp_path, hub.url)
    done = machine.python("-c", SEVERAL, str(machine.config), json.dumps(list(told)))
    errors = [line for line in done.stderr.splitlines() if ": fetching acme/" not in line]
    assert errors[1::2] == ["exit code 2"] * len(told), done.stderr
    for error, words in zip(errors[::2], told.values(), strict=True):
        assert error.startswith("star fetch: ") and words in error


def test_a_configuration_on_this_disk_needs_nothing_and_the_paper_s_needs_these() -> None:
    assert fetch.needs(load(ROOT / "config/miniature.yaml")) == []
    needed = {line.split("@")[0] for line in fetch.needs(load(ROOT / "config/sd35-medium.yaml"))}
    assert needed == {
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


def test_an_unpinned_repository_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(InputError, match=r"scorers\.geneval\.revision: pin the commit of facebook/mask2former"):
        next(fetch.fetch(load(ROOT / "config/sd35-medium.yaml")))
