# ruff: noqa: E501
"""The model card of the miniature base: measured on the test prompts with the ODE sampler, with a grid of samples."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from star.config import Config
from star.sampling.sample import sample
from star.scoring import folder as scoring
from star.worlds.miniature.world import WORLD

_SCORED_BY = {"shapes": "geneval", "letters": "ocr", "preference": "pickscore"}
_GRID_ROWS, _GRID_COLUMNS = 6, 10


def write(base: Path, config: Config) -> dict[str, dict]:
    """Sample and score the test prompts of every set, write README.md and samples.png into `base`; summaries by scorer.

    `config` says how: its policy but for the model, its evaluation and its scorers.
    """
    summaries, pictures = {}, []
    each = _GRID_ROWS * _GRID_COLUMNS // len(_SCORED_BY)
    with TemporaryDirectory() as scratch:
        for prompt_set, scorer in _SCORED_BY.items():
            images = _sampled(prompt_set, base, config, Path(scratch))
            summaries[scorer] = scoring.score(scorer, images, Path(scratch, f"{scorer}.jsonl"), config.scorers)
            found = sorted(images.glob("*/samples/0000.png"))
            chosen = np.linspace(0, len(found) - 1, each).astype(int)
            pictures += [np.asarray(Image.open(found[i])) for i in chosen]
    rows = [np.concatenate(pictures[i : i + _GRID_COLUMNS], 1) for i in range(0, len(pictures), _GRID_COLUMNS)]
    grid = Image.fromarray(np.concatenate(rows))
    grid.resize((grid.width * 2, grid.height * 2), Image.Resampling.LANCZOS).save(base / "samples.png")
    training = json.loads((base / "training.json").read_text(encoding="utf-8"))
    (base / "README.md").write_text(_text(training, summaries, config), encoding="utf-8")
    return summaries


def _sampled(prompt_set: str, base: Path, config: Config, scratch: Path) -> Path:
    """A folder of pictures of a set's test prompts."""
    file, images = scratch / f"{prompt_set}-prompts.jsonl", scratch / prompt_set
    records = WORLD.records(prompt_set, "test", config.prompts)
    file.write_text("".join(json.dumps(record.as_dict()) + "\n" for record in records), encoding="utf-8")
    of_base = config.model_copy(update={"policy": config.policy.model_copy(update={"model": str(base)})})
    sample(of_base, file, images)
    return images


def _text(training: dict, summaries: dict[str, dict], config: Config) -> str:
    recipe, losses = training["recipe"], training["losses"]
    picked = [losses[i] for i in np.linspace(0, len(losses) - 1, min(8, len(losses))).astype(int)]
    tags = "\n".join(f"| {tag} | {value:.3f} |" for tag, value in summaries["geneval"]["tags"].items())
    return f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---

# The miniature base

A Stable Diffusion 3 pipeline at toy size (64 x 64 pixels), made to try post-training on two CPU cores. It knows five shapes in
five colours, counts to four, four relations, lettered plates and two backgrounds, and nothing else. Not for use on anything real.

All scores below are of the base itself, which has no adapter. So the fault of November 2026, which tested adapters at half strength, does
not touch them.

```python
from diffusers import StableDiffusion3Pipeline

pipe = StableDiffusion3Pipeline.from_pretrained("{Path(config.policy.model)}")
settings = {{"num_inference_steps": {config.evaluation.steps}, "guidance_scale": {config.policy.guidance}}}
settings |= {{"height": 64, "width": 64, "max_sequence_length": {config.policy.max_sequence_length}}}
image = pipe("a photo of a red circle", **settings).images[0]
```

![samples, untrained base](samples.png)

Two rows each of shapes, letters and preference prompts.

## Data
{recipe["images"]} rendered scenes (star/worlds/miniature/scenes.py), seed {recipe["seed"]}. {recipe["caption_dropout"]:.0%} of the captions are dropped in training. In the last
{recipe["noisy_share"]:.0%} of the steps captions are imperfect, as web captions are: {recipe["caption_noise"]:.0%} are another picture's; of lettered ones {recipe["word_noise"]:.0%} name another
word. The base knows every concept and follows the caption only mostly, which leaves post-training something to mend. The words of
the OCR test prompts are in no caption.

## Training
| part | steps | batch | hours on 2 cores | result |
|---|---|---|---|---|
| autoencoder | {recipe["autoencoder_steps"]} | {recipe["autoencoder_batch"]} | {training["autoencoder_hours"]:.2f} | mean squared error {training["autoencoder_mse"]:.4f} (pixels in -1..1) |
| transformer and text encoders | {recipe["steps"]} | {recipe["batch"]} | {training["hours"]:.2f} | flow-matching loss {losses[-1][1]:.3f} |

Optimizer: Muon (rate {recipe["muon_lr"]}) on the blocks' matrices, AdamW (rate {recipe["lr"]}) on the rest, linear decay over the last {recipe["decay_share"]:.0%}, average {recipe["ema"]}.
Noise levels: logit normal, mean {recipe["sigma_mean"]}, standard deviation {recipe["sigma_std"]}.

| step | {" | ".join(str(step) for step, _ in picked)} |
|---|{"---|" * len(picked)}
| loss | {" | ".join(f"{loss:.3f}" for _, loss in picked)} |

## Measured
Test prompts, {config.evaluation.images_per_prompt} images each, Euler ODE, {config.evaluation.steps} steps, guidance {config.policy.guidance}, seed 0.

| GenEval tag | share correct |
|---|---|
{tags}
| **overall** | **{summaries["geneval"]["mean"]:.3f}** |

OCR mean {summaries["ocr"]["mean"]:.3f}; PickScore of the miniature's own preference model {summaries["pickscore"]["mean"]:.3f}.

Recipe: `snakemake pretrain_miniature` (star/pretraining/pretrain.py). Licence: Apache-2.0, as the project.
"""
