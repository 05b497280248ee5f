"""Stage `report`: an experiment on one HTML page, pictures first, then curves, tables and maps. It opens from disk, whole."""

import base64
from dataclasses import dataclass
from pathlib import Path

import jinja2
from markdown_it import MarkdownIt

from star import layout
from star.config import Config, run_settings
from star.errors import InputError
from star.files import write_text

_TABLES = {"main": "Scores", "categories": "Scores by tag", "cost": "Cost", "guards": "Guards against collapse"}


@dataclass(frozen=True)
class Picture:
    """A figure inside the page: its heading, its bytes as a data URI, and what it shows, for those who cannot see it."""

    heading: str
    source: str
    shown: str


def write(config: Config, out: Path) -> None:
    """Write the page of the experiment's tables, figures and maps to `out`.

    Raises InputError, naming the file and its rule, when one of them is missing.
    """
    experiment = layout.experiment(config)
    tables = {name: _file(experiment / "tables" / f"{name}.md", "tables").read_text(encoding="utf-8") for name in _TABLES}
    words, _, main = tables["main"].partition("\n")
    text = _template().render(
        name=config.experiment,
        words=words,
        samples=_figure(experiment, "samples", "Before and after", "pictures of the same prompts and noise under every method"),
        curves=[
            _figure(experiment, "learning_curves", "Learning curves", "reward while training and test score over epochs"),
            _figure(experiment, "scores", "Scores and differences", "final scores of the methods with their intervals"),
        ],
        tables=[(_TABLES[name], _html(main if name == "main" else tables[name])) for name in _TABLES],
        maps=_maps(config),
        images=config.evaluation.images_per_prompt,
        seeds=config.seeds,
    )
    write_text(out, text)


def _figure(experiment: Path, name: str, heading: str, shown: str) -> Picture:
    return _picture(_file(experiment / "figures" / f"{name}.svg", "tables"), heading, shown)


def _maps(config: Config) -> list[Picture]:
    """The drawn maps of every task whose methods look at their attention, under the first seed."""
    pictures = []
    for task, method, seed in layout.runs(config, base=False):
        file = layout.run(config, task, method, seed).maps / "maps.svg"
        if seed == config.seeds[0] and run_settings(config, task, method).allocation.source == "attention" and file.exists():
            pictures.append(_picture(file, f"{task}, {method}", "allocation maps over the denoising steps on their pictures"))
    return pictures


def _picture(file: Path, heading: str, shown: str) -> Picture:
    return Picture(heading, f"data:image/svg+xml;base64,{base64.b64encode(file.read_bytes()).decode()}", shown)


def _file(path: Path, rule: str) -> Path:
    if not path.exists():
        raise InputError(f"{path}: is not there; `snakemake` makes it in its rule `{rule}`")
    return path


def _html(markdown: str) -> str:
    """A page of tables in HTML, without its title."""
    return MarkdownIt("commonmark").enable("table").render(markdown.partition("\n## ")[1] + markdown.partition("\n## ")[2])


def _template() -> jinja2.Template:
    loader = jinja2.PackageLoader("star.report", "")
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined).get_template("page.html.j2")
