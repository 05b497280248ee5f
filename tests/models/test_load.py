"""Loading a base: its precision, and refusals that name key and remedy."""

import json
import shutil
from pathlib import Path

import policies
import pytest
import torch
import trainings

from star import config as configuration
from star.errors import InputError
from star.training import checkpoint


def test_auto_is_bfloat16_where_the_processor_has_it_and_a_run_is_not_continued_in_the_other(
    random_base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def key(precision: str) -> str:
        config = trainings.config(random_base, f"policy.precision={precision}")
        return checkpoint.key_of(configuration.run_settings(config, "preference", "star"))

    keys = set()
    for found, precision in (
        ({"avx512_f": True, "avx512_bf16": True}, torch.bfloat16),
        ({"avx2": True, "amx_bf16": False}, torch.float32),
        ({"neon": True, "bf16": True}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found)
        model = policies.model(random_base, precision="auto")
        assert {p.dtype for p in model.transformer.parameters()} == {model.dtype} == {precision}
        keys.add(key("auto"))
        assert key("bfloat16") not in keys and key("float32") not in keys
    assert len(keys) == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": "no/such/folder"}, "no folder"),
        ({"model": "some/repository"}, "policy.revision"),
        ({"device": "cuda"}, "policy.device"),
    ],
)
def test_refusals_name_key_and_remedy(random_base: Path, changes: dict, words: str) -> None:
    assert not torch.cuda.is_available()
    with pytest.raises(InputError, match=words):
        policies.model(**({"base": random_base} | {"base" if k == "model" else k: v for k, v in changes.items()}))


def test_a_folder_that_is_no_pipeline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model_index\.json"):
        policies.model(tmp_path)


@pytest.mark.parametrize("name", ["PixArtSigmaPipeline", "NoSuchPipeline"])
def test_a_family_that_is_not_known_is_refused_before_its_weights_are_read(
    random_base: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(random_base / "model_index.json", tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"_class_name": name}))
    with pytest.raises(InputError, match=rf"policy\.model: .* is a {name}; known here are StableDiffusion3Pipeline"):
        policies.model(tmp_path)
