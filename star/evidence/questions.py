"""What the evidence asks, and which methods answer it.

The methods' names are those of config/experiments/evidence-miniature.yaml, in the last question of evidence-replication.yaml.
"""

from typing import NamedTuple

import pandas as pd

from star.config import Config, methods_of
from star.errors import InputError


class Question(NamedTuple):
    """A question with its letter, the name of its figure, and the pairs (method, reference) whose difference answers it."""

    letter: str
    name: str
    title: str
    pairs: tuple[tuple[str, str], ...] = ()


ATTRIBUTE_METHODS = ("base", "flow_grpo", "star")  # sampled on the prompts of global attributes
# The first STAR and the final one, whose sharpness was tuned after it; corrected for their number apart from the rest.
MAIN = (
    ("star", "flow_grpo"),
    ("star", "random"),
    ("star_sharp", "flow_grpo"),
    ("star_sharp", "random"),
    ("star_sharp", "random_sharp"),
    ("star_sharp", "star"),
)
ATTRIBUTES = Question("b", "attributes", "Prompts of localised content against prompts of global attributes")
COST = Question("g", "cost", "What allocation costs in time and memory")
GUARDS = Question("h", "guards", "Diversity and other scores at equal reward")
QUESTIONS = (
    Question(
        "a",
        "controls",
        "Random and shuffled maps against attention maps",
        (
            ("star", "random"),
            ("star", "shuffled"),
            ("star", "oracle"),
            ("random", "flow_grpo"),
            ("shuffled", "flow_grpo"),
            ("oracle", "flow_grpo"),
        ),
    ),
    ATTRIBUTES,
    Question(
        "c",
        "granularity",
        "How many distinct maps over the trajectory, and how fine",
        (("four_maps", "star"), ("static", "star"), ("coarse", "star"), ("uniform", "star"), ("uniform", "flow_grpo")),
    ),
    Question(
        "d",
        "steps",
        "Early against late denoising steps",
        (
            ("star", "flow_grpo"),
            ("star_late", "flow_grpo_late"),
            ("flow_grpo_late", "flow_grpo"),
            ("star_late", "star"),
            ("spatio_temporal", "star"),
        ),
    ),
    Question("e", "tokens", "Core content against all tokens", (("all_tokens", "star"), ("all_tokens", "flow_grpo"))),
    Question(
        "f",
        "wrong_place",
        "Maps that point at the wrong place",
        (("inverse", "flow_grpo"), ("inverse", "star"), ("wrong_block", "flow_grpo"), ("wrong_block", "star")),
    ),
    COST,
    GUARDS,
    Question(
        "i",
        "objective",
        "Form of the objective and clip range",
        (
            ("per_location", "star"),
            ("star_wide_clip", "star"),
            ("flow_grpo_wide_clip", "flow_grpo"),
            ("star_wide_clip", "flow_grpo_wide_clip"),
        ),
    ),
    Question(
        "j",
        "update_size",
        "Equal learning rate against equal update size",
        (("star", "flow_grpo"), ("star_equal_update", "flow_grpo_equal_update")),
    ),
    Question(
        "k",
        "window",
        "All denoising steps against a window of them",
        (("star_all_steps", "flow_grpo_all_steps"), ("flow_grpo_all_steps", "flow_grpo"), ("star_all_steps", "star")),
    ),
)


def can_be_asked(config: Config) -> bool:
    """Whether a configuration has what evidence needs: two seeds, and `star` beside `flow_grpo` on some task."""
    return len(config.seeds) > 1 and any({"star", "flow_grpo"} <= set(methods_of(config, task)) for task in config.tasks)


def require(config: Config) -> None:
    """Raise InputError where `can_be_asked` is false."""
    if len(config.seeds) < 2:
        raise InputError("seeds: evidence needs at least two, better five; see config/experiments/evidence-miniature.yaml")
    if not can_be_asked(config):
        raise InputError("methods: evidence compares `star` with `flow_grpo` on the same task, two seeds of each at least")


def compared(table: pd.DataFrame, task: str, pairs: tuple[tuple[str, str], ...]) -> pd.DataFrame:
    """The rows of evidence.csv of those of the pairs that were compared on a task, in the pairs' order."""
    rows = table[table["task"] == task].set_index(["method", "reference"])
    return rows.loc[[pair for pair in pairs if pair in rows.index]].reset_index()


def answered(config: Config) -> list[Question]:
    """The questions that a configuration whose runs are all there answers."""
    known = {
        question: any(set(pair) <= set(methods_of(config, t)) for t in config.tasks for pair in question.pairs)
        for question in QUESTIONS
    }
    known |= {ATTRIBUTES: attribute_task(config) is not None, COST: True, GUARDS: True}
    return [question for question in QUESTIONS if known[question]]


def attribute_task(config: Config) -> str | None:
    """The task of free captions that question (b) is asked on, with `star` and `flow_grpo`; None where there is none."""
    for name, task in config.tasks.items():
        if task.prompts.set == "preference" and {"star", "flow_grpo"} <= set(methods_of(config, name)):
            return name
    return None
