"""Two folders of pictures of the same prompts, and what a page or a file of votes says of them."""

import base64
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

TAGS = ("counting", "colors", "position")


def pictures(folder: Path, seed: int, prompts: int = 6, images: int = 2, size: int = 8) -> Path:
    """Noise in GenEval's layout, with the text chunks of `star sample`."""
    rng = np.random.default_rng(seed)
    for n in range(prompts):
        samples = folder / f"{n:05d}" / "samples"
        samples.mkdir(parents=True)
        metadata = {"prompt": f"prompt “{n}” & <b>", "id": f"shapes-{n:05d}", "tag": TAGS[n % len(TAGS)]}
        (samples.parent / "metadata.jsonl").write_text(json.dumps(metadata) + "\n", encoding="utf-8")
        for k in range(images):
            info = PngInfo()
            info.add_text("checkpoint", str(folder))
            pixels = rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(samples / f"{k:04d}.png", pnginfo=info)
    return folder


def data(page: Path) -> dict:
    """The JSON inside a page, its `key` decoded."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"), re.DOTALL)
    study = json.loads(found[1])
    return study | {"key": json.loads(base64.b64decode(study["key"]))}


def ballot(study: dict, judge: str, choices: list[str | None]) -> dict:
    """What the page saves after `choices`, each A, B, tie or None, in the page's order."""
    votes = []
    for item, side, choice in zip(study["items"], study["key"]["a_side"], choices, strict=True):
        other = {"left": "right", "right": "left"}[side]
        vote = {"A": side, "B": other, "tie": "tie", None: None}[choice]
        keys = {key: item[key] for key in ("prompt_id", "picture", "tag", "prompt")}
        votes.append(keys | {"a_side": side, "vote": vote, "milliseconds": vote and 1500})
    return {
        **{key: study[key] for key in ("format", "comparison", "seed", "question")},
        **{key: study["key"][key] for key in ("a", "b")},
        **{"judge": judge, "exported": "2026-01-01T00:00:00.000Z", "votes": votes},
    }
