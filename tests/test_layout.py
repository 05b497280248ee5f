"""Where results lie: names of epochs, folders of runs."""

from pathlib import Path

import pytest

from star import layout
from star.config import load

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(("epoch", "name"), [(0, "epoch0000"), (72, "epoch0072"), (12345, "epoch12345")])
def test_an_epoch_and_its_name_are_the_same(epoch: int, name: str) -> None:
    assert layout.epoch_name(epoch) == name and layout.epoch_of(Path(f"scores/{name}.jsonl")) == epoch
    assert layout.epoch_of(Path(f"checkpoints/{name}")) == epoch


@pytest.mark.parametrize("name", ["step72", "epoch72", ".epoch0072.tmp", "epoch0072-old", "epoch"])
def test_other_names_are_no_epochs(name: str) -> None:
    assert layout.epoch_of(Path(name)) is None


def test_a_run_has_its_folder_and_epochs() -> None:
    config = load(ROOT / "config/miniature.yaml", ["training.epochs=40", "seeds=[3, 4]"])
    task = list(config.tasks)[1]
    run = layout.run(config, task, "star", 3)
    assert run.adapter(16) == Path(f"results/miniature/{task}/star/seed3/checkpoints/epoch0016/adapter")
    assert run.scores("epoch{epoch}") == run.folder / "scores/epoch{epoch}.jsonl"  # a pattern of Snakemake's
    assert layout.epochs(config, task, "star") == [16, 32, 40] and layout.epochs(config, task, "base") == [0]
    assert len(layout.runs(config)) == len(config.tasks) * (1 + len(config.methods)) * 2
    assert ("base", 3) not in {run[1:] for run in layout.runs(config, base=False)}
