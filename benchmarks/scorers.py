"""How fast each scorer is on this machine, and the share of an epoch that scoring takes.

    python -m benchmarks.scorers [--images 96] [--true-size 2] [--epochs 4]

Prints the tables of docs/reference/scorers.md in Markdown. Scorers run in one thread, as in the workers of a training.
The miniature's run on rendered pictures of its test prompts. The published models are built at their true size with random
weights (no result means anything, the work is the same) and go through the same loaders; --true-size 0 leaves them out, each
needs up to 8 GB of memory and 2 GB under TMPDIR. The share is measured in epochs of `star` that do the same work three times:
the sampling waits for every score, a thread scores beside it (scorers.workers 0), a process does (1). Source: ours.
"""

import argparse
import datetime
import itertools
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm
from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation, Mask2FormerImageProcessorPil, SwinConfig

from benchmarks.sd35_medium import clip_text, clip_vision, save_clip, save_pickscore
from star import config as configuration
from star.cli import quiet_libraries
from star.config import Config, Geneval, Pickscore, Scorers
from star.objectives.door import make_objective
from star.prompts import make
from star.prompts.record import Prompt
from star.runtime import processor
from star.scoring.colors import ClipColors
from star.scoring.detection import Detection
from star.scoring.mask2former import Mask2Former
from star.scoring.pickscore import PickScorer
from star.scoring.pool import RewardPool
from star.scoring.scorer import make_scorer
from star.training.epoch import Session, run_epoch
from star.training.learner import Learner
from star.training.processes import Processes
from star.training.train import make_policy
from star.worlds.coco.geneval import CLASSES
from star.worlds.door import world
from star.worlds.miniature.scenes import compose, render

SIDE = 512  # pixels of a picture for the published models
WAYS = {"none: sampling waits": 0, "a thread (workers 0)": 0, "a process (workers 1)": 1}


def timed(work: Callable[[], object], count: int) -> tuple[float, float]:
    """(items a second by the clock, CPU seconds an item) of `work`, which does `count` items."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return count / (time.perf_counter() - wall), (time.process_time() - cpu) / count


def rendered(config: Config, task: str, count: int) -> tuple[list[np.ndarray], list[Prompt]]:
    """Test prompts of the miniature, spread over its tags, and pictures that show them."""
    records = make.records(config, task, "test")
    chosen = [records[i] for i in np.linspace(0, len(records) - 1, count).round().astype(int)]
    return [render(compose(r.metadata, np.random.default_rng(i))) for i, r in enumerate(chosen)], chosen


def miniature(config: Config, count: int) -> Iterator[tuple]:
    """Rows of the throughput table: scorer, on what, items a second, CPU seconds an item."""
    page = config.scorers.model_copy(update={"ocr": config.scorers.ocr.model_copy(update={"mode": "page", "size": 256})})
    for name, task, scorers in (
        ("GenEval, the miniature's detector", "shapes", config.scorers),
        ("OCR, rapidocr, mode `line`", "letters", config.scorers),
        ("OCR, rapidocr, mode `page` at 256 pixels", "letters", page),
        ("PickScore, the miniature's model", "preference", config.scorers),
    ):
        scorer, (images, records) = make_scorer(config.tasks[task].report[0], scorers), rendered(config, task, count)
        scorer(images[:4], records[:4])  # warm up
        yield name, f"{count} pictures of 64 px", *timed(lambda s=scorer, i=images, r=records: s(i, r), count)


def mask2former(folder: Path) -> str:
    """A random Mask2Former Swin-S as of COCO instances, sure of its classes so that masks are made of its detections."""
    swin = SwinConfig(
        image_size=384,
        embed_dim=96,
        depths=[2, 2, 18, 2],
        num_heads=[3, 6, 12, 24],
        window_size=7,
        out_features=[f"stage{i}" for i in range(1, 5)],
    )
    model = Mask2FormerForUniversalSegmentation(Mask2FormerConfig(backbone_config=swin, id2label=dict(enumerate(CLASSES))))
    model.class_predictor.weight.data *= 40
    model.save_pretrained(folder)
    Mask2FormerImageProcessorPil().save_pretrained(folder)
    return str(folder)


def true_size(folder: Path, count: int) -> Iterator[tuple]:
    """As `miniature`, of the published models' true sizes with random weights."""
    rng = np.random.default_rng(0)
    images = [
        np.kron(rng.integers(0, 256, (8, 8, 3)), np.ones((SIDE // 8, SIDE // 8, 1))).astype(np.uint8) for _ in range(count)
    ]
    on = f"{count} picture{'s' * (count > 1)} of {SIDE} px"

    detector = Mask2Former(Scorers(geneval=Geneval(model=mask2former(folder / "detector")), device="cpu"))
    yield "GenEval, Mask2Former Swin-S", on, *timed(lambda: detector.detect(images), count)

    cpu, large = torch.device("cpu"), folder / "large"
    save_clip(large, clip_text(768, 12, 12, "quick_gelu"), clip_vision(1024, 24, 16), 768, torch.float32, cpu)
    colors = ClipColors(Scorers(geneval=Geneval(color_model=str(large)), device="cpu"))
    mask = np.zeros((SIDE, SIDE), bool)
    mask[64:448, 64:448] = True
    objects = [(image, Detection("dog", (64.0, 64.0, 448.0, 448.0), 1.0, mask)) for image in images]
    one = timed(lambda: colors(objects[:1]), 1)
    yield "GenEval, the first colour of a class (30 texts), CLIP ViT-L/14", "1 object", *one
    yield "GenEval, a colour, CLIP ViT-L/14", f"{count} object{'s' * (count > 1)}", *timed(lambda: colors(objects), count)

    huge = folder / "huge"
    save_pickscore(huge, cpu)
    scorer = PickScorer(Scorers(pickscore=Pickscore(model=str(huge), processor=str(huge)), device="cpu"))
    asked = [Prompt(str(i), "any", "any", f"picture {i}") for i in range(count)]
    yield "PickScore, CLIP ViT-H/14, one prompt a picture", on, *timed(lambda: scorer(images, asked), count)


class Waiting:
    """A pool without overlap: `submit` returns when the scores are there. `seconds` is what that took in all."""

    def __init__(self, pool: RewardPool) -> None:
        self.pool, self.seconds = pool, 0.0

    def submit(self, images: Sequence[np.ndarray], records: Sequence[Prompt]) -> Future:
        began = time.perf_counter()
        future = self.pool.submit(images, records)
        future.result()
        self.seconds += time.perf_counter() - began
        return future


def shares(config: Config, task: str, epochs: int) -> Iterator[tuple]:
    """Rows: task, way, median seconds an epoch, median seconds that it waits for scores, their median share.

    The learning rate is so small that every epoch does the same work in each way.
    """
    settings = configuration.run_settings(config, task, "star")
    settings = settings.model_copy(update={"optimizer": settings.optimizer.model_copy(update={"learning_rate": 1e-9})})
    records = make.records(config, task, "train")
    learner = Learner(make_policy(settings, 0), settings.optimizer, settings.training)
    objective, processes, regions = make_objective(settings), Processes(), world(settings.prompts.world).regions
    seconds: dict[str, list] = {way: [] for way in WAYS}
    with (
        RewardPool(settings.reward, settings.scorers, 0) as thread,
        RewardPool(settings.reward, settings.scorers, 1) as process,
    ):
        for pool in (thread, process):
            pool.check(records)
        for epoch in tqdm(range(epochs + 1), desc=task, unit="epoch"):
            for way, pool in zip(WAYS, (Waiting(thread), thread, process), strict=True):
                began = time.perf_counter()
                session = Session(settings, 0, records, learner, objective, pool, processes, regions)
                row = run_epoch(session, epoch, first=False)
                waited = row["seconds_reward"] + (pool.seconds if isinstance(pool, Waiting) else 0)
                if epoch:  # the first warms up
                    seconds[way].append((time.perf_counter() - began, waited))
    for way, pairs in seconds.items():
        epoch_E, waited_E = np.array(pairs).T
        yield task, way, np.median(epoch_E), np.median(waited_E), np.median(waited_E / epoch_E)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="config/miniature.yaml")
    parser.add_argument("--images", type=int, default=96, help="rendered pictures for each of the miniature's scorers")
    parser.add_argument("--true-size", type=int, default=2, metavar="N", help="pictures for each published model")
    parser.add_argument("--epochs", type=int, default=4, help="epochs of each task and way; 0 leaves the shares out")
    args = parser.parse_args(argv)
    quiet_libraries()
    config, threads = configuration.load(args.config), torch.get_num_threads()
    print(f"{datetime.date.today()}, {processor()} ({os.cpu_count()} cores), torch {torch.__version__};")
    print(f"scorers in one thread, training in {threads}.\n")
    print("| scorer | on | a second | CPU s each |\n|---|---|---|---|")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        published = true_size(Path(folder), args.true_size) if args.true_size else ()
        for name, on, rate, cpu in itertools.chain(miniature(config, args.images), published):
            print(f"| {name} | {on} | {rate:.3g} | {cpu:.2g} |", flush=True)
    torch.set_num_threads(threads)
    if not args.epochs:
        return
    os.environ["OMP_NUM_THREADS"] = "1"  # for the scoring process, which imports this file before it can say so itself
    print("\n| task | overlap | epoch, s | waits for scores, s | share |\n|---|---|---|---|---|")
    for task in config.tasks:
        for _, way, epoch, waited, share in shares(config, task, args.epochs):
            print(f"| {task} | {way} | {epoch:.2f} | {waited:.3f} | {share:.1%} |", flush=True)


if __name__ == "__main__":
    main()
