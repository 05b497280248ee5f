"""Stage: `star pretrain-miniature`. The preference model, the base, and its model card; a killed run goes on."""

from dataclasses import asdict
from pathlib import Path

import yaml
from pydantic import TypeAdapter, ValidationError

from star.config import Config
from star.errors import InputError
from star.pretraining import card, preference, pretrain


def recipes(changes: list[str]) -> tuple[pretrain.Recipe, preference.Recipe]:
    """The recipes of the base and of the preference model, with changes `base.KEY=VALUE` and `preference.KEY=VALUE`.

    Raises InputError for a key that a recipe does not have and for a value that does not fit.
    """
    made = {"base": pretrain.Recipe(), "preference": preference.Recipe()}
    for change in changes:
        key, _, value = change.partition("=")
        part, _, name = key.partition(".")
        if part not in made or name not in asdict(made[part]):
            raise InputError(f"--recipe {change}: write it as base.KEY=VALUE or preference.KEY=VALUE, of a recipe's keys")
        try:
            made[part] = TypeAdapter(type(made[part])).validate_python(asdict(made[part]) | {name: yaml.safe_load(value)})
        except (ValidationError, yaml.YAMLError):
            raise InputError(f"--recipe {change}: not a value of {key}, which is {asdict(made[part])[name]!r}") from None
    return made["base"], made["preference"]


def run(config: Config, out: Path, work: Path, changes: list[str]) -> None:
    """Make `out`/pickscore, unless it is there, and `out`/base with its card; `work` keeps what resuming needs.

    Raises InputError as `recipes`.
    """
    base_recipe, preference_recipe = recipes(changes)
    if not (out / "pickscore" / "training.json").exists():
        preference.train(out / "pickscore", preference_recipe)
    pretrain.pretrain(out / "base", work, base_recipe)
    card.write(out / "base", config)
