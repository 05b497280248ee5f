"""CLIPScore, HPSv2 and the aesthetic predictor on tiny random models of the true classes, against slow forms of each."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from records import asked
from safetensors.torch import load_file, save_file
from scorer_settings import scorers
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForImageTextRetrieval,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from star import cli
from star.errors import InputError
from star.scoring.aesthetic import AestheticPredictor
from star.scoring.imagereward import ImageRewardModel
from star.scoring.scorer import make_scorer

PROMPTS = ["a red circle", "two rings", "a red circle", "a cross above a ring"]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3)).astype(np.uint8))


def _cosines(folder: Path, images: list[np.ndarray]) -> np.ndarray:
    """By CLIPModel's own forward, a picture at a time."""
    model, tokenizer = CLIPModel.from_pretrained(folder).eval(), CLIPTokenizer.from_pretrained(folder)
    rows = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        tokens = tokenizer([prompt], padding="max_length", truncation=True, return_tensors="pt")
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 127.5 - 1
        with torch.no_grad():
            seen = model(**tokens, pixel_values=pixels)
        rows.append(float((seen.image_embeds * seen.text_embeds).sum()))
    return np.array(rows)


def test_clipscore_and_hpsv2_are_cosines(random_folder: Path, images: list[np.ndarray]) -> None:
    expected, folder = _cosines(random_folder, images), str(random_folder)
    records = [asked(prompt) for prompt in PROMPTS]
    clip = make_scorer("clipscore", scorers(clipscore_model=folder))(images, records)
    assert np.allclose([s.score for s in clip], 100 * expected.clip(0), atol=1e-4)
    assert np.allclose([s.reward for s in clip], expected.clip(0), atol=1e-6)
    hps = make_scorer("hpsv2", scorers(hpsv2_model=folder, hpsv2_processor=folder))(images, records)
    assert np.allclose([s.score for s in hps], expected, atol=1e-6) and hps[0].reward == hps[0].score
    assert expected.min() < 0 < expected.max() or len(set(expected.round(3))) > 2
    for name, settings in (
        ("clipscore", {"clipscore_model": folder}),
        ("hpsv2", {"hpsv2_model": folder, "hpsv2_processor": folder}),
    ):
        scorer = make_scorer(name, scorers(**settings))
        assert scorer.fingerprint.startswith(f"{name} {folder}@")
        with pytest.raises(InputError, match=f"empty; {name} needs words"):
            scorer.check([asked(" ")])


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(2)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = AestheticPredictor(CLIPVisionConfig(**tower, image_size=32, patch_size=8, projection_dim=24))
    folder = tmp_path_factory.mktemp("aesthetic")
    model.save_pretrained(folder)
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_the_aesthetic_rating_is_the_head_on_the_towers_unit_features(predictor: Path, images: list[np.ndarray]) -> None:
    tower = CLIPVisionModelWithProjection.from_pretrained(predictor).eval()
    processor, weights = CLIPImageProcessorPil.from_pretrained(predictor), load_file(predictor / "model.safetensors")
    expected = []
    for image in images:
        with torch.no_grad():
            features = tower(**processor(image, return_tensors="pt", input_data_format="channels_last")).image_embeds[0].numpy()
        x = features / np.linalg.norm(features)
        for number in (0, 2, 4, 6, 7):  # the places of the published head's linear layers
            x = weights[f"layers.{number}.weight"].numpy() @ x + weights[f"layers.{number}.bias"].numpy()
        expected.append(float(x[0]))
    rated = make_scorer("aesthetic", scorers(aesthetic_model=str(predictor)))(images, [asked("x")] * 4)
    assert np.allclose([s.score for s in rated], expected, atol=1e-5) and len(set(expected)) == 4
    assert np.allclose([s.reward for s in rated], np.array(expected) / 10, atol=1e-6)


@pytest.fixture(scope="module")
def rewarder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ImageReward of the true classes and file layout; its golden picture is one that it judges as it should."""
    torch.manual_seed(3)
    folder, tower = tmp_path_factory.mktemp("imagereward"), {"hidden_size": 32, "intermediate_size": 64}
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "[DEC]",
        "[ENC]",
        *sorted({w for text in PROMPTS for w in text.split()}),
    ]
    (folder / "vocab.txt").write_text("\n".join(words))
    BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    text = tower | {"num_hidden_layers": 2, "num_attention_heads": 2, "encoder_hidden_size": 32, "vocab_size": len(words)}
    vision = tower | {"num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    text |= {"is_decoder": True, "pad_token_id": 0, "sep_token_id": 3, "bos_token_id": 5}
    model = ImageRewardModel(BlipConfig(text_config=text, vision_config=vision))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # as it comes a picture would move the sixth digit
    model.save_pretrained(folder)
    (folder / "golden").mkdir()
    Image.fromarray(np.full((32, 32, 3), 200, np.uint8)).save(folder / "golden/0.png")
    picture, pair = np.full((1, 32, 32, 3), 200, np.uint8), PROMPTS[:2]
    better, worse = sorted(pair, key=lambda words: -_slow_rewards(folder, picture, [words])[0])
    (folder / "golden/captions.jsonl").write_text(json.dumps({"file": "0.png", "prompt": better, "worse": worse}) + "\n")
    return folder


def _slow_rewards(folder: Path, images: np.ndarray | list, texts: list[str]) -> list[float]:
    """A picture at a time, by transformers' own BLIP for retrieval, whose text encoder and tower are given the weights."""
    weights = load_file(folder / "model.safetensors")
    config = BlipConfig.from_pretrained(folder)
    blip = BlipForImageTextRetrieval(config).eval()
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("mlp")}
    assert not blip.load_state_dict(kept, strict=False).unexpected_keys
    tokenizer, rewards = BertTokenizer.from_pretrained(folder), []
    for image, words in zip(images, texts, strict=True):
        small = Image.fromarray(np.asarray(image)).resize((32, 32), Image.Resampling.BICUBIC)
        pixels = (np.asarray(small) / 255 - [0.48145466, 0.4578275, 0.40821073]) / [0.26862954, 0.26130258, 0.27577711]
        tokens = tokenizer([words], return_tensors="pt")  # without padding
        with torch.no_grad():
            patches = blip.vision_model(torch.from_numpy(pixels).float().permute(2, 0, 1)[None])[0]
            seen = blip.text_encoder(tokens.input_ids, encoder_hidden_states=patches)[0][0, 0].numpy()
        for number in (0, 2, 4, 6, 7):
            seen = weights[f"mlp.{number}.weight"].numpy() @ seen + weights[f"mlp.{number}.bias"].numpy()
        rewards.append((float(seen[0]) - 0.16717362830052426) / 1.0333394966054072)
    return rewards


def test_imagereward_is_the_head_on_the_text_that_looks_at_the_picture(rewarder: Path, images: list[np.ndarray]) -> None:
    scored = make_scorer("imagereward", scorers(imagereward_model=str(rewarder)))(images, [asked(text) for text in PROMPTS])
    expected = _slow_rewards(rewarder, images, PROMPTS)
    assert np.allclose([one.score for one in scored], expected, rtol=1e-4, atol=1e-4) and len(set(np.round(expected, 3))) == 4
    assert [one.reward for one in scored] == [one.score for one in scored]
    with pytest.raises(InputError, match=r"scorers\.imagereward\.model: name a folder .*docs/reference/scorers"):
        make_scorer("imagereward", scorers())


def test_missing_weights_are_one_clear_line(predictor: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"scorers\.hpsv2\.model: name a folder .*CLIPModel"):
        make_scorer("hpsv2", scorers())
    with pytest.raises(InputError, match=r"scorers\.clipscore\.model: no folder"):
        make_scorer("clipscore", scorers(clipscore_model=str(tmp_path / "none")))
    with pytest.raises(InputError, match=r"scorers\.aesthetic\.revision: .* has no commit.*star fetch"):
        make_scorer("aesthetic", scorers())
    for file in predictor.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    headless = {name: tensor for name, tensor in load_file(predictor / "model.safetensors").items() if "layers.7" not in name}
    save_file(headless, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"scorers\.aesthetic\.model: .* lacks 2 weights of a AestheticPredictor"):
        make_scorer("aesthetic", scorers(aesthetic_model=str(tmp_path)))


def test_the_command_line_scores_with_them(random_folder: Path, tmp_path: Path, images: list[np.ndarray]) -> None:
    (tmp_path / "images").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"images/{number}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    where = [
        "--images",
        str(tmp_path / "images"),
        "--prompts",
        str(tmp_path / "prompts.txt"),
        "--out",
        str(tmp_path / "s.jsonl"),
    ]
    assert cli.main(["score", "--scorer", "clipscore", "--set", f"scorers.clipscore.model={random_folder}", *where]) == 0
    lines = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    assert np.allclose([line["score"] for line in lines], 100 * _cosines(random_folder, images).clip(0), atol=1e-4)
