"""Weights from the hub: a server on this machine in its place, caches as huggingface_hub writes them, and no hub at all."""

import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_server import COMMIT, Hub, point_to
from huggingface_hub import constants, snapshot_download
from PIL import Image
from records import asked
from scorer_settings import scorers

from star import cli
from star.config import PolicySettings, Scorers
from star.errors import InputError
from star.hub import check as hub
from star.models.load import load_pipeline
from star.scoring.scorer import make_scorer

PICKSCORE = Path("resources/miniature/pickscore")
ABSENT = "0" * 40


def _scorers(revision: str | None = COMMIT, **changes: str) -> Scorers:
    names = {"pickscore_model": "some/clip", "pickscore_processor": "some/clip", "device": "cpu"} | changes
    return scorers(**names, pickscore_revision=revision, pickscore_processor_revision=revision)


def _policy(revision: str | None = COMMIT) -> PolicySettings:
    return PolicySettings(model="some/pipeline", revision=revision, resolution=64, guidance=1.0, device="cpu")


def _golden_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """The built-in pictures are for PickScore itself; here the miniature's model comes from the hub."""
    from star.scoring import pickscore

    of = pickscore.golden.preferences
    monkeypatch.setattr(pickscore.golden, "preferences", lambda model: of(str(PICKSCORE)))


def test_scorers_come_from_the_hub_once_and_then_from_the_cache(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    _golden_known(monkeypatch)
    image, record = np.asarray(Image.open(PICKSCORE / "golden/0.png")), asked("a photo of two circles")
    fetched = make_scorer("pickscore", _scorers())
    assert any(asked.startswith("GET") and "model.safetensors" in asked for asked in hub_server.asked)
    hub_server.asked.clear()
    cached = make_scorer("pickscore", _scorers())
    assert hub_server.asked == []
    local = make_scorer("pickscore", scorers(pickscore_model=str(PICKSCORE), pickscore_processor=str(PICKSCORE), device="cpu"))
    assert fetched([image], [record]) == cached([image], [record]) == local([image], [record])
    assert fetched.fingerprint == cached.fingerprint and f"processor=some/clip@{COMMIT[:12]}" in cached.fingerprint


def test_a_cache_without_tokenizer_is_completed(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers would take an empty tokenizer from it."""
    _golden_known(monkeypatch)
    snapshot_download("some/clip", revision=COMMIT, ignore_patterns=["tokenizer*"])
    hub_server.asked.clear()
    make_scorer("pickscore", _scorers())
    assert any(asked.startswith("GET") and asked.endswith("/tokenizer.json") for asked in hub_server.asked)
    assert not any(asked.startswith("GET") and "model.safetensors" in asked for asked in hub_server.asked)


def test_the_pipeline_comes_from_the_hub_once_and_then_from_the_cache(
    hub_server: Hub, random_base: Path, hub_cache: Path
) -> None:
    load_pipeline(_policy())
    hub_server.asked.clear()
    cached = load_pipeline(_policy())
    assert hub_server.asked == []
    local = load_pipeline(PolicySettings(model=str(random_base), resolution=64, guidance=1.0))
    pairs = zip(cached.transformer.parameters(), local.transformer.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    (weights,) = hub_cache.glob("models--some--pipeline/snapshots/*/vae/diffusion_pytorch_model.safetensors")
    weights.unlink()
    load_pipeline(_policy())  # completed
    assert weights.exists() and any("vae" in asked for asked in hub_server.asked)


def test_a_pipeline_without_tokenizer_is_refused(random_base: Path, tmp_path: Path) -> None:
    for file in random_base.rglob("*"):
        if file.is_file() and file.parent.name != "tokenizer_3":
            copy = tmp_path / "base" / file.relative_to(random_base)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.hardlink_to(file)
    with pytest.raises(InputError, match=r"policy\.model: .*/base lacks a tokenizer"):
        load_pipeline(PolicySettings(model=str(tmp_path / "base"), resolution=64, guidance=1.0))


@pytest.mark.parametrize("token", [None, "refused", "granted"])
def test_the_licence_gate(token: str | None, hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_server.gated = {"some/pipeline"}
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    if token == "granted":
        assert load_pipeline(_policy()).text_encoder is not None
        return
    login = "with `hf auth login` log in to" if token is None else "the token of this machine must belong to"
    says = (
        f"policy.model: some/pipeline is gated; accept its licence at {hub_server.url}/some/pipeline, and {login} the account"
    )
    with pytest.raises(InputError, match=says):
        load_pipeline(_policy())
    assert hub_server.asked == [f"HEAD /some/pipeline/resolve/{COMMIT}/model_index.json"]


@pytest.mark.parametrize(
    ("name", "revision", "says"),
    [
        ("some/clip", ABSENT, f"some/clip has no commit {ABSENT}; correct the revision, or set it to null"),
        ("no/such", COMMIT, "no/such is not on the hub, or private"),
        (
            "some/clip",
            None,
            r"scorers\.pickscore\.revision: some/clip has no commit, neither here nor in .*; run `star fetch --config",
        ),
        ("some/clip", "main", r"scorers\.pickscore\.revision: 'main' of some/clip can come to mean something else"),
    ],
)
def test_what_is_not_on_the_hub(name: str, revision: str | None, says: str, hub_server: Hub) -> None:
    with pytest.raises(InputError, match=says):
        make_scorer("pickscore", _scorers(revision, pickscore_model=name))
    assert len(hub_server.asked) == (revision not in (None, "main"))


def test_detector_and_colors_are_pinned_too(hub_server: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scorers\.geneval\.revision: facebook/mask2former-swin-small-coco-instance has no"):
        make_scorer("geneval", Scorers())
    assert hub_server.asked == []


def test_a_hub_in_trouble_is_left_to_the_loader(hub_server: Hub) -> None:
    hub_server.broken = True
    answer = hub.ask("some/clip", COMMIT, "config.json")
    assert answer.response.status_code == 500 and hub.refusal("some/clip", COMMIT, answer) is None


def test_a_hub_that_says_nothing_is_asked_once(silent_hub: list, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(InputError, match=r"policy\.model: some/pipeline is not whole in the hub cache .*does not answer"):
        load_pipeline(_policy())
    assert len(silent_hub) == 1
    with pytest.raises(
        InputError, match=r"scorers\.pickscore\.model: some/clip is not whole .*`hf download some/clip --revision"
    ):
        make_scorer("pickscore", _scorers())
    assert len(silent_hub) == 2
    pictures = ["--images", str(PICKSCORE / "golden"), "--prompts", str(PICKSCORE / "golden/captions.jsonl"), "--out", "x"]
    settings = ("pickscore.model=some/clip", f"pickscore.revision={COMMIT}")
    assert cli.main(["score", "--scorer", "pickscore", *pictures, *(f"--set=scorers.{s}" for s in settings)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("star score: scorers.pickscore.model: some/clip is not whole") and len(silent_hub) == 3


def test_a_closed_port_and_offline_mode_say_so(hub_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    point_to(f"http://127.0.0.1:{port}", monkeypatch)
    with pytest.raises(InputError, match=rf"http://127\.0\.0\.1:{port} does not answer \(.*refused\); connect this machine"):
        load_pipeline(_policy())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match=r"does not answer \(.*HF_HUB_OFFLINE"):
        load_pipeline(_policy())
