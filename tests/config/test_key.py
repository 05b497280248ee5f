"""Keys: what makes two trainings, pictures or scores different, and what does not."""

import re
from pathlib import Path

import pytest
from pydantic import Field

from star.config import Config, RunSettings, load, run_settings
from star.config import key as keys
from star.config.fields import Section
from star.config.key import counted, maps_key, prompts_key, sampling_key, scoring_key, training_key, weights_digest
from star.errors import InputError
from star.hub import lock

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def _settings(*changes: str, task: str = "letters", method: str = "star") -> RunSettings:
    return run_settings(load("config/miniature.yaml", changes), task, method)


def _config(*changes: str) -> Config:
    return load("config/miniature.yaml", changes)


@pytest.mark.parametrize(
    "change",
    [
        "objective.kl_weight=0.011",
        "methods.star.rollout.steps=9",
        "rollout.batch=24",
        "optimizer.betas=[0.8, 0.9]",
        "training.updates_per_epoch=1",
        "training.ema_every=3",
        "training.reward_combination=standardised",
        "allocation.floor=0.5",
        "policy.lora.rank=3",
        "policy.model=resources/miniature",  # other files
        "scorers.ocr.size=7",  # the reward reads
        "tasks.letters.reward.ocr=0.5",
        "tasks.letters.prompts=shapes",
        "prompts.filter_unsafe=false",
    ],
)
def test_what_changes_numbers_changes_the_training_key(change: str) -> None:
    assert training_key(_settings(change)) != training_key(_settings())


@pytest.mark.parametrize(
    "change",
    [
        "seeds=[7]",
        "training.epochs=99",  # a longer run continues a shorter one
        "training.max_kl=0.5",
        "training.step_backs=2",  # so that a training that has diverged can be told to
        "checkpoints={every: 3, save_every: 1, keep_states: 5}",
        "compute={processes: 4, gradient_checkpointing: true, compile: true}",
        "evaluation={steps: 3, batch: 7}",
        "prompts.mirror=/somewhere",
        "methods.random.rollout.steps=9",
        "tasks.shapes.reward.geneval=0.5",
        "tasks.letters.report=[ocr, pickscore]",
        "scorers={device: auto, workers: 2, diversity: pixels}",
        "scorers.ocr.weights=/somewhere",
        "scorers.geneval.batch=3",
        "scorers.geneval.size=64",  # not the reward's
        "scorers.pickscore.precision=bfloat16",
        "results=elsewhere",
    ],
)
def test_what_changes_no_number_leaves_the_training_key(change: str) -> None:
    if change.startswith("scorers={"):
        change = change.replace("}", ", ocr: {engine: rapidocr, mode: line, size: 64}}")
    assert training_key(_settings(change)) == training_key(_settings())


def test_the_detectors_batch_is_speed_alone_where_it_is_the_reward() -> None:
    whole = training_key(_settings(task="shapes"))
    assert training_key(_settings("scorers.geneval.batch=3", task="shapes")) == whole
    assert training_key(_settings("scorers.geneval.size=64", task="shapes")) != whole


def test_maps_that_nobody_uses_do_not_count() -> None:
    scalar = training_key(_settings(method="flow_grpo"))
    assert training_key(_settings("allocation.blocks=[2]", "allocation.floor=0.5", method="flow_grpo")) == scalar


def test_a_new_field_with_a_default_orphans_nothing() -> None:
    class Before(Section):
        steps: int = 8

    class After(Before):
        added: str = Field("as before")
        faster: bool = Field(False, json_schema_extra={"speed_only": True})

    assert counted(Before(steps=9)) == counted(After(steps=9)) == counted(After(steps=9, faster=True)) == {"steps": 9}
    assert counted(After(added="another")) == {"added": "another"}


def test_keys_are_what_they_were() -> None:
    """Of settings without weights and files: a change of these strings orphans every run there is."""
    assert counted(_settings().rollout) == {
        "steps": 8,
        "groups": 8,
        "group_size": 12,
        "batch": 48,
        "same_start": True,
        "window": 3,
        "window_range": (0, 6),
    }
    assert prompts_key(_settings(), "train") == "2199cd5a7bff"
    assert scoring_key(_config(), "ocr") == "54556531cd90"


@pytest.mark.parametrize("stage", ["training", "sampling", "scoring", "prompts"])
def test_a_new_version_of_the_code_is_another_key(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = _keys()
    monkeypatch.setitem(keys.VERSIONS, stage, keys.VERSIONS[stage] + 1)
    changed = {name for name, key in _keys().items() if key != before[name]}
    # a training reads prompts and scores
    touched = {"training": {"training"}, "sampling": {"sampling", "maps"}, "scoring": {"scoring", "training"}}
    assert changed == touched.get(stage, {"prompts", "training"})


def _keys() -> dict[str, str]:
    settings = _settings()
    return {
        "training": training_key(settings),
        "sampling": sampling_key(settings),
        "maps": maps_key(settings),
        "scoring": scoring_key(settings, "ocr"),
        "prompts": prompts_key(settings, "train"),
    }


def test_pictures_depend_on_how_they_are_drawn() -> None:
    assert sampling_key(_settings()) == sampling_key(_config()) == sampling_key(_config("rollout.steps=3"))
    assert sampling_key(_config("evaluation.batch=3")) == sampling_key(_config())
    for change in ("evaluation.steps=3", "evaluation.images_per_prompt=2", "policy.guidance=2.0"):
        assert sampling_key(_config(change)) != sampling_key(_config())
    assert maps_key(_settings("allocation.blocks=[0]")) != maps_key(_settings()) == maps_key(_settings("scorers.workers=3"))


def test_scores_depend_on_their_own_scorer() -> None:
    assert scoring_key(_config("scorers.ocr.mode=page"), "pickscore") == scoring_key(_config(), "pickscore")
    assert scoring_key(_config("scorers.ocr.mode=page"), "ocr") != scoring_key(_config(), "ocr")
    other = _config("scorers.pickscore.model=some/clip", f"scorers.pickscore.revision={'cd' * 20}")
    assert scoring_key(other, "pickscore") != scoring_key(_config(), "pickscore")
    # the miniature's detector has no weights
    assert scoring_key(_config("scorers.geneval.model=other/detector"), "geneval") == scoring_key(_config(), "geneval")
    commits = ("aa" * 20, "bb" * 20)
    detectors = [f"scorers.geneval={{detector: mask2former, model: some/detector, revision: {c}}}" for c in commits]
    assert scoring_key(_config(detectors[0]), "geneval") != scoring_key(_config(detectors[1]), "geneval")


def test_an_edited_reward_or_prompt_file_is_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.txt").write_text("a red circle\n")
    (tmp_path / "my_own_reward.py").write_text("def f(images, records): return [0.0] * len(images)\n")
    task = "tasks={mine: {prompts: {set: shapes, train: train.txt}, reward: {my_own_reward:f: 1.0}}}"

    def key() -> str:
        config = load(ROOT / "config/miniature.yaml", [task, f"policy.model={ROOT / 'resources/miniature/base'}"])
        return training_key(run_settings(config, "mine", "star"))

    first = key()
    (tmp_path / "train.txt").write_text("a blue circle\n")
    second = key()
    (tmp_path / "my_own_reward.py").write_text("def f(images, records): return [1.0] * len(images)\n")
    third = key()
    assert len({first, second, third}) == 3
    (tmp_path / "train.txt").write_text("a red circle\n")
    (tmp_path / "my_own_reward.py").write_text("def f(images, records): return [0.0] * len(images)\n")
    assert key() == first
    (tmp_path / "train.txt").unlink()
    with pytest.raises(InputError, match=r"train\.txt: cannot be read"):
        key()


def test_weights_are_named_by_content_or_commit(tmp_path: Path, hub_cache: Path) -> None:
    for place in ("one", "two"):
        (tmp_path / place / "transformer").mkdir(parents=True)
        (tmp_path / place / "transformer/model.safetensors").write_bytes(b"weights")
        (tmp_path / place / "model_index.json").write_text("{}")
    one, two = (str(tmp_path / place) for place in ("one", "two"))
    same = weights_digest(one)
    assert weights_digest(two) == same  # moved
    (tmp_path / "one/README.md").write_text("a card")
    (tmp_path / "one/training.json").write_text("its history")
    assert weights_digest(one) == same
    (tmp_path / "one/model_index.json").write_text('{"shift": 2}')
    (tmp_path / "two/transformer/model.safetensors").write_bytes(b"others")
    assert len({same, weights_digest(one), weights_digest(two)}) == 3
    pinned = weights_digest("some/model", "ab" * 20)
    (hub_cache.parent / "config").mkdir()
    lock.merge(lock.Lock(commits={"some/model": "ab" * 20}))
    assert pinned == weights_digest("some/model")  # the lock's commit
    for place, revision, says in (
        ("no/such/folder", None, "scorers.geneval.model: no folder no/such/folder"),
        ("other/model", None, "scorers.geneval.revision: other/model has no commit"),
        ("other/model", "main", "scorers.geneval.revision: 'main' of other/model"),
    ):
        with pytest.raises(InputError, match=re.escape(says)):
            weights_digest(place, revision, "scorers.geneval.model")
    assert pinned != weights_digest("some/model", "cd" * 20) != weights_digest("other/model", "cd" * 20)
