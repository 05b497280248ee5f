"""Where everything under results/ lies, which runs a configuration has and which of their epochs are tested.

    <results>/<experiment>/config.yaml, prompts/<task>/<split>.jsonl, tables/, figures/, logs/, benchmarks/
    <results>/<experiment>/<task>/<method>/seed<k>/     a run: metrics.jsonl, checkpoints/epoch0072/adapter/,
                                                        samples/epoch0072/, scores/epoch0072.jsonl, guards/, maps/,
                                                        pictures/epoch0072.png, system.jsonl

Rules and stages alike take their paths from here. An epoch is a number, or in a pattern of Snakemake's the name of its folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from star.config import Config, methods_of, published_epochs, run_settings

ADAPTER_FILE = "pytorch_lora_weights.safetensors"
_EPOCH = re.compile(r"epoch(\d{4,})")


def epoch_name(epoch: int | str) -> str:
    """`epoch0072` for 72; a name stays as it is."""
    return epoch if isinstance(epoch, str) else f"epoch{epoch:04d}"


def epoch_of(path: Path) -> int | None:
    """The epoch that a folder or file belongs to by its name: 72 for epoch0072 and epoch0072.jsonl; None for any other name."""
    found = _EPOCH.fullmatch(path.name.partition(".")[0])
    return int(found[1]) if found else None


@dataclass(frozen=True)
class Run:
    """The files of one training of a method on a task with a seed; of `base`, the untrained model, those of its test."""

    folder: Path

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def trained(self) -> Path:
        """The adapters' checksums, written when the training is finished."""
        return self.folder / "trained.sha256"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    @property
    def environment(self) -> Path:
        return self.folder / "environment.json"

    @property
    def maps(self) -> Path:
        return self.folder / "maps"

    @property
    def system(self) -> Path:
        """Processor, memory and GPUs over the training's time."""
        return self.folder / "system.jsonl"

    @property
    def pictures(self) -> Path:
        """Pictures of fixed prompts, drawn while training."""
        return self.folder / "pictures"

    def picture(self, epoch: int | str) -> Path:
        """The grid of an epoch's pictures; what is measured on them lies beside it as `.json`."""
        return self.pictures / f"{epoch_name(epoch)}.png"

    @property
    def best(self) -> Path:
        """Which checkpoint has the highest reward on the fixed prompts."""
        return self.checkpoints / "best.json"

    @property
    def step_backs(self) -> Path:
        """What the training did about each divergence: the epoch, where it went back to, and the factor of its rate."""
        return self.checkpoints / "step_backs.jsonl"

    @property
    def attributes(self) -> Path:
        """Pictures, scores and map statistics on prompts of global attributes."""
        return self.folder / "global"

    @property
    def logged(self) -> Path:
        """Written when the run was mirrored to MLflow."""
        return self.folder / "mlflow.done"

    def checkpoint(self, epoch: int | str) -> Path:
        return self.checkpoints / epoch_name(epoch)

    def adapter(self, epoch: int | str) -> Path:
        return self.checkpoint(epoch) / "adapter"

    def samples(self, epoch: int | str) -> Path:
        """The folder of test pictures."""
        return self.folder / "samples" / epoch_name(epoch)

    def scores(self, epoch: int | str, scorer: str | None = None) -> Path:
        """The scores of an epoch's pictures, by the scorer of the task's main column or by another reported `scorer`."""
        other = "" if scorer is None else "." + scorer.replace(":", ".")
        return self.folder / "scores" / f"{epoch_name(epoch)}{other}.jsonl"

    def guards(self, epoch: int | str) -> Path:
        return self.folder / "guards" / f"{epoch_name(epoch)}.json"


def experiment(config: Config) -> Path:
    """The folder of everything that an experiment produces."""
    return Path(config.results) / config.experiment


def run(config: Config, task: str, method: str, seed: int | str) -> Run:
    """The run of a method (or `base`) on a task with a seed."""
    return Run(experiment(config) / task / method / f"seed{seed}")


def prompts(config: Config, task: str, split: str) -> Path:
    """The prompt records of a task's split."""
    return experiment(config) / "prompts" / task / f"{split}.jsonl"


def runs(config: Config, base: bool = True) -> list[tuple[str, str, int]]:
    """(task, method, seed) of everything that is tested; without `base` of everything that is trained."""
    return [
        (task, method, seed)
        for task in config.tasks
        for method in (*(["base"] if base else []), *methods_of(config, task))
        for seed in config.seeds
    ]


def epochs(config: Config, task: str, method: str) -> list[int]:
    """The epochs whose checkpoints are sampled and scored, the last one last; [0] for the untrained model."""
    return [0] if method == "base" else sorted(published_epochs(run_settings(config, task, method)))
