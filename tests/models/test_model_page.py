"""docs/extend/model.md quotes code that the contract runs; docs/models.md has every family that the door knows."""

import json
import re
from pathlib import Path

import policies
import pytest

from star.errors import InputError
from star.models.door import load_model

ROOT = Path(__file__).parents[2]
QUOTED = ("star/models/flux2.py", "star/models/door.py", "tests/families.py")


def test_every_block_of_the_page_is_code_that_runs() -> None:
    page = (ROOT / "docs/extend/model.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    sources = [(ROOT / file).read_text(encoding="utf-8") for file in QUOTED]
    assert len(blocks) == 6
    assert [block for block in blocks if not any(block in source for source in sources)] == []


def test_the_page_of_models_has_every_family_and_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "PixArtAlphaPipeline"}))
    with pytest.raises(InputError, match="is a PixArtAlphaPipeline; known here are") as refusal:
        load_model(policies.settings(tmp_path))
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    known = re.findall(r"\w+Pipeline", str(refusal.value).partition("known here are")[2])
    assert len(known) == 5 and all(f"`{name}`" in page for name in known)
