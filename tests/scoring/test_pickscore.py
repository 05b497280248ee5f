"""PickScore against CLIPModel's own forward, and the embedded preference model on held-out pairs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from preference_models import write_golden
from records import asked
from scorer_settings import scorers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer

from star.errors import InputError
from star.pretraining.base import clip_tokenizer
from star.pretraining.preference import DAMAGES, Recipe, claims, damage, draw_pairs, facts, train
from star.scoring import clip, golden, sources
from star.scoring.scorer import make_scorer
from star.worlds.miniature.captions import TAGS, caption, split
from star.worlds.miniature.scenes import compose, render

EMBEDDED = "resources/miniature/pickscore"
TOWERS = ("get_text_features", "get_image_features")  # of transformers' CLIP


def _scorer(folder: str | Path) -> object:
    return make_scorer("pickscore", scorers(pickscore_model=str(folder), pickscore_processor=str(folder)))


def _rows(inputs: dict) -> int:
    return len(next(iter(inputs.values())))


def _counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What grows by (tower, rows) at every call of one of CLIP's towers."""
    calls = []
    for tower in TOWERS:

        def count(self: CLIPModel, t: str = tower, true: object = getattr(CLIPModel, tower), **inputs: object) -> object:
            calls.append((t, _rows(inputs)))
            return true(self, **inputs)

        monkeypatch.setattr(CLIPModel, tower, count)
    return calls


def test_scores_are_those_of_clips_own_forward(random_folder: Path) -> None:
    rng = np.random.default_rng(0)
    images = list(rng.integers(0, 256, (5, 64, 64, 3)).astype(np.uint8))
    prompts = ["a red circle", "two rings", "a red circle", "a cross above a ring", 'a sign that says "HAT"']
    tokens = CLIPTokenizer.from_pretrained(random_folder)(prompts, padding="max_length", truncation=True, return_tensors="pt")
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = CLIPModel.from_pretrained(random_folder)(**tokens, pixel_values=pixels).logits_per_image.diagonal()
    scored = _scorer(random_folder)(images, [asked(p) for p in prompts])
    assert np.allclose([s.score for s in scored], expected.numpy(), atol=1e-4)
    assert np.allclose([s.reward * 26 for s in scored], expected.numpy(), atol=1e-4)
    assert len(set(expected.tolist())) == 5


def test_both_output_conventions_of_transformers(random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, image, record = _scorer(random_folder), np.zeros((64, 64, 3), np.uint8), asked("a red circle")
    expected = scorer([image], [record])
    for name in TOWERS:
        method = getattr(CLIPModel, name)
        monkeypatch.setattr(CLIPModel, name, lambda self, f=method, **inputs: f(self, **inputs).pooler_output)
    assert scorer([image], [record]) == expected


def test_a_batch_is_cut_without_a_trace(random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    images = list(rng.integers(0, 256, (40, 64, 64, 3)).astype(np.uint8))
    words = ("a red circle", "two rings", "a red circle", "a cross", "a ring", "a board", "a sign")
    records = [asked(f"{words[i % 7]} number {i % 37}") for i in range(40)]
    scorer, sizes = _scorer(random_folder), _counted(monkeypatch)
    together = [s.score for s in scorer(images, records)]
    assert {tower for tower, _ in sizes} == set(TOWERS) and len(sizes) >= 4 and all(size < 40 for _, size in sizes)
    alone = [scorer([image], [record])[0].score for image, record in zip(images[::3], records[::3], strict=True)]
    assert np.allclose(together[::3], alone, atol=1e-4)
    assert scorer.compare(scorer.embed(images), records)[6].score == pytest.approx(together[6], abs=1e-4)
    assert scorer([], []) == [] and scorer.embed([]).shape == (0, CLIPConfig.from_pretrained(random_folder).projection_dim)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.25), ("float16", 0.05)])
def test_dtype_is_a_setting(dtype: str, tolerance: float, random_folder: Path) -> None:
    rng = np.random.default_rng(2)
    images = list(rng.integers(0, 256, (4, 64, 64, 3)).astype(np.uint8))
    records = [asked(p) for p in ("a red circle", "two rings", "a cross", "a ring")]
    exact = [s.score for s in _scorer(random_folder)(images, records)]
    folder = str(random_folder)
    settings = {"pickscore_model": folder, "pickscore_processor": folder, "device": "cpu"}
    rounding = scorers(**settings, pickscore_precision=dtype)
    scorer = make_scorer("pickscore", rounding)
    assert scorer.fingerprint.endswith(f"cpu {dtype}")
    model, processor = sources.pickscore_model(rounding), sources.pickscore_processor(rounding)
    scale = clip.Clip(model, processor, device="cpu", precision=dtype).scale
    assert scale == pytest.approx(13.0)  # not that of a rounded logarithm
    rounded = scorer(images, records)
    assert np.allclose([s.score for s in rounded], exact, atol=tolerance)
    assert [s.score for s in rounded] != exact


def test_a_score_that_is_no_number_is_an_error(random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = _scorer(random_folder)
    monkeypatch.setattr(CLIPModel, "get_image_features", lambda self, pixel_values: torch.full((1, 64), float("nan")))
    with pytest.raises(RuntimeError, match="not finite"):
        scorer([np.zeros((64, 64, 3), np.uint8)], [asked("a red circle")])


def test_hub_repositories_are_pinned_and_devices_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for changed, words in (
        ({"pickscore_revision": None}, r"pickscore\.revision: some/clip has no commit"),
        (
            {"pickscore_model": EMBEDDED, "pickscore_processor_revision": None},
            r"pickscore\.processor_revision: .* has no commit",
        ),
        ({"pickscore_model": EMBEDDED, "device": "cuda"}, "device: cuda, but torch sees no GPU"),
    ):
        settings = {"pickscore_model": "some/clip", "pickscore_processor": "some/processor"} | changed
        with pytest.raises(InputError, match=rf"scorers\.{words}"):
            make_scorer("pickscore", scorers(**settings))
    revisions = (scorers().pickscore.revision, scorers().pickscore.processor_revision)
    assert all(re.fullmatch("[0-9a-f]{40}", revision) for revision in revisions)


def test_golden_pictures_stop_a_model_that_is_wrong(random_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(random_folder, folder)
    known = json.loads((folder / "golden/captions.jsonl").read_text())
    write_golden(folder, known | {"prompt": known["worse"], "worse": known["prompt"]})
    with pytest.raises(
        RuntimeError, match=f"wrong on a golden picture: '{known['worse']}' fits it and scores .*@[0-9a-f]{{12}}"
    ):
        _scorer(folder)
    write_golden(folder, known, {"file": "1.png", "prompt": "two rings"})
    with pytest.raises(InputError, match=r"golden/captions\.jsonl:2: no `worse`"):
        _scorer(folder)
    (folder / "golden/0.png").unlink()
    with pytest.raises(InputError, match=r"golden/captions\.jsonl:1: `file` names"):
        _scorer(folder)


@pytest.mark.parametrize("blind", TOWERS)
def test_no_blind_model_passes_the_built_in_pictures(blind: str, random_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever caption a model without eyes prefers, one of the two pictures has the other; without words it prefers none."""
    monkeypatch.setattr(golden, "preferences", lambda _: golden.built_in())
    same = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(CLIPModel, blind, lambda self, **inputs: same.expand(_rows(inputs), -1))
    with pytest.raises(RuntimeError, match="wrong on a golden picture"):
        _scorer(random_folder)


def test_the_guard_costs_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = _counted(monkeypatch)
    _scorer(EMBEDDED)
    assert calls == [("get_image_features", 8), ("get_text_features", 4)]


def test_missing_weights_are_bad_input(random_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scorers\.pickscore\.model.*nowhere"):
        _scorer(tmp_path / "nowhere")
    for name in ("config.json", "processor_config.json"):
        (tmp_path / name).write_bytes((random_folder / name).read_bytes())
    with pytest.raises(InputError, match=r"scorers\.pickscore\.model"):
        _scorer(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((random_folder / "model.safetensors").read_bytes())
    with pytest.raises(InputError, match=r"scorers\.pickscore\.processor"):
        _scorer(tmp_path)
    with pytest.raises(InputError, match="empty"):
        _scorer(random_folder)([np.zeros((64, 64, 3), np.uint8)], [asked(" ")])


def test_folder_loads_as_a_plain_clip_processor() -> None:
    processor = CLIPProcessor.from_pretrained(EMBEDDED)
    inputs = processor(text=["a red circle"], images=[np.full((64, 64, 3), 255, np.uint8)], return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 64, 64) and inputs["pixel_values"].max() == 1
    assert sum(f.stat().st_size for f in Path(EMBEDDED).iterdir()) < 5e6


@pytest.mark.parametrize("tags", [TAGS, ("free",)])
def test_embedded_model_ranks_held_out_pairs(tags: tuple) -> None:
    rng = np.random.default_rng(2026)
    n = 300
    pictures, texts, *_ = draw_pairs(n, True, dict.fromkeys(tags, 1 / len(tags)), rng)
    scorer = _scorer(EMBEDDED)

    def scores(images: list, prompts: list[str]) -> np.ndarray:
        return np.array([s.score for s in scorer(images, [asked(p) for p in prompts])])

    right, wrong = ([t[i] for t in texts] for i in (0, 1))
    damaged = [damage(p, DAMAGES[i % len(DAMAGES)], rng.uniform(), rng) for i, p in enumerate(pictures[:, 0])]
    matching = scores(pictures[:, 0], right)
    assert (matching > scores(pictures[:, 0], wrong)).mean() >= 0.9
    assert (matching > scores(pictures[:, 1], right)).mean() >= 0.9
    assert (matching > scores(damaged, right)).mean() >= 0.9
    assert 15 < matching.mean() < 26


def test_training_report() -> None:
    report = json.loads(Path(EMBEDDED, "training.json").read_text())
    assert report["recipe"] == vars(Recipe())
    for task in ("geneval", "pickscore"):
        assert min(report["held_out"][task][pair] for pair in ("caption", "picture", "damage")) >= 0.9


def test_recipe_is_deterministic(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = clip_tokenizer()
    monkeypatch.setattr("star.pretraining.base.clip_tokenizer", lambda: tokenizer)
    recipe = Recipe(pairs=24, steps=6, batch=4, warmup=2, held_out=6)
    first = train(tmp_path / "a", recipe=recipe)
    train(tmp_path / "b", recipe=recipe)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]
    assert first["held_out"]["geneval"].keys() >= {"caption", "picture", "damage"}


def test_captions_claim_only_what_the_scene_shows() -> None:
    rng = np.random.default_rng(1)
    for tag in (*TAGS, "free", "ocr"):
        pool, _ = split(tag, 0)
        for _ in range(30):
            d = pool[int(rng.integers(len(pool)))]
            assert claims(d) <= facts(compose(d, rng)), caption(d)
    left = {"include": [{"class": "ring", "count": 1}, {"class": "cross", "count": 1, "position": ["left of", 0]}]}
    scene = compose({**left, "tag": "position"}, rng)
    right = {"include": [left["include"][0], {**left["include"][1], "position": ["right of", 0]}]}
    assert not claims(right) <= facts(scene)
    assert render(scene).shape == (64, 64, 3)
