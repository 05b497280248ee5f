"""The folder that `star export` writes: plain diffusers draws the same with it, the hub's library reads its card."""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from huggingface_hub import ModelCard
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from star import cli
from star import config as configuration
from star.errors import InputError
from star.export import folder
from star.files import write_json, write_jsonl, write_text
from star.layout import ADAPTER_FILE, Run

ROOT = Path(__file__).parents[2]
RANK = 4


def _policy(base: Path) -> configuration.PolicySettings:
    return configuration.PolicySettings(model=str(base), resolution=64, max_sequence_length=16, guidance=1.5, device="cpu")


def _adapter(base: Path, out: Path, alpha: int) -> Path:
    """A LoRA of random weights that diffusers and peft alone have made and saved."""
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    settings = LoraConfig(r=RANK, lora_alpha=alpha, target_modules=["to_q", "to_v"], init_lora_weights=False)
    torch.manual_seed(3)
    pipe.transformer.add_adapter(settings)
    layers = {name: 8 * tensor for name, tensor in get_peft_model_state_dict(pipe.transformer).items()}
    metadata = settings.to_dict() | {"target_modules": ["to_q", "to_v"]}
    StableDiffusion3Pipeline.save_lora_weights(
        out, transformer_lora_layers=layers, transformer_lora_adapter_metadata=json.loads(json.dumps(metadata, default=str))
    )
    return out


def _pictures(folder: Path, prompts: int, shade: int) -> None:
    for n in range(prompts):
        metadata = {"id": f"ocr-{n:05d}", "prompt": f'a sign | that says "{n}"', "tag": "ocr"}
        write_text(folder / f"{n:05d}/metadata.jsonl", json.dumps(metadata) + "\n")
        samples = folder / f"{n:05d}/samples"
        samples.mkdir()
        Image.fromarray(np.full((64, 64, 3), 5 * n + shade, np.uint8)).save(samples / "0000.png")


def _scores(path: Path, scores: np.ndarray) -> None:
    rows = [
        {
            "prompt_id": f"ocr-{n:05d}",
            "sample": 0,
            "tag": "ocr",
            "prompt": str(n),
            "filename": "x",
            "scorer": "rapidocr",
            "score": s,
        }
        for n, s in enumerate(scores.tolist())
    ]
    write_jsonl(path, rows)


def _guards(path: Path, diversity: float) -> None:
    guards = {"diversity": diversity, "edge_density": 0.1, "color_entropy": 2.0}
    cross = {"pickscore": {"mean": 20.0, "images": 40, "scorer": "p"}}
    write_json(path, guards | {"images": 40, "features": "pixels", "cross": cross})


@pytest.fixture
def run(random_base: Path, tmp_path: Path) -> Run:
    """A finished run whose adapter is of half its strength without its header, as old ones were; its base is tested too."""
    run = Run(tmp_path / "results/x/ocr/star/seed3")
    config = configuration.load(ROOT / "config/miniature.yaml", [f"policy.model={random_base}"])
    settings = configuration.run_settings(config, "letters", "star")
    write_text(run.settings, settings.model_dump_json())
    for epoch in (1, 12):
        _adapter(random_base, run.adapter(epoch), alpha=2 * RANK)
    seconds = {"seconds_rollout": 1800.0, "seconds_update": 1800.0}
    write_jsonl(run.metrics, [{"epoch": e, "images": 96, "reward_mean": e / 20, **seconds} for e in range(1, 14)])
    write_json(run.environment, {"cpu": "some CPU", "gpu": None})
    rng = np.random.default_rng(0)
    before = rng.uniform(0.2, 0.6, 40)
    for of, epoch, gain in ((run, 12, 0.25), (Run(tmp_path / "results/x/ocr/base/seed3"), 0, 0.0)):
        _scores(of.scores(epoch), before + gain)
        _guards(of.guards(epoch), 0.4 - gain)
        _pictures(of.samples(epoch), 40, shade=int(4 * gain))
    return run


def _draw(load: object, base: Path) -> np.ndarray:
    pipe = StableDiffusion3Pipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    load(pipe)
    settings = {"height": 64, "width": 64, "num_inference_steps": 10, "guidance_scale": 1.0, "max_sequence_length": 16}
    torch.manual_seed(5)
    return np.asarray(pipe("PROMPT", **settings).images[0])


def test_the_card_s_own_lines_draw_the_adapter_s_picture(run: Run, random_base: Path, tmp_path: Path) -> None:
    out = tmp_path / "handed-on"
    card = folder.write(folder.of_run(run.folder), out, _policy(random_base))
    assert card.factor == 2
    original = _draw(lambda pipe: pipe.load_lora_weights(run.adapter(12)), random_base)
    halved = load_file(run.adapter(12) / ADAPTER_FILE)  # without its header
    for other in (lambda pipe: None, lambda pipe: pipe.load_lora_weights(dict(halved))):
        assert np.abs(original.astype(int) - _draw(other, random_base)).max() > 5
    weights = load_file(out / ADAPTER_FILE)
    assert np.array_equal(_draw(lambda pipe: pipe.load_lora_weights(dict(weights)), random_base), original)  # no header

    (code,) = re.findall(r"```python\n(.*?)```", (out / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    prompt = re.search(r"pipe\((\".*?[^\\]\"), \*\*settings", code)[1]
    code = code.replace('"USER/handed-on"', repr(str(out))).replace(prompt, '"PROMPT"')
    code = code.replace("image =", "import torch; torch.manual_seed(5); pipe.set_progress_bar_config(disable=True)\nimage =")
    names: dict = {}
    exec(code, names)
    assert np.array_equal(np.asarray(names["image"]), original)


def test_an_adapter_at_full_strength_is_handed_on_byte_for_byte(random_base: Path, tmp_path: Path) -> None:
    adapter = _adapter(random_base, tmp_path / "adapter", alpha=RANK)
    card = folder.write(folder.of_adapter(adapter), tmp_path / "out", _policy(random_base))
    assert card.factor == 1 and card.shown == []
    one, other = ((path / ADAPTER_FILE).read_bytes() for path in (adapter, tmp_path / "out"))
    assert hashlib.sha256(one).digest() == hashlib.sha256(other).digest()
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert str(random_base) in text and "## Scores" not in text and "## Pictures" not in text and "## Training" not in text
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["README.md", ADAPTER_FILE]


def test_folding_multiplies_the_second_factor_and_says_so_in_the_header(run: Run, random_base: Path, tmp_path: Path) -> None:
    folder.write(folder.of_run(run.folder), tmp_path / "out", _policy(random_base))
    before, after = load_file(run.adapter(12) / ADAPTER_FILE), load_file(tmp_path / "out" / ADAPTER_FILE)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], 2 * tensor if ".lora_B." in name else tensor)
    with safe_open(tmp_path / "out" / ADAPTER_FILE, "pt") as opened:
        header = json.loads(opened.metadata()["lora_adapter_metadata"])
    assert header["transformer.lora_alpha"] == header["transformer.r"] == RANK
    again = folder.write(folder.of_adapter(tmp_path / "out"), tmp_path / "again", _policy(random_base))
    assert again.factor == 1


def test_the_hub_s_library_reads_the_card(run: Run, random_base: Path, tmp_path: Path) -> None:
    folder.write(folder.of_run(run.folder), tmp_path / "out", _policy(random_base), base="some-owner/some-base")
    card = ModelCard.load(tmp_path / "out/README.md")
    data = card.data.to_dict()
    assert (data["library_name"], data["pipeline_tag"]) == ("diffusers", "text-to-image")
    assert (data["base_model"], data["base_model_relation"]) == ("some-owner/some-base", "adapter")
    assert {"lora", "text-to-image"} <= set(data["tags"]) and (data["license"], data["license_name"]) == (
        "other",
        "as-the-base",
    )
    assert len(data["widget"]) == 6
    for each in data["widget"]:
        assert (tmp_path / "out" / each["output"]["url"]).is_file() and each["text"].startswith("a sign")
    assert ModelCard(str(card)).data.to_dict() == data
    images = re.findall(r"!\[[^]]*\]\(([^)]*)\)", card.text)
    assert len(images) == 12 and all((tmp_path / "out" / image).is_file() for image in images)
    assert "\\| that says" in card.text and "nan" not in card.text


def test_the_card_has_scores_guards_and_training(run: Run, random_base: Path, tmp_path: Path) -> None:
    folder.write(folder.of_run(run.folder), tmp_path / "out", _policy(random_base))
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    mean = float(np.random.default_rng(0).uniform(0.2, 0.6, 40).mean())
    assert f"| base | {mean:.3f} | [" in text and f"| this adapter | {mean + 0.25:.3f} | [" in text
    assert "| difference, paired | +0.250 | [0.250, 0.250] | 40 |" in text
    assert "| diversity | 0.400 | 0.150 |" in text and "| pickscore | 20.000 | 20.000 |" in text
    assert "| pictures drawn | 1152 |" in text and "| hours | 12.00 on some CPU |" in text  # of 12 epochs, not of 13
    assert "| mean reward, first and last epoch | 0.050, 0.600 |" in text and "| seed | 3 |" in text
    assert (tmp_path / "out/settings.json").read_bytes() == run.settings.read_bytes()
    shown = np.asarray(Image.open(tmp_path / "out/images/0.png")).astype(int)
    before = np.asarray(Image.open(tmp_path / "out/images/0-base.png")).astype(int)
    assert shown.shape == (192, 192, 3) and np.unique(shown - before).tolist() == [1]


@pytest.mark.parametrize("link", ["LICENSE.md", "https://licences.org/x"])
def test_the_licence_is_the_base_s(run: Run, tmp_path: Path, link: str, hub_cache: Path) -> None:
    cached = hub_cache / "models--owner--base"
    write_text(cached / "refs/main", "0" * 40)
    card = f"---\nlicense: other\nlicense_name: a-licence\nlicense_link: {link}\n---\n# Base\n"
    write_text(cached / "snapshots" / ("0" * 40) / "README.md", card)
    policy = {"model": "owner/base", "revision": "0" * 40}
    found, notes = folder.licence_of(policy, None)
    expected = link if "://" in link else f"https://huggingface.co/owner/base/blob/main/{link}"
    assert found == {"license": "other", "license_name": "a-licence", "license_link": expected} and notes == []
    write_text(tmp_path / "base/README.md", "---\nlicense: apache-2.0\n---\n")
    found, notes = folder.licence_of({"model": str(tmp_path / "base")}, None)
    assert found == {"license": "apache-2.0"} and len(notes) == 1 and "--base" in notes[0]
    assert folder.licence_of({"model": str(ROOT / "resources/miniature/base")}, "o/b") == ({"license": "apache-2.0"}, [])


def test_what_cannot_be_handed_on_is_refused(run: Run, random_base: Path, tmp_path: Path) -> None:
    policy, source = _policy(random_base), folder.of_run(run.folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine.txt").write_text("mine")
    with pytest.raises(InputError, match="full: is not empty"):
        folder.write(source, tmp_path / "full", policy)
    with pytest.raises(InputError, match=r"checkpoints: no adapters"):
        folder.of_run(tmp_path)
    with pytest.raises(InputError, match=f"no {ADAPTER_FILE}"):
        folder.of_adapter(tmp_path)
    with pytest.raises(InputError, match="--base: some/where/else"):
        folder.write(source, tmp_path / "out", policy, base="some/where/else")
    weights = {"text_encoder.layer.lora_A.weight": torch.zeros(4, 8)}
    save_file(weights, tmp_path / "full" / ADAPTER_FILE)
    with pytest.raises(InputError, match="not of a transformer's LoRA"):
        folder.at_strength(tmp_path / "full" / ADAPTER_FILE)
    weights = {"transformer.x.lora_A.weight": torch.zeros(4, 8)}
    header = json.dumps({"transformer.r": 4, "transformer.lora_alpha": 4, "transformer.alpha_pattern": {"x": 8}})
    save_file(weights, tmp_path / "full" / ADAPTER_FILE, metadata={"lora_adapter_metadata": header})
    with pytest.raises(InputError, match="alpha_pattern"):
        folder.at_strength(tmp_path / "full" / ADAPTER_FILE)
    run.settings.write_text("{}")
    with pytest.raises(InputError, match=r"settings.json: not a run's settings"):
        folder.write(source, tmp_path / "out", policy)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_on_the_command_line(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = ["export", "--adapter", str(run.adapter(1)), "--out", str(tmp_path / "out")]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "header's 2 was multiplied" in said and "before you publish" in said and "hf upload USER/out" in said
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert "| epoch of this adapter | 1 |" in text and "## Scores" not in text
    assert cli.main(command) == 2
    assert capsys.readouterr().err.count("\n") == 1
