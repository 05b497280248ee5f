"""The configuration: what is accepted, what is refused and how, what wins over what."""

import itertools
import json
import re
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from star.config import Config, json_schema, load, methods_of, parse, run_settings
from star.config.objectives import OBJECTIVES
from star.config.reference import page
from star.errors import InputError
from star.prompts.record import Prompt
from star.training.train import check

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "config/miniature.yaml"
WHOLE = sorted([*ROOT.glob("config/*.yaml"), *ROOT.glob("config/experiments/*.yaml")])
PUBLISHED = [ROOT / f"config/{name}/sd35-medium.yaml" for name in ("nft", "pepg", "awm", "guard")]
PARTS = sorted([*ROOT.glob("config/gpus/*.yaml"), *ROOT.glob("config/fast/*.yaml")])


@pytest.fixture
def data() -> dict:
    return yaml.safe_load(MINIATURE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", WHOLE, ids=lambda f: f.name)
def test_every_configuration_in_the_repository_is_valid_and_named_after_its_experiment(file: Path) -> None:
    assert load(file).experiment == file.stem


def test_every_file_of_the_folder_is_tested() -> None:
    assert set(WHOLE + PARTS + PUBLISHED) == set(ROOT.glob("config/**/*.yaml"))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda f: f.parent.name)
def test_published_settings_of_other_objectives_can_be_trained(file: Path) -> None:
    config, name = load(file), file.parent.name
    assert config.experiment == f"sd35-medium-{name}"
    for task, method in itertools.product(config.tasks, config.methods):
        settings = run_settings(config, task, method)
        rollout = settings.rollout
        assert (settings.objective.name, rollout.groups, rollout.group_size) == (name, 48, 24)
        assert (rollout.window, rollout.same_start) == (None, False)
        # Flow-GRPO's weight of the base on this task would have been inherited
        assert settings.objective.kl_weight < 0.01
        check(settings, [Prompt(str(i), task, "any", "a dog") for i in range(48)])


@pytest.mark.parametrize("file", WHOLE + PARTS + PUBLISHED, ids=lambda f: f"{f.parent.name}-{f.name}")
def test_every_file_is_one_by_the_schema(file: Path) -> None:
    document = yaml.safe_load(file.read_text(encoding="utf-8"))
    jsonschema.validate(document, json.loads(json_schema()), jsonschema.Draft202012Validator)


def test_the_quick_configuration_changes_sizes_only() -> None:
    full, quick = (load(ROOT / f"config/{name}.yaml").model_dump() for name in ("miniature", "miniature-quick"))
    changed = {(s, k) for s in full if isinstance(full[s], dict) for k in full[s] if full[s][k] != quick[s][k]}
    sizes = {("rollout", "groups"), ("rollout", "batch"), ("training", "epochs"), ("checkpoints", "every")}
    sizes |= {("evaluation", "images_per_prompt"), ("evaluation", "batch")}
    assert changed <= sizes | {("tasks", "shapes")}
    overrides = [config["tasks"]["shapes"].pop("overrides") for config in (full, quick)]
    assert full["tasks"] == quick["tasks"] and full["methods"] == quick["methods"]
    assert overrides[0]["rollout"] == overrides[1]["rollout"] and overrides[0].keys() == overrides[1].keys()


def test_the_ablation_is_the_miniature_with_more_methods_and_one_task() -> None:
    full, ablation = load(MINIATURE), load(ROOT / "config/experiments/ablation-miniature.yaml")
    assert {k for k in Config.model_fields if getattr(full, k) != getattr(ablation, k)} == {"experiment", "tasks", "methods"}
    assert ablation.tasks == {"shapes": full.tasks["shapes"]}
    assert full.methods.items() <= ablation.methods.items()
    wanted = "uniform shuffled static last_step first_step spatial_only spatio_temporal all_tokens inverse per_location oracle"
    assert set(wanted.split()) <= set(ablation.methods)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epohcs=3", "training.epohcs: no such key"),
        ("training.epochs=0", "training.epochs: Input should be greater than 0"),
        ("training.epochs=true", "training.epochs: true is a switch"),
        ("rollout.group_size=1", "rollout.group_size"),
        ("optimizer.learning_rate=.inf", "optimizer.learning_rate: Input should be a finite number"),
        ("optimizer.learning_rate=1e999", "optimizer.learning_rate: Input should be a finite number"),
        ("objective.kl_weight=.nan", "objective.kl_weight: Input should be a finite number"),
        ("objective.name=ppo", "objective.name: no objective 'ppo'; there are flow_grpo, guard, nft, pepg, awm"),
        ("objective=3", "objective: a section with the name of an objective; there are flow_grpo"),
        ("objective.branch_strength=1", "objective.branch_strength: no such key"),
        ("methods.star.objective={name: nft, clip_range: 1}", "methods.star.objective.clip_range: no such key"),
        ("tasks.shapes.reward.beauty=1.0", "tasks.shapes.reward.beauty: no scorer 'beauty'"),
        ("tasks.shapes.report=[ocr, ocr]", "tasks.shapes.report: a scorer is named twice"),
        ("tasks.shapes.report=[]", "tasks.shapes.report"),
        ("tasks.shapes.prompts=ocr", "tasks.shapes.prompts: no set `ocr` in the world `miniature`; it has shapes"),
        ("tasks.shapes.prompts={test: mine.txt}", "tasks.shapes.prompts.train: no file"),
        ("tasks.Shapes={prompts: shapes, reward: {ocr: 1}}", "'Shapes' is no name of a task"),
        ("tasks.tables={prompts: shapes, reward: {ocr: 1}}", "'tables' is the name of another folder"),
        ("methods.a b={}", "'a b' is no name of a method"),
        ("methods.a|b={}", "'a|b' is no name of a method"),
        ("methods.star.policy.guidance=2.0", "methods.star.policy: no such key"),
        ("tasks.letters.overrides.policy.guidance=2.0", "tasks.letters.overrides.policy: only rollout, objective, optimizer"),
        ("methods.star.tasks=[shapes, beauty]", "methods.star.tasks: no `beauty` under tasks"),
        ("methods.star.tasks=[]", "methods.star.tasks"),
        ("methods.star.allocation.sauce=none", "methods.star.allocation.sauce: no such key"),
        ("tasks.letters.overrides.objective.kl_weight=-1", "tasks.letters.overrides.objective.kl_weight"),
        ("methods.base.training.epochs=3", "`base` names the untrained model"),
        ("experiment=Mine", "experiment"),
        ("methods.it={objective: {form: per_location}}", "objective.form: per_location needs a map"),
        ("methods.it={allocation: {control: random}}", "allocation: control: random needs maps to change"),
        ("methods.star.allocation.tokens=[]", "methods.star.allocation.tokens"),
        ("seeds=[0, 0]", "seeds: 0 stands twice"),
        ("seeds=[true]", "seeds: true is a switch"),
        ("seeds=[-1]", "seeds.0: Input should be greater than or equal to 0"),
        ("seeds=[]", "seeds"),
        ("results=", "--set results=: no value"),
        ("results=''", "results: '' is no path"),
        ("results=-rf", "results: '-rf' would be taken for an option"),
        ("results=a folder", "results: 'a folder' has a letter that a shell would take apart"),
        ("results=runs;ls", "results: 'runs;ls' has a letter"),
        ("results={a: 1}", "results"),
        ("results=$NO_SUCH_VARIABLE/runs", "results: $NO_SUCH_VARIABLE/runs: a variable or user in it is not known"),
        ("policy.model=~nobody-of-that-name/base", "policy.model: ~nobody-of-that-name/base: a variable or user"),
        ("training", "--set training: write it as section.key=value"),
        ("=3", "--set =3: write it as section.key=value"),
        ("training..epochs=3", "--set training..epochs=3: write it as section.key=value"),
        ("seeds.first=1", "--set seeds.first: `seeds` is not a section"),
        ("training.epochs=[", "--set training.epochs=[: not valid YAML"),
        ("results=@scratch", "--set results=@scratch: not valid YAML"),
        ("results=%x", "--set results=%x: not valid YAML"),
        ("seeds=2026-02-30", "--set seeds=2026-02-30: not valid YAML"),
        ("training={epochs: 3, epochs: 4}", "the key `epochs` stands twice"),
        ("seeds=&a [*a]", "--set seeds=&a [*a]: nested too deeply"),
        ("extends=other.yaml", "extends: no such key"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(override: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        load(MINIATURE, [override])
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"a: [", "not valid YAML"),
        (b"- 1", "mapping of sections"),
        (b"seeds: [0]\nseeds: [1]\n", "the key `seeds` stands twice"),
        (b"experiment: caf\xe9\n", "not UTF-8 text"),
        (b"? [a, b]\n: 1\n", "a key is a list or a mapping"),
        (b"[" * 3000, "nested too deeply"),
        (b"extends: 3\n", "extends: name one file"),
        (b"extends: none.yaml\n", "none.yaml: no such configuration file"),
        (b"!!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: bytes, says: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes(text)
    with pytest.raises(InputError) as refused:
        load(file)
    assert str(refused.value).startswith(str(tmp_path)) and says in str(refused.value) and "\n" not in str(refused.value)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such configuration file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="a folder; name a configuration file in it"):
        load(tmp_path)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"\xef\xbb\xbf" + MINIATURE.read_bytes())
    assert load(tmp_path / "c.yaml") == load(MINIATURE)


def test_a_missing_section_is_named(data: dict) -> None:
    del data["training"]
    with pytest.raises(InputError, match=r"^x\.yaml: training"):
        parse(data, "x.yaml")


def test_the_method_wins_over_the_task_and_the_task_over_the_file(data: dict) -> None:
    data["tasks"]["letters"]["overrides"] = {"objective": {"kl_weight": 0.5}, "optimizer": {"learning_rate": 0.125}}
    data["methods"]["star"]["objective"] = {"kl_weight": 0.25}
    config = parse(data, "x.yaml")
    runs = (("letters", "star"), ("letters", "random"), ("shapes", "star"))
    star, random, elsewhere = (run_settings(config, *run) for run in runs)
    assert (star.objective.kl_weight, random.objective.kl_weight, elsewhere.objective.kl_weight) == (0.25, 0.5, 0.25)
    assert star.optimizer.learning_rate == 0.125
    assert elsewhere.optimizer.learning_rate == data["optimizer"]["learning_rate"]
    assert star.allocation.source == "attention" and star.allocation.blocks == data["allocation"]["blocks"]
    assert run_settings(config, "letters", "base").allocation.source == "none"


@pytest.mark.parametrize(
    "said", [["training.epochs=3"], {"training": {"epochs": 3}}, ["training={epochs: 3, updates_per_epoch: 2}"]]
)
def test_the_command_line_wins_over_file_task_and_method(data: dict, said: list | dict, tmp_path: Path) -> None:
    data["methods"]["star"]["training"] = {"epochs": 7, "ema_every": 5}
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump(data))
    assert run_settings(load(file), "shapes", "flow_grpo").training.epochs == 72
    config = load(file, said)
    for task, method in itertools.product(config.tasks, config.methods):
        assert run_settings(config, task, method).training.epochs == 3
    assert run_settings(config, "shapes", "star").training.ema_every == 5  # not said, so the method's
    assert parse(config.model_dump(mode="json"), "resolved") == config  # what jobs read needs no memory of it


def test_what_the_command_line_says_of_a_task_or_method_stays() -> None:
    said = ["training.epochs=3", "methods.star.training.epochs=4", "tasks.shapes.overrides.training.epochs=5"]
    for overrides in (said, said[::-1]):
        config = load(MINIATURE, overrides)
        found = {run: run_settings(config, *run).training.epochs for run in itertools.product(config.tasks, config.methods)}
        assert found["shapes", "star"] == found["letters", "star"] == 4
        assert found["shapes", "random"] == 5 and found["letters", "random"] == 3


def test_layers_lie_over_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/one.yaml").write_text(f"extends: {MINIATURE}\nexperiment: one\ntraining: {{epochs: 5}}\nseeds: [1, 2]\n")
    (tmp_path / "deep/two.yaml").write_text("rollout: {steps: 6, window: null, window_range: null}\n")
    top = "extends: [deep/one.yaml, deep/two.yaml]\ntasks: {shapes: null, letters: {reward: {pickscore: 1}}}\n"
    (tmp_path / "top.yaml").write_text(top + "methods: {random: null, mine: {rollout: {steps: 4}}}\n")
    config = load(tmp_path / "top.yaml")
    assert (config.experiment, config.training.epochs, config.training.ema_every, config.seeds) == ("one", 5, 2, [1, 2])
    assert (config.rollout.steps, config.rollout.window) == (6, None)
    assert list(config.tasks) == ["letters", "preference"] and list(config.methods) == ["flow_grpo", "star", "mine"]
    assert config.tasks["letters"].reward == {"pickscore": 1} and config.tasks["letters"].prompts.set == "letters"
    assert load([MINIATURE, tmp_path / "deep/two.yaml"]).rollout == config.rollout
    (tmp_path / "away.yaml").write_text("extends: miniature-quick.yaml\nseeds: [5]\n")
    monkeypatch.chdir(ROOT)  # the known configurations can be extended from anywhere
    assert load(tmp_path / "away.yaml") == load("config/miniature-quick.yaml", ["seeds=[5]"])
    (tmp_path / "deep/two.yaml").write_text("extends: ../top.yaml\n")
    with pytest.raises(InputError, match=r"extends itself, by way of .*two\.yaml"):
        load(tmp_path / "top.yaml")


def test_the_file_that_has_the_wrong_value_is_named(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(f"extends: {MINIATURE}\ntraining: {{epochs: none}}\n")
    (tmp_path / "top.yaml").write_text("extends: below.yaml\nseeds: [3]\n")
    with pytest.raises(InputError, match=rf"^{tmp_path}/below\.yaml: training\.epochs"):
        load(tmp_path / "top.yaml")
    with pytest.raises(InputError, match=r"^command line: training\.epochs"):
        load(tmp_path / "top.yaml", ["training.epochs=few"])


def test_users_and_variables_in_paths_are_filled_in(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    config = load(MINIATURE, ["results=~/runs", "policy.model=$SCRATCH/base", "scorers.ocr.weights=${SCRATCH}/ocr"])
    assert (config.results, config.policy.model) == (f"{tmp_path}/runs", "/scratch/me/base")
    assert config.scorers.ocr.weights == "/scratch/me/ocr"


def test_a_method_can_be_for_some_tasks_alone(data: dict) -> None:
    data["methods"]["star"]["tasks"] = ["shapes"]
    config = parse(data, "x.yaml")
    assert methods_of(config, "shapes") == ["flow_grpo", "star", "random"]
    assert methods_of(config, "letters") == ["flow_grpo", "random"]
    assert run_settings(config, "shapes", "star") == run_settings(load(MINIATURE), "shapes", "star")
    with pytest.raises(InputError, match=r"methods\.star\.tasks: `star` is not for `letters`"):
        run_settings(config, "letters", "star")
    del data["tasks"]["shapes"]
    with pytest.raises(InputError, match=r"methods\.star\.tasks: no `shapes` under tasks; it has letters, preference"):
        parse(data, "x.yaml")
    data["methods"] = {"star": {"tasks": ["letters"]}}
    with pytest.raises(InputError, match=r"tasks\.preference: no method is for it"):
        parse(data, "x.yaml")


def test_unknown_tasks_and_methods_are_refused_with_what_there_is(data: dict) -> None:
    del data["tasks"]["letters"]
    config = parse(data, "x.yaml")
    with pytest.raises(InputError, match="no `letters` in the configuration; it has shapes, preference"):
        run_settings(config, "letters", "star")
    with pytest.raises(InputError, match="it has shapes, letters, preference; `ocr` is now called `letters`"):
        run_settings(load(MINIATURE), "ocr", "star")
    with pytest.raises(InputError, match="no `stars` in the configuration; it has flow_grpo, star, random"):
        run_settings(config, "shapes", "stars")


def test_a_task_names_its_prompts_reward_and_report(tmp_path: Path) -> None:
    """Train on one prompt set with a reward of one's own, report three scorers on another."""
    (tmp_path / "c.yaml").write_text(
        f"extends: {MINIATURE}\n"
        "tasks:\n"
        "  bright:\n"
        "    prompts: {set: shapes, test: mine.txt}\n"
        "    reward: {my_rewards:brightness: 1.0, geneval: 0.5}\n"
        "    report: [my_rewards:brightness, geneval, pickscore]\n"
    )
    config = load(tmp_path / "c.yaml")
    settings = run_settings(config, "bright", "star")
    assert settings.prompts_set.model_dump(exclude_none=True) == {"set": "shapes", "test": "mine.txt"}
    assert settings.reward == {"my_rewards:brightness": 1.0, "geneval": 0.5}
    assert settings.report == ["my_rewards:brightness", "geneval", "pickscore"]
    assert config.tasks["letters"].report == ["ocr"]


def test_the_resolved_configuration_says_the_same() -> None:
    config = load(MINIATURE)
    resolved = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert parse(resolved, "resolved") == config


def test_the_schema_file_is_the_one_of_the_classes_and_refuses_unknown_keys(data: dict) -> None:
    text = (ROOT / "workflow/schemas/config.schema.json").read_text(encoding="utf-8")
    assert text == json_schema(), "write it again: make schema"
    data["training"]["epohcs"] = 3
    with pytest.raises(jsonschema.ValidationError, match="epohcs"):
        jsonschema.validate(data, json.loads(text))


def test_the_reference_page_has_every_key_as_it_is() -> None:
    text = (ROOT / "config/README.md").read_text(encoding="utf-8")
    assert text == page(text), "write it again: make schema"
    for name, objective in OBJECTIVES.items():
        table = text.partition(f"### `objective: {{name: {name}}}`")[2].partition("\n#")[0]
        keys = set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
        assert keys == objective.model_fields.keys() - {"name"}
    for key in ("| `epochs` | required |", "| `geneval.batch` | 8 |", "| `lora.rank` | 32 |", "| `report` | the reward's |"):
        assert key in text


def test_every_dependency_has_a_reason_and_the_conda_environments_the_same_lists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    names = {re.match(r"[\w-]+", requirement)[0] for requirement in project["dependencies"]}
    text = (ROOT / "docs/dependencies.md").read_text()
    assert set(re.findall(r"^\| ([\w-]+) \| ", text, re.MULTILINE)) - {"package"} == names
    for requirement in itertools.chain(*project["optional-dependencies"].values()):
        assert re.match(r"[\w-]+", requirement)[0] in text
    for name, extras in (("star", []), ("easyocr", project["optional-dependencies"]["easyocr"])):
        environment = yaml.safe_load((ROOT / f"envs/{name}.yaml").read_text())
        (packages,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
        assert packages == project["dependencies"] + extras
