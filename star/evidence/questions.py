"""What the evidence asks, and which methods answer it.

The methods' names are those of config/experiments/evidence-miniature.yaml and, in the last question, evidence-replication.yaml.
"""

from typing import NamedTuple

from star.config import Config, methods_of
from star.errors import InputError
from star.worlds.door import world

Pair = tuple[str, str]  # method, reference


class Question(NamedTuple):
    """A question with its letter, the name of its figure, and the pairs (method, reference) whose difference answers it.

    `about` says what its methods are. Beside the differences its figure has `diagnostics`, and the localisation `by_step`.
    """

    letter: str
    name: str
    title: str
    about: str
    pairs: tuple[Pair, ...] = ()
    diagnostics: tuple[str, ...] = ()
    by_step: bool = False

    @property
    def heading(self) -> str:
        return f"({self.letter}) {self.title}"


ATTRIBUTE_METHODS = ("base", "flow_grpo", "star")  # sampled on the prompts of global attributes
# The first STAR and the final one, whose sharpness was tuned after it; corrected for their number apart from the rest.
MAIN: tuple[Pair, ...] = (
    ("star", "flow_grpo"),
    ("star", "random"),
    ("star_sharp", "flow_grpo"),
    ("star_sharp", "random"),
    ("star_sharp", "random_sharp"),
    ("star_sharp", "star"),
)
ATTRIBUTES = Question(
    "b",
    "attributes",
    "Prompts of localised content against prompts of global attributes",
    "The prompts are free captions that are in no other set: contents without a ground, on a dark and on a light one, and "
    "captions whose objects all have one colour. A contrast is the difference to the captions of objects only.",
)
COST = Question(
    "g",
    "cost",
    "What allocation costs in time and memory",
    "Median epoch and peak memory over those of `flow_grpo` with the same seed. Trainings ran beside others on their machine.",
)
GUARDS = Question(
    "h",
    "guards",
    "Diversity and other scores at equal reward",
    "Guards of a method minus those of `flow_grpo` where both first reach the same test score, between two checkpoints.",
)
QUESTIONS = (
    Question(
        "a",
        "controls",
        "Random and shuffled maps against attention maps",
        "`random` has the very weights of the attention map at the places of smooth noise, `shuffled` at independent places. "
        "`oracle` looks at the true objects.",
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
        "`star` has a map a step and a weight a token. `four_maps` and `static` share 4 maps and 1 over the trajectory. "
        "`coarse` has one weight for 2 x 2 tokens. `uniform` has one for the picture: it is the scalar objective through the "
        "code of allocation, so its difference to `flow_grpo` must be exactly 0.",
        (("four_maps", "star"), ("static", "star"), ("coarse", "star"), ("uniform", "star"), ("uniform", "flow_grpo")),
    ),
    Question(
        "d",
        "steps",
        "Early against late denoising steps",
        "The `_late` methods train later steps. `spatio_temporal` gives steps with more attention to the core content more "
        "weight.",
        (
            ("star", "flow_grpo"),
            ("star_late", "flow_grpo_late"),
            ("flow_grpo_late", "flow_grpo"),
            ("star_late", "star"),
            ("spatio_temporal", "star"),
        ),
        by_step=True,
    ),
    Question(
        "e",
        "tokens",
        "Core content against all tokens",
        "`all_tokens` takes the attention to every word of the prompt, not only to its core content.",
        (("all_tokens", "star"), ("all_tokens", "flow_grpo")),
    ),
    Question(
        "f",
        "wrong_place",
        "Maps that point at the wrong place",
        "`inverse` turns the map upside down. `wrong_block` takes it from a block of the same base that localises badly.",
        (("inverse", "flow_grpo"), ("inverse", "star"), ("wrong_block", "flow_grpo"), ("wrong_block", "star")),
        ("map_localisation",),
    ),
    COST,
    GUARDS,
    Question(
        "i",
        "objective",
        "Form of the objective and clip range",
        "`per_location` has a ratio and a clip at every location. The `_wide_clip` methods have a wider clip range.",
        (
            ("per_location", "star"),
            ("star_wide_clip", "star"),
            ("flow_grpo_wide_clip", "flow_grpo"),
            ("star_wide_clip", "flow_grpo_wide_clip"),
        ),
        ("clip_fraction",),
    ),
    Question(
        "j",
        "update_size",
        "Equal learning rate against equal update size",
        "A concentrated map of mean one makes a longer gradient, so part of a difference could be a larger update. The "
        "`_equal_update` methods move the weights equally far in every update.",
        (("star", "flow_grpo"), ("star_equal_update", "flow_grpo_equal_update")),
        ("update_norm", "grad_norm"),
    ),
    Question(
        "k",
        "window",
        "All denoising steps against a window of them",
        "The `_all_steps` methods have noise on every step, as Flow-GRPO was first published. The others train a window of "
        "steps.",
        (("star_all_steps", "flow_grpo_all_steps"), ("flow_grpo_all_steps", "flow_grpo"), ("star_all_steps", "star")),
    ),
)


def families() -> dict[Pair, str]:
    """Every pair that is compared, with the family (`main`, `questions`) within which its p-value is corrected."""
    pairs = dict.fromkeys(pair for question in QUESTIONS for pair in question.pairs)
    return dict.fromkeys(MAIN, "main") | {pair: "questions" for pair in pairs if pair not in MAIN}


def letters(pair: Pair) -> str:
    """The letters of the questions that a pair answers."""
    return "".join(question.letter for question in QUESTIONS if pair in question.pairs)


def can_be_asked(config: Config) -> bool:
    """Whether a configuration has what evidence needs: two seeds, and `star` beside `flow_grpo` on some task."""
    return len(config.seeds) > 1 and any(_has_both(config, task) for task in config.tasks)


def require(config: Config) -> None:
    """Raise InputError where `can_be_asked` is false."""
    if len(config.seeds) < 2:
        raise InputError("seeds: evidence needs at least two, better five; see config/experiments/evidence-miniature.yaml")
    if not can_be_asked(config):
        raise InputError("methods: evidence compares `star` with `flow_grpo` on the same task, two seeds of each at least")


def _has_both(config: Config, task: str) -> bool:
    return {"star", "flow_grpo"} <= set(methods_of(config, task))


def answered(config: Config) -> list[Question]:
    """The questions that a configuration whose runs are all there answers."""

    def answers(question: Question) -> bool:
        if question in (COST, GUARDS):
            return True
        if question is ATTRIBUTES:
            return attribute_task(config) is not None
        return any(set(pair) <= set(methods_of(config, task)) for task in config.tasks for pair in question.pairs)

    return [question for question in QUESTIONS if answers(question)]


def attribute_task(config: Config) -> str | None:
    """The task of question (b): it has prompts of global attributes, `star` and `flow_grpo`. None where there is none."""
    return next((task for task in config.tasks if _has_global(config, task) and _has_both(config, task)), None)


def _has_global(config: Config, task: str) -> bool:
    prompt_set = config.tasks[task].prompts.set
    return prompt_set is not None and "global" in world(config.prompts.world).splits(prompt_set)


def looks_at_attributes(config: Config, task: str, method: str) -> bool:
    """Whether a run is also tested on the prompts of global attributes."""
    return task == attribute_task(config) and method in ATTRIBUTE_METHODS
