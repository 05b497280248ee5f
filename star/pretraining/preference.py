"""The recipe of the miniature preference model: a small CLIP that stands in for PickScore (arXiv 2305.01569).

It prefers the picture that shows what the caption says, and the clean picture to the damaged one. It knows nothing of human
taste. Two kinds of pairs teach it, beside the usual contrast within a batch: a caption and its misreading, each with its own
picture; and a picture with its damaged copy. The scale of the logits is fixed, and matching clean pictures are held near
`LEVEL`, so that scores lie where PickScore's lie. Source of losses and damages: ours.

Shapes: B descriptions in a batch, D projection width.
"""

import itertools
import json
import math
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from scipy import ndimage
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor, CLIPTokenizer

from star.worlds.miniature.captions import TAGS, TEST_PROMPTS, caption, descriptions, misread, split
from star.worlds.miniature.scenes import SIZE, Scene, compose, render

SCALE, LEVEL = 50.0, 22.0
DAMAGES = ("blur", "noise", "posterise", "shuffle", "erase", "wobble")
MIXTURE = dict(zip((*TAGS[1:], "ocr", "free"), (0.1, 0.1, 0.05, 0.15, 0.1, 0.05, 0.45), strict=True))
_PATCH = 8


@dataclass(frozen=True)
class Recipe:
    """Settings of the training; the defaults made the embedded weights."""

    seed: int = 0
    pairs: int = 16384
    steps: int = 1000
    batch: int = 32
    lr: float = 2e-3
    warmup: int = 100
    held_out: int = 600


def damage(picture: np.ndarray, kind: str, severity: float, rng: np.random.Generator) -> np.ndarray:
    """A damaged copy of `picture`, uint8 [H, W, 3]; `kind` is one of DAMAGES, `severity` lies in 0..1."""
    x = picture.astype(np.float32)
    if kind == "blur":
        x = ndimage.gaussian_filter(x, (0.8 + 2.2 * severity,) * 2 + (0,))
    elif kind == "noise":
        x = x + rng.normal(0, 15 + 45 * severity, x.shape)
    elif kind == "posterise":
        step = 85 + 43 * severity
        x = (x + rng.uniform(0, step, 3)) // step * step
    elif kind in ("shuffle", "erase"):
        n, side = 2 + round(6 * severity), _PATCH + round(4 * severity)
        corners = rng.integers(0, SIZE - side, (n, 2, 2))
        for (y, x0), (v, u) in corners:
            there = x[v : v + side, u : u + side].copy()
            x[v : v + side, u : u + side] = x[y : y + side, x0 : x0 + side] if kind == "shuffle" else rng.uniform(0, 255)
            if kind == "shuffle":
                x[y : y + side, x0 : x0 + side] = there
    elif kind == "wobble":
        shifts = ndimage.gaussian_filter(rng.normal(size=(2, SIZE, SIZE)), (0, 4, 4))
        shifts *= (1.5 + 3.5 * severity) / shifts.std()
        where = np.mgrid[:SIZE, :SIZE] + shifts
        x = np.stack([ndimage.map_coordinates(x[..., c], where, order=1, mode="nearest") for c in range(3)], -1)
    else:
        raise ValueError(f"unknown damage {kind!r}; known: {', '.join(DAMAGES)}")
    return np.clip(x, 0, 255).round().astype(np.uint8)


def facts(scene: Scene) -> set[str]:
    """Everything a caption can truly say of a scene: exact counts, colours, relations, background, lettering."""
    if scene.text is not None:
        return {f"{scene.carrier} {scene.text}"}
    said = {"dark" if scene.background < 128 else "light"}
    for o in scene.objects:
        said.add(f"{sum(p.shape == o.shape for p in scene.objects)} {o.shape}")
        said.add(f"{sum((p.shape, p.color) == (o.shape, o.color) for p in scene.objects)} {o.color} {o.shape}")
    if len(scene.objects) == 2:
        for a, b in itertools.permutations(scene.objects):
            row = abs(a.x - b.x) > abs(a.y - b.y)
            relation = ("left of" if a.x < b.x else "right of") if row else ("above" if a.y < b.y else "below")
            said.add(f"{a.shape} {relation} {b.shape}")
    return said


def claims(d: dict) -> set[str]:
    """What a description says, in the words of `facts`."""
    if "text" in d:
        return {f"{d['carrier']} {d['text']}"}
    said = {d["background"]} if "background" in d else set()
    for item in d["include"]:
        said.add(f"{item['count']} {item['color']} {item['class']}" if "color" in item else f"{item['count']} {item['class']}")
        if "position" in item:
            said.add(f"{item['class']} {item['position'][0]} {d['include'][item['position'][1]]['class']}")
    return said


def draw_pairs(number: int, held_out: bool, mixture: dict[str, float], rng: np.random.Generator) -> tuple:
    """`number` descriptions of a split, each with its misreading.

    Returns (pictures uint8 [number, 2, SIZE, SIZE, 3], captions [number][2], claims [number][2], facts [number][2]); index 0
    of the second axis is the description, 1 the misreading.
    """
    counts = TEST_PROMPTS["geneval"] | TEST_PROMPTS["ocr"] | TEST_PROMPTS["pickscore"]
    pools = {tag: split(tag, counts[tag]) for tag in mixture}
    kept_back = {caption(d) for _, test in pools.values() for d in test}
    pictures = np.empty((number, 2, SIZE, SIZE, 3), np.uint8)
    texts, claimed, shown = [], [], []
    for i, tag in enumerate(rng.choice(list(mixture), number, p=list(mixture.values()))):
        pool = pools[tag][held_out]
        d = pool[int(rng.integers(len(pool)))]
        wrong = misread(d, rng)
        while caption(wrong) == caption(d) or (not held_out and caption(wrong) in kept_back):
            wrong = misread(d, rng)
        scenes = [compose(x, rng) for x in (d, wrong)]
        pictures[i] = [render(s) for s in scenes]
        texts.append([caption(d), caption(wrong)])
        claimed.append([claims(d), claims(wrong)])
        shown.append([facts(s) for s in scenes])
    return pictures, texts, claimed, shown


def untrained(tokenizer: CLIPTokenizer, seed: int) -> CLIPModel:
    """The model before training, initialised from `seed`."""
    torch.manual_seed(seed)
    shared = {"num_attention_heads": 4, "hidden_act": "gelu"}
    model = CLIPModel(
        CLIPConfig(
            text_config={
                "vocab_size": len(tokenizer),
                "hidden_size": 96,
                "intermediate_size": 192,
                "num_hidden_layers": 2,
                "max_position_embeddings": tokenizer.model_max_length,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                **shared,
            },
            vision_config={
                "hidden_size": 128,
                "intermediate_size": 256,
                "num_hidden_layers": 4,
                "image_size": SIZE,
                "patch_size": _PATCH,
                **shared,
            },
            projection_dim=64,
            logit_scale_init_value=math.log(SCALE),
        )
    )
    model.logit_scale.requires_grad_(False)
    return model


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _embed_pictures(model: CLIPModel, pictures: np.ndarray) -> torch.Tensor:
    return F.normalize(model.get_image_features(_pixels(pictures)).pooler_output, dim=-1)


def _embed_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


@torch.no_grad()
def ranking(model: CLIPModel, tokenizer: CLIPTokenizer, pairs: tuple, rng: np.random.Generator) -> dict[str, float]:
    """Shares of pairs ranked right (caption, picture, damage) and mean scores (matching, misread, damaged)."""
    pictures, texts, *_ = pairs
    damaged = np.stack([damage(p, str(rng.choice(DAMAGES)), rng.uniform(), rng) for p in pictures[:, 0]])
    right, wrong, broken = (_embed_pictures(model, p) for p in (pictures[:, 0], pictures[:, 1], damaged))
    said, misread_as = (_embed_texts(model, tokenizer, [t[i] for t in texts]) for i in (0, 1))

    def score(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return SCALE * (a * b).sum(-1)

    true = score(right, said)
    others = {"caption": score(right, misread_as), "picture": score(wrong, said), "damage": score(broken, said)}
    shares = {name: (true > s).float().mean().item() for name, s in others.items()}
    levels = {"matching": true, "misread_picture": others["picture"], "damaged": others["damage"]}
    return (
        shares
        | {f"mean_{n}": s.mean().item() for n, s in levels.items()}
        | {f"std_{n}": s.std().item() for n, s in levels.items()}
    )


def _loss(model: CLIPModel, tokenizer: CLIPTokenizer, pairs: tuple, rows: np.ndarray, rng: np.random.Generator) -> dict:
    pictures, texts, claimed, shown = pairs
    clean = pictures[rows].swapaxes(0, 1).reshape(-1, SIZE, SIZE, 3)  # 2B: described, then misread
    n = len(clean)
    damaged = np.stack([damage(p, str(rng.choice(DAMAGES)), rng.uniform(), rng) for p in clean[: n // 2]])
    images_ND = _embed_pictures(model, np.concatenate([clean, damaged]))
    texts_ND = _embed_texts(model, tokenizer, [texts[i][k] for k in (0, 1) for i in rows])
    scores = SCALE * images_ND @ texts_ND.T  # [3B, 2B]
    true = torch.tensor(
        [[claimed[i][k] <= shown[j][m] for k in (0, 1) for i in rows] for m in (0, 1) for j in rows]
    )  # captions true of a picture that is not their own are no negatives
    own = torch.arange(n)
    true[own, own] = False
    masked = scores.masked_fill(torch.cat([true, true[: n // 2]]), -torch.inf)
    target = torch.cat([own, own[: n // 2]])
    contrast = F.cross_entropy(masked, target) + F.cross_entropy(masked[:n].T, own)
    matching = scores[own, own]
    other = own.roll(n // 2)
    hard = F.softplus(scores[own, other] - matching) + F.softplus(scores[other, own] - matching)
    pairwise = F.softplus(scores[n:].diagonal() - matching[: n // 2]).mean()
    level = (matching.mean() - LEVEL).square()
    return {"contrast": contrast, "misread": hard.mean(), "damage": pairwise, "level": 0.01 * level}


def train(out: Path, recipe: Recipe) -> dict:
    """Train the model by `recipe` and save it, its tokenizer and image processor, and training.json, in folder `out`.

    Returns what training.json holds: recipe, seconds, losses (every 100 steps), ranking shares on held-out captions and unseen
    scenes. Deterministic on one machine for a given seed and thread count.
    """
    from star.pretraining.base import clip_tokenizer  # brings diffusers in, which scoring does without

    rng = np.random.default_rng([recipe.seed, 1])
    began = time.perf_counter()
    tokenizer = clip_tokenizer()
    model = untrained(tokenizer, recipe.seed).train()
    pairs = draw_pairs(recipe.pairs, False, MIXTURE, rng)
    weights = [p for p in model.parameters() if p.requires_grad]
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    chosen = {id(p) for p in hidden}
    optimizers = [
        torch.optim.Muon(hidden, lr=recipe.lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([p for p in weights if id(p) not in chosen], lr=recipe.lr, betas=(0.9, 0.98)),
    ]
    history, window = [], []
    bar = tqdm(range(recipe.steps), desc="preference", mininterval=10)
    for step in bar:
        rate = recipe.lr * min(1.0, (step + 1) / recipe.warmup, (recipe.steps - step) / (0.4 * recipe.steps))
        losses = _loss(model, tokenizer, pairs, rng.choice(recipe.pairs, recipe.batch, replace=False), rng)
        for optimizer in optimizers:
            optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
        window.append({k: v.item() for k, v in losses.items()})
        if (step + 1) % 100 == 0:
            history.append({"step": step + 1} | {k: round(float(np.mean([w[k] for w in window])), 4) for k in window[0]})
            bar.set_postfix(history[-1], refresh=False)
            window = []
    model.eval()
    held_out = {}
    for name, tags in (("geneval", TAGS), ("pickscore", ("free",)), ("ocr", ("ocr",))):
        unseen = draw_pairs(recipe.held_out, True, dict.fromkeys(tags, 1 / len(tags)), rng)
        held_out[name] = {k: round(v, 4) for k, v in ranking(model, tokenizer, unseen, rng).items()}
    report = {
        "recipe": asdict(recipe),
        "data": f"{recipe.pairs} described scenes, each with a misreading, drawn with shares {MIXTURE}; damages {DAMAGES}",
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(time.perf_counter() - began, 1),
        "held_out": held_out,
        "losses": history,
    }
    save(model, tokenizer, report, out)
    return report


def save(model: CLIPModel, tokenizer: CLIPTokenizer, report: dict, out: Path) -> None:
    """Write the model folder `out` (which must not exist or be empty), whole or not at all."""
    half = [0.5] * 3
    size = {"height": SIZE, "width": SIZE}
    images = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=half, image_std=half)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        folder = Path(work, "model")
        model.save_pretrained(folder)
        CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
        (folder / "training.json").write_text(json.dumps(report, indent=1) + "\n")
        write_golden(folder / "golden")
        folder.replace(out)


def write_golden(folder: Path) -> None:
    """Write the scenes, and captions in a circle, by which star.scoring.golden knows a model that sees and reads."""
    folder.mkdir()
    rng, lines = np.random.default_rng(0), []
    drawn = [next(descriptions(tag)) for tag in ("counting", "color_attr", "position", "ocr")]
    for number, (d, other) in enumerate(zip(drawn, drawn[1:] + drawn[:1], strict=True)):
        lines.append({"file": f"{number}.png", "prompt": caption(d), "worse": caption(other)})
        Image.fromarray(render(compose(d, rng))).save(folder / lines[-1]["file"])
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
