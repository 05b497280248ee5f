"""A tiny random CLIP model on disk, of the true classes, with a golden picture that it gets right."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from PIL import Image


def write_golden(folder: Path, *lines: dict) -> None:
    """The captions of a model's golden pictures: file, prompt, and one that must score lower."""
    (folder / "golden/captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def random_model(folder: Path) -> Path:
    """A CLIP of the miniature's architecture with a scale of 13; of two captions the one that it prefers is golden."""
    from star.pretraining.base import clip_tokenizer
    from star.pretraining.preference import save, untrained

    tokenizer = clip_tokenizer()
    model = untrained(tokenizer, seed=5)
    model.logit_scale.data.fill_(math.log(13.0))
    save(model, tokenizer, {}, folder)
    captions = ["a red circle", "two rings"]
    tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt")
    pixels = torch.from_numpy(np.array(Image.open(folder / "golden/0.png"))).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        worse, fitting = model.eval()(**tokens, pixel_values=pixels).logits_per_image[0].argsort().tolist()
    write_golden(folder, {"file": "0.png", "prompt": captions[fitting], "worse": captions[worse]})
    return folder
