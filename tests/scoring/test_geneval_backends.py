"""GenEval's backends: each against something slow and explicit, on tiny random models of the true classes loaded from disk."""

import hashlib
import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from records import asked
from safetensors.torch import load_file, save_file
from scorer_settings import scorers
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    SwinConfig,
)

from star import cli
from star.config import Scorers
from star.errors import InputError
from star.scoring import mmdetection
from star.scoring.colors import ClipColors, crop
from star.scoring.detection import Detection
from star.scoring.mask2former import RENAMED, Mask2Former, instances
from star.scoring.rules import judge, select
from star.scoring.scorer import make_scorer

SIDE = 64  # of what the tiny detector sees
COCO = """
    person bicycle car motorbike aeroplane bus train truck boat traffic_light fire_hydrant stop_sign parking_meter bench bird
    cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag tie suitcase frisbee skis snowboard
    sports_ball kite baseball_bat baseball_glove skateboard surfboard tennis_racket bottle wine_glass cup fork knife spoon bowl
    banana apple sandwich orange broccoli carrot hot_dog pizza donut cake chair sofa pottedplant bed diningtable toilet
    tvmonitor laptop mouse remote keyboard cell_phone microwave oven toaster sink refrigerator book clock vase scissors
    teddy_bear hair_drier toothbrush
"""
NAMES = [name.replace("_", " ") for name in COCO.split()]
COLORS = ["red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white"]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Mask2Former whose classes are sure of themselves and whose masks vary."""
    torch.manual_seed(0)
    stages = [f"stage{i}" for i in range(1, 5)]
    swin = SwinConfig(image_size=SIDE, embed_dim=8, depths=[1] * 4, num_heads=[1] * 4, window_size=2, out_features=stages)
    config = Mask2FormerConfig(
        backbone_config=swin,
        id2label=dict(enumerate(NAMES)),
        num_queries=12,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        **dict.fromkeys(("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32),
    )
    model = Mask2FormerForUniversalSegmentation(config)
    model.class_predictor.weight.data *= 40
    for weights in model.model.transformer_module.decoder.mask_predictor.mask_embedder.parameters():
        weights.data *= 4
    folder = tmp_path_factory.mktemp("mask2former")
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIP that reads letter by letter and looks at 32 x 32 pixels."""
    torch.manual_seed(3)
    letters = "abcdefghijklmnopqrstuvwxyz-"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={t: i for i, t in enumerate(tokens)}, merges=[], model_max_length=60)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": len(tokens), "max_position_embeddings": 60, "pad_token_id": 0, "bos_token_id": 54, "eos_token_id": 55}
    model = CLIPModel(
        CLIPConfig(text_config=tower | text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=16)
    )
    for weights in model.parameters():
        if weights.ndim > 1:
            weights.data *= 4
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    images = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """Random pictures of two sizes; blocks of colour, so that the model's answers differ."""
    rng = np.random.default_rng(1)
    sizes = [(48, 48), (40, 72), (48, 48), (48, 48), (40, 72)]
    return [np.kron(rng.integers(0, 256, (h // 8, w // 8, 3)), np.ones((8, 8, 1))).astype(np.uint8) for h, w in sizes]


def _scorers(detector: Path, clip: Path, **more: object) -> Scorers:
    paths = {"geneval_model": str(detector), "geneval_color_model": str(clip)}
    return scorers(**{"geneval_detector": "mask2former", "geneval_size": SIDE, "geneval_batch": 2, **paths, **more})


def _bilinear(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """[h, w] stretched to `size`: every output pixel from its four neighbours, pixel centres at halves."""
    for axis, n in enumerate(size):
        at = np.clip((np.arange(n) + 0.5) * x.shape[axis] / n - 0.5, 0, None)
        low = at.astype(int)
        high = np.minimum(low + 1, x.shape[axis] - 1)
        share = (at - low).reshape(-1, 1) if axis == 0 else at - low
        x = x.take(low, axis) * (1 - share) + x.take(high, axis) * share
    return x


def _outputs(folder: Path, picture: np.ndarray) -> tuple[torch.Tensor, object]:
    """One picture as the published classes prepare it, and what the model says of it."""
    model = Mask2FormerForUniversalSegmentation.from_pretrained(folder).eval()
    size = {"shortest_edge": SIDE, "longest_edge": SIDE * 1333 // 800}
    processor = Mask2FormerImageProcessorPil.from_pretrained(folder)
    pixels = processor(Image.fromarray(picture), size=size, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return pixels, model(pixel_values=pixels)


def _slow_detections(folder: Path, picture: np.ndarray, floor: float) -> list[tuple]:
    """(class, box, score, mask) of one picture, best first: GenEval's post-processing, one pixel and one pair at a time."""
    pixels, seen = _outputs(folder, picture)
    pairs = []
    for query, logits in enumerate(seen.class_queries_logits[0].double().tolist()):
        total = sum(math.exp(x) for x in logits)
        pairs += [(math.exp(x) / total, query, c) for c, x in enumerate(logits[:-1])]
    found = []
    for probability, query, c in sorted(pairs, reverse=True)[:100]:
        logits = _bilinear(seen.masks_queries_logits[0, query].double().numpy(), tuple(pixels.shape[-2:]))
        logits = _bilinear(logits, picture.shape[:2])
        inside = [(x, y) for y in range(logits.shape[0]) for x in range(logits.shape[1]) if logits[y, x] > 0]
        if inside:
            score = probability * sum(1 / (1 + math.exp(-logits[y, x])) for x, y in inside) / len(inside)
            xs, ys = zip(*inside, strict=True)
            found.append((NAMES[c], (min(xs), min(ys), max(xs) + 1, max(ys) + 1), score, set(inside)))
    return sorted((f for f in found if f[2] > floor), key=lambda f: -f[2])


def test_detections_are_those_of_an_explicit_loop(detector: Path, clip: Path, pictures: list) -> None:
    fast = Mask2Former(_scorers(detector, clip))
    sure = 0
    for picture, seen in zip(pictures, fast.detect(pictures), strict=True):
        slow = _slow_detections(detector, picture, 0.3)
        seen = [d for d in seen if d.score > 0.3]
        assert [(d.cls, d.box) for d in seen] == [(RENAMED.get(cls, cls), box) for cls, box, _, _ in slow]
        assert np.allclose([d.score for d in seen], [score for *_, score, _ in slow], atol=1e-5)
        for d, (*_, inside) in zip(seen, slow, strict=True):
            assert d.mask.shape == picture.shape[:2] and set(zip(*np.nonzero(d.mask.T), strict=True)) == inside
        sure += len(seen)
    assert sure >= 10


def test_all_hundred_pairs_are_those_of_an_explicit_loop(detector: Path, clip: Path, pictures: list) -> None:
    slow = _slow_detections(detector, pictures[0], 0)
    pixels, seen = _outputs(detector, pictures[0])
    found = instances(seen.class_queries_logits[0], seen.masks_queries_logits[0], NAMES, pixels.shape[-2:], (48, 48), floor=0)
    assert len(found) == len(slow) > 80
    assert np.allclose([d.score for d in found], [score for *_, score, _ in slow], atol=1e-5)
    assert sorted((d.cls, d.box) for d in found) == sorted((cls, box) for cls, box, _, _ in slow)


def test_a_hand_made_mask_has_a_hand_made_score() -> None:
    masks = torch.full((3, 6, 8), -5.0)
    masks[0, 1:3, 2:5] = math.log(3)  # sigmoid 0.75
    masks[2, 5, 7] = math.log(9)  # sigmoid 0.9
    logits = torch.tensor([[math.log(8), 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, math.log(2), 0.0]])  # no object comes last
    first, second = instances(logits, masks, ["cat", "dog"], (6, 8), (6, 8))  # the second query's mask is empty
    assert (first.cls, first.box) == ("cat", (2, 1, 5, 3)) and first.score == pytest.approx(0.8 * 0.75)
    assert (second.cls, second.box) == ("dog", (7, 5, 8, 6)) and second.score == pytest.approx(0.5 * 0.9)
    assert first.mask.sum() == 6 and second.mask.sum() == 1
    assert instances(torch.zeros(3, 3), masks, ["cat", "dog"], (6, 8), (6, 8), floor=0.34) == []


def test_a_score_does_not_depend_on_the_batch(detector: Path, clip: Path, pictures: list) -> None:
    fast = Mask2Former(_scorers(detector, clip))
    together = fast.detect(pictures)
    order = [3, 1, 4, 0, 2]
    for alone in (
        [fast.detect([p])[0] for p in pictures],
        [fast.detect([pictures[i] for i in order])[order.index(k)] for k in range(5)],
    ):
        for a, b in zip(together, alone, strict=True):
            assert [(d.cls, d.box) for d in a] == [(d.cls, d.box) for d in b]
            assert np.allclose([d.score for d in a], [d.score for d in b], atol=1e-5)
    assert fast.detect([]) == []


def test_precision_and_weights_are_in_the_fingerprint(detector: Path, clip: Path, pictures: list, tmp_path: Path) -> None:
    full, half = (Mask2Former(_scorers(detector, clip, geneval_precision=p)) for p in ("float32", "bfloat16"))
    assert "float32" in full.fingerprint and "bfloat16" in half.fingerprint and f"size={SIDE}" in full.fingerprint
    assert full.fingerprint.split("@")[1][:12] == half.fingerprint.split("@")[1][:12]
    best = [max(seen, key=lambda d: d.score) for seen in full.detect(pictures)]
    assert all(
        any(d.cls == b.cls and d.score > b.score - 0.1 for d in seen)
        for b, seen in zip(best, half.detect(pictures), strict=True)
    )
    for file in detector.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    weights["class_predictor.bias"][0] = math.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    broken = Mask2Former(_scorers(tmp_path, clip))
    assert broken.fingerprint.split("@")[1][:12] != full.fingerprint.split("@")[1][:12]
    with pytest.raises(RuntimeError, match=r"not finite.*geneval\.precision"):
        broken.detect(pictures)


def test_labels_become_genevals_names_in_either_spelling(detector: Path, clip: Path) -> None:
    names = [RENAMED.get(name, name) for name in NAMES]
    official = "8aad18a0fdff92ac691f5387a560abfee0c4027fd731fb8bbf83d5df11233cf5"  # SHA-256 of GenEval's object_names.txt
    assert hashlib.sha256("\n".join(names).encode()).hexdigest() == official
    assert [RENAMED.get(name, name) for name in names] == names
    assert Mask2Former(_scorers(detector, clip)).classes == set(names)


def _objects(pictures: list) -> list[tuple]:
    rng, pairs = np.random.default_rng(2), []
    for picture in pictures * 3:
        y, x = np.mgrid[: picture.shape[0], : picture.shape[1]]
        cx, cy = rng.uniform(10, 30, 2)
        mask = (abs(x - cx) / rng.uniform(3, 14) + abs(y - cy) / rng.uniform(3, 14)) < 1
        ys, xs = np.nonzero(mask)
        cls = ["dog", "tv remote", "bear"][len(pairs) % 3]
        pairs.append((picture, Detection(cls, (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), 0.9, mask)))
    return pairs


def test_colors_are_those_of_an_explicit_loop_over_clips_own_forward(clip: Path, pictures: list) -> None:
    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    pairs, expected = _objects(pictures), []
    for picture, d in pairs:
        whole = Image.fromarray(picture)
        cut = Image.composite(whole, Image.new("RGB", whole.size, "#999999"), Image.fromarray(d.mask)).crop(d.box)
        kinds = ("a photo of a {} {}", "a photo of a {}-colored {}", "a photo of a {} object")
        texts = [kind.format(color, d.cls) for color in COLORS for kind in kinds]
        with torch.no_grad():
            seen = model(**processor(text=texts, images=[cut], padding=True, return_tensors="pt"))
        image, similarity = seen.image_embeds[0].double().numpy(), []
        for k in range(len(COLORS)):
            three = seen.text_embeds[3 * k : 3 * k + 3].double().numpy()
            mean = sum(one / np.linalg.norm(one) for one in three) / 3
            similarity.append(mean @ image / np.linalg.norm(mean) / np.linalg.norm(image))
        expected.append(COLORS[int(np.argmax(similarity))])
    colors = ClipColors(scorers(geneval_color_model=str(clip)))
    assert colors(pairs) == expected
    assert len(set(expected)) >= 3
    assert [colors([pair])[0] for pair in reversed(pairs)] == expected[::-1]
    assert colors([]) == []


def test_a_box_beyond_the_picture_is_cut_as_pillow_cuts_it() -> None:
    """The evaluator's composite and crop, on boxes anywhere about the picture."""
    rng = np.random.default_rng(5)
    for _ in range(200):
        picture = rng.integers(0, 256, (12, 15, 3)).astype(np.uint8)
        corner, side = rng.uniform(-9, 14, 2), rng.uniform(0.6, 20, 2)
        seen = Detection("dog", (*corner.tolist(), *(corner + side).tolist()), 0.9, rng.random((12, 15)) < 0.7)
        whole = Image.fromarray(picture)
        grey = Image.composite(whole, Image.new("RGB", whole.size, "#999999"), Image.fromarray(seen.mask))
        cut = crop(picture, seen)
        assert cut is None or np.array_equal(cut, np.asarray(grey.crop(seen.box)))


def test_an_object_without_a_visible_pixel_has_no_color(clip: Path) -> None:
    picture, mask = np.full((20, 30, 3), 7, np.uint8), np.zeros((20, 30), bool)
    full, empty = mask | True, Detection("dog", (2, 3, 9, 8), 0.9, mask)
    nothing = [
        empty,
        *(Detection("dog", box, 0.9, full) for box in ((4, 4, 4, 9), (4, 4, 9, 4), (40, 2, 50, 9), (-9, 0, -1, 5))),
    ]
    assert [crop(picture, d) for d in nothing] == [None] * 5
    seen = Detection("dog", (25.6, 3.2, 40, 8), 0.9, full & (np.arange(30) < 28))
    assert crop(picture, seen).shape == (5, 14, 3)
    assert crop(picture, seen)[0, :, 0].tolist() == [7, 7, 0x99, 0x99, *[0] * 10]  # black beyond the picture
    colors = ClipColors(scorers(geneval_color_model=str(clip)))
    named = colors([(picture, d) for d in (*nothing, seen)])
    assert named[:5] == ["none"] * 5 and named[5] in COLORS
    metadata = {"tag": "colors", "include": [{"class": "dog", "count": 1, "color": "red"}]}
    assert judge({"dog": [empty]}, lambda d: colors([(picture, d)])[0], metadata) == (
        False,
        "expected red dog>=1, found 1 none",
    )


@pytest.fixture(scope="module")
def scene(detector: Path, clip: Path, pictures: list, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    """A folder of pictures in GenEval's layout; prompts ask for what the detector finds in the first of two pictures each."""
    fast, colors = Mask2Former(_scorers(detector, clip)), ClipColors(scorers(geneval_color_model=str(clip)))
    root, written = tmp_path_factory.mktemp("scene") / "images", []
    shown = [*pictures[:2], 255 - pictures[1], *pictures[3:]]
    for number, picture in enumerate(shown):
        tag = ("single_object", "colors", "counting", "color_attr", "position")[number]
        found = select(fast.detect([picture])[0], tag)
        wanted = {cls: ds for cls, ds in found.items() if not tag.startswith("color") or len(ds) == 1}
        include = [{"class": cls, "count": len(ds)} for cls, ds in wanted.items()][:2]
        assert include
        if tag.startswith("color"):
            include[0]["color"] = colors([(picture, found[include[0]["class"]][0])])[0]
        if tag == "position":
            include.append({"class": "zebra", "count": 1, "position": ["above", 0]})
        metadata = {"tag": tag, "include": include, "exclude": [{"class": "toaster", "count": 9}], "prompt": f"prompt {number}"}
        home = root / f"{number:05d}"
        (home / "samples").mkdir(parents=True)
        (home / "metadata.jsonl").write_text(json.dumps(metadata) + "\n")
        for k, pixels in enumerate((picture, 255 - picture)):
            Image.fromarray(pixels).save(home / "samples" / f"{k:04d}.png")
        written.append(metadata)
    return root, written


@pytest.fixture(scope="module")
def golden(detector: Path, clip: Path, pictures: list, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture with what the explicit loop finds in it, and one with a known wrong prompt."""
    found = [(RENAMED.get(cls, cls), box) for cls, box, _, _ in _slow_detections(detector, pictures[0], 0.3)]
    cls = found[0][0]
    count = sum(c == cls for c, _ in found)
    root = tmp_path_factory.mktemp("golden")
    for number, (n, correct) in enumerate(((count, True), (count + 1, False))):
        home = root / f"{number:05d}"
        (home / "samples").mkdir(parents=True)
        metadata = {"tag": "two_object", "include": [{"class": cls, "count": n}], "correct": correct}
        (home / "metadata.jsonl").write_text(json.dumps(metadata))
        Image.fromarray(pictures[0]).save(home / "samples" / "0000.png")
    return root


def _official_summary(file: Path) -> dict:
    """What GenEval's summary reads from a results file, from the published description of its lines."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines:
        assert {"filename", "tag", "prompt", "correct", "reason", "metadata", "details"} <= line.keys()
        assert type(line["correct"]) is bool and isinstance(line["reason"], str)
        metadata, details = json.loads(line["metadata"]), json.loads(line["details"])
        assert (metadata["tag"], metadata["prompt"]) == (line["tag"], line["prompt"])
        assert all(len(box) == 5 and all(isinstance(v, float) for v in box) for boxes in details.values() for box in boxes)
    by_tag: dict[str, list[bool]] = {}
    for line in lines:
        by_tag.setdefault(line["tag"], []).append(line["correct"])
    tags = {tag: sum(correct) / len(correct) for tag, correct in by_tag.items()}
    prompts = {line["metadata"] for line in lines}
    any_correct = [any(line["correct"] for line in lines if line["metadata"] == prompt) for prompt in prompts]
    official = {"images": len(lines), "prompts": len(prompts), "any": sum(any_correct) / len(prompts)}
    return official | {"tags": tags, "mean": sum(tags.values()) / len(tags)}


def test_pictures_to_lines_to_summary_and_the_same_again_from_the_lines(
    scene: tuple, golden: Path, detector: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    images, written = scene
    config = ["--config", "config/miniature.yaml"]
    chosen = _scorers(detector, clip, geneval_golden=str(golden))
    for key in ("detector", "model", "color_model", "size", "golden"):
        config += ["--set", f"scorers.geneval.{key}={getattr(chosen.geneval, key)}"]
    first, again = tmp_path / "first.jsonl", tmp_path / "again.jsonl"
    assert cli.main(["score", "--scorer", "geneval", "--images", str(images), "--out", str(first), *config]) == 0
    printed = capsys.readouterr().out
    lines = [json.loads(line) for line in first.read_text().splitlines()]
    official = _official_summary(first)
    assert (official["images"], official["prompts"]) == (10, 5) and f"{official['mean']:.4f}" in printed
    assert 0 < official["any"] < 1 and f"any correct    {official['any']:.4f} of prompts" in printed
    assert [line["correct"] for line in lines[::2]] == [True, True, True, True, False]
    assert not all(line["correct"] for line in lines[1::2])
    assert [json.loads(line["metadata"]) for line in lines[::2]] == written
    assert [i for i, line in enumerate(lines) if "colors" in line] == [2, 3, 6, 7]
    (fingerprint,) = {line["scorer"] for line in lines}
    assert fingerprint == make_scorer("geneval", chosen).fingerprint
    for part in ("mask2former", str(detector), str(clip), "transformers-", "torch-", "size=64", "threshold=0.3/0.9"):
        assert part in fingerprint
    assert cli.main(["score", "--scorer", "geneval", "--detections", str(first), "--out", str(again)]) == 0
    assert _official_summary(again) == official and f"{official['mean']:.4f}" in capsys.readouterr().out
    for a, b in zip(lines, map(json.loads, again.read_text().splitlines()), strict=True):
        assert {**a, "scorer": None} == {**b, "scorer": None} and fingerprint in b["scorer"] != a["scorer"]


def test_golden_pictures_stop_a_detector_that_is_wrong(golden: Path, detector: Path, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"calls a .* disc"):  # a random CLIP knows no colours
        make_scorer("geneval", _scorers(detector, clip))
    for file in golden.rglob("*"):
        if file.is_file():
            (tmp_path / file.relative_to(golden)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file.relative_to(golden)).write_bytes(file.read_bytes())
    wrong = tmp_path / "00001/metadata.jsonl"
    wrong.write_text(wrong.read_text().replace("false", "true"))
    with pytest.raises(RuntimeError, match=r"golden picture \(00001/samples/0000.png\): judged False"):
        make_scorer("geneval", _scorers(detector, clip, geneval_golden=str(tmp_path)))
    wrong.write_text("{")
    with pytest.raises(InputError, match=r"geneval\.golden.*00001/metadata\.jsonl"):
        make_scorer("geneval", _scorers(detector, clip, geneval_golden=str(tmp_path)))
    with pytest.raises(InputError, match=r"geneval\.golden.*nowhere"):
        make_scorer("geneval", _scorers(detector, clip, geneval_golden=str(tmp_path / "nowhere")))


def test_the_built_in_portrait_stops_a_blind_detector(detector: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("star.scoring.golden.check_colors", lambda colors_of: None)
    with pytest.raises(RuntimeError, match=r"golden picture \((one person|an empty picture)\)"):
        make_scorer("geneval", _scorers(detector, clip))


def test_missing_or_wrong_weights_name_key_and_remedy(detector: Path, clip: Path, golden: Path, tmp_path: Path) -> None:
    def refused(says: str, **changes: object) -> None:
        with pytest.raises(InputError, match=says) as error:
            make_scorer("geneval", _scorers(detector, clip, geneval_golden=str(golden), **changes))
        assert "\n" not in str(error.value)

    refused(r"scorers\.geneval\.model: no folder .*hub", geneval_model=str(tmp_path / "nowhere"))
    refused(r"scorers\.geneval\.color_model: no folder .*hub", geneval_color_model=str(tmp_path / "nowhere"))
    (tmp_path / "partial").mkdir()
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "partial" / name).write_bytes((detector / name).read_bytes())
    refused(r"scorers\.geneval\.model: cannot load .*another folder", geneval_model=str(tmp_path / "partial"))
    weights = load_file(detector / "model.safetensors")
    del weights["class_predictor.weight"]
    save_file(weights, tmp_path / "partial" / "model.safetensors", {"format": "pt"})
    refused(r"scorers\.geneval\.model: .* lacks 1 weights .*class_predictor", geneval_model=str(tmp_path / "partial"))
    (tmp_path / "mute").mkdir()
    for name in ("config.json", "model.safetensors", "processor_config.json"):
        (tmp_path / "mute" / name).write_bytes((clip / name).read_bytes())
    refused(r"scorers\.geneval\.color_model: .*tokenizer", geneval_color_model=str(tmp_path / "mute"))
    with pytest.raises(InputError, match=r"scorers\.geneval\.model: .* is no file.*\.pth"):
        make_scorer("geneval", scorers(geneval_detector="mmdet", geneval_golden=str(golden)))


def test_a_class_that_the_detector_cannot_find_is_an_error(golden: Path, detector: Path, clip: Path) -> None:
    scorer = make_scorer("geneval", _scorers(detector, clip, geneval_golden=str(golden)))
    item = {"class": "unicorn", "count": 1}
    for metadata in ({"include": [item]}, {"include": [{"class": "dog", "count": 1}], "exclude": [item]}):
        with pytest.raises(InputError, match=r"a photo of it.*no class 'unicorn'"):
            scorer.check([asked("a photo of it", {"tag": "two_object", **metadata})])


def test_mmdet_results_are_translated_and_only_its_known_weights_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    masks = torch.zeros(3, 4, 5, dtype=torch.bool)
    masks[0, 1:3, 2:4] = masks[1, 0, 0] = True
    boxes = torch.tensor([[2.0, 1, 4, 3], [0, 0, 1, 1], [0, 0, 0, 0]])
    seen = SimpleNamespace(labels=torch.tensor([64, 0, 1]), bboxes=boxes, scores=torch.tensor([0.5, 0.75, 0.0]), masks=masks)
    found = mmdetection.translate(seen, [RENAMED.get(name, name) for name in NAMES])
    assert [d[:3] for d in found] == [("computer mouse", (2, 1, 4, 3), 0.5), ("person", (0, 0, 1, 1), 0.75)]
    assert found[0].mask.dtype == bool and found[0].mask.sum() == 4
    checkpoint = tmp_path / "model.pth"
    checkpoint.write_bytes(b"not the weights")
    with pytest.raises(InputError, match=r"not GenEval's checkpoint"):
        mmdetection.MMDetector(scorers(geneval_detector="mmdet", geneval_model=str(checkpoint)))
    monkeypatch.setattr(mmdetection, "CHECKPOINT", hashlib.sha256(b"not the weights").hexdigest()[:8])
    with pytest.raises(InputError, match=r"scorers\.geneval\.detector: mmdet cannot be imported.*envs/mmdet\.yaml"):
        mmdetection.MMDetector(scorers(geneval_detector="mmdet", geneval_model=str(checkpoint)))
