"""The configuration: what is accepted, what is refused and how, what the files beside it say."""

import itertools
import json
import re
import tomllib
import typing
from pathlib import Path

import jsonschema
import pytest
import yaml
from pydantic import BaseModel

from star.config import Config, json_schema, load, methods_of, parse, run_settings
from star.errors import InputError

ROOT = Path(__file__).parents[2]
MINIATURE = ROOT / "config/miniature.yaml"


def keys(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Dotted names of all keys of a section, taken from its annotations."""
    found = set()
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys(inner, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


@pytest.fixture
def data() -> dict:
    return yaml.safe_load(MINIATURE.read_text())


@pytest.mark.parametrize("file", sorted(ROOT.glob("config/*.yaml")), ids=lambda f: f.name)
def test_every_configuration_in_the_repository_is_valid_and_named_after_its_experiment(file: Path):
    assert load(file).experiment == file.stem
    jsonschema.validate(yaml.safe_load(file.read_text()), json.loads(json_schema()), jsonschema.Draft202012Validator)


def test_the_quick_configuration_changes_sizes_only():
    full, quick = (yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in ("miniature", "miniature-quick"))
    changed = {(s, k) for s in full if isinstance(full[s], dict) for k in full[s] if full[s][k] != quick[s].get(k)}
    sizes = {("rollout", "groups"), ("rollout", "group_size"), ("rollout", "batch"), ("training", "epochs")}
    sizes |= {("training", "checkpoint_every"), ("evaluation", "images_per_prompt"), ("evaluation", "batch")}
    assert changed <= sizes | {("tasks", "geneval")} and full.keys() == quick.keys()
    for config in (full, quick):
        config["tasks"]["geneval"]["overrides"]["training"] = None  # epochs and checkpoint_every
    assert full["tasks"] == quick["tasks"]
    assert {k for k in full if not isinstance(full[k], dict) and full[k] != quick[k]} == {"experiment"}


def test_the_ablation_is_the_miniature_with_more_methods_and_one_task():
    full, ablation = (
        yaml.safe_load((ROOT / f"config/{name}.yaml").read_text()) for name in ("miniature", "ablation-miniature")
    )
    assert {k for k in full if full[k] != ablation[k]} == {"experiment", "tasks", "methods"}
    assert ablation["tasks"] == {"geneval": full["tasks"]["geneval"]}
    assert full["methods"].items() <= ablation["methods"].items()
    asked = "uniform shuffled static last_step first_step spatial_only spatio_temporal all_tokens inverse per_location oracle"
    assert set(asked.split()) <= set(ablation["methods"])


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.epohcs=3", "training.epohcs: no such key"),
        ("training.epochs=0", "training.epochs: Input should be greater than 0"),
        ("rollout.group_size=1", "rollout.group_size"),
        ("tasks.geneval.reward.beauty=1.0", "tasks.geneval.reward.beauty"),
        ("methods.star.policy.guidance=2.0", "methods.star.policy: no such key"),
        ("tasks.ocr.overrides.policy.guidance=2.0", "tasks.ocr.overrides.policy: only rollout, training, allocation"),
        ("methods.star.tasks=[geneval, beauty]", "methods.star.tasks.1"),
        ("methods.star.tasks=[]", "methods.star.tasks"),
        ("methods.star.allocation.sauce=none", "methods.star.allocation.sauce: no such key"),
        ("tasks.ocr.overrides.training.kl_beta=-1", "tasks.ocr.overrides.training.kl_beta"),
        ("methods.base.training.epochs=3", "methods.base: `base` names the untrained model"),
        ("experiment=Mine", "experiment"),
        ("training", "--set training: write it as section.key=value"),
        ("methods.it={allocation: {objective: per_location}}", "allocation: objective: per_location needs a map"),
        ("methods.star.allocation.tokens=[]", "methods.star.allocation.tokens"),
        ("seeds.first=1", "--set seeds.first=1: `seeds` is not a section"),
    ],
)
def test_a_wrong_key_or_value_is_named_in_one_line(override: str, says: str):
    with pytest.raises(InputError) as refused:
        load(MINIATURE, [override])
    assert says in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(("text", "says"), [("a: [", "not valid YAML"), ("- 1", "mapping of sections")])
def test_a_file_that_is_no_configuration_is_named(tmp_path: Path, text: str, says: str):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=rf"^{re.escape(str(file))}: .*{says}"):
        load(file)
    with pytest.raises(InputError, match="no such configuration file"):
        load(tmp_path / "none.yaml")


def test_a_missing_section_is_named(data: dict):
    del data["rollout"]
    with pytest.raises(InputError, match=r"^x\.yaml: rollout"):
        parse(data, "x.yaml")


def test_the_method_wins_over_the_task_and_the_task_over_the_file(data: dict):
    data["tasks"]["ocr"]["overrides"] = {"training": {"kl_beta": 0.5, "learning_rate": 0.125}}
    data["methods"]["star"]["training"] = {"kl_beta": 0.25}
    config = parse(data, "x.yaml")
    star, random, elsewhere = (run_settings(config, *run) for run in (("ocr", "star"), ("ocr", "random"), ("geneval", "star")))
    assert (star.training.kl_beta, random.training.kl_beta, elsewhere.training.kl_beta) == (0.25, 0.5, 0.25)
    assert (star.training.learning_rate, elsewhere.training.learning_rate) == (0.125, data["training"]["learning_rate"])
    assert star.allocation.source == "attention" and star.allocation.blocks == data["allocation"]["blocks"]
    assert run_settings(config, "ocr", "base").allocation.source == "none"


def test_a_method_can_be_for_some_tasks_alone(data: dict):
    data["methods"]["star"]["tasks"] = ["geneval"]
    config = parse(data, "x.yaml")
    assert [methods_of(config, task) for task in ("geneval", "ocr")] == [
        ["flow_grpo", "star", "random"],
        ["flow_grpo", "random"],
    ]
    assert run_settings(config, "geneval", "star") == run_settings(load(MINIATURE), "geneval", "star")
    with pytest.raises(InputError, match=r"methods\.star\.tasks: `star` is not for `ocr`"):
        run_settings(config, "ocr", "star")
    del data["tasks"]["geneval"]
    with pytest.raises(InputError, match=r"methods\.star\.tasks: no `geneval` under tasks; it has ocr, pickscore"):
        parse(data, "x.yaml")
    data["methods"] = {"star": {"tasks": ["ocr"]}}
    with pytest.raises(InputError, match=r"tasks\.pickscore: no method is for it"):
        parse(data, "x.yaml")


def test_unknown_tasks_and_methods_are_refused_with_what_there_is(data: dict):
    del data["tasks"]["ocr"]
    config = parse(data, "x.yaml")
    with pytest.raises(InputError, match="no `ocr` in the configuration; it has geneval, pickscore"):
        run_settings(config, "ocr", "star")
    with pytest.raises(InputError, match="no `stars` in the configuration; it has flow_grpo, star, random"):
        run_settings(config, "geneval", "stars")


def test_the_digest_tells_trainings_apart_and_nothing_else(data: dict):
    digest = run_settings(parse(data, "x.yaml"), "ocr", "star").digest()
    shuffled = dict(reversed(data.items())) | {"seeds": [7]}
    assert run_settings(parse(shuffled, "y.yaml"), "ocr", "star").digest() == digest
    for change in ("training.kl_beta=0.011", "methods.star.rollout.steps=9", "scorers.ocr_size=7", "policy.lora.rank=3"):
        assert run_settings(load(MINIATURE, [change]), "ocr", "star").digest() != digest
    # A longer run continues a shorter one; how it is tested, how fast it scores and other methods do not touch it.
    for change in ("training.epochs=99", "evaluation.steps=3", "scorers.workers=2", "methods.random.rollout.steps=9"):
        assert run_settings(load(MINIATURE, [change]), "ocr", "star").digest() == digest


def test_the_resolved_configuration_says_the_same():
    config = load(MINIATURE)
    resolved = yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))
    assert parse(resolved, "resolved") == config


def test_the_schema_file_is_the_one_of_the_classes_and_refuses_unknown_keys(data: dict):
    schema = json.loads((ROOT / "workflow/schemas/config.schema.json").read_text())
    draft = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    assert schema == draft | json.loads(json_schema()), "write it again: make schema"
    data["training"]["epohcs"] = 3
    with pytest.raises(jsonschema.ValidationError, match="epohcs"):
        jsonschema.validate(data, schema)


def test_every_key_is_documented():
    text = (ROOT / "config/README.md").read_text()
    top, *sections = re.split(r"^## ", text.split("## Top level")[1], flags=re.MULTILINE)
    documented = set(re.findall(r"^\| `([\w.]+)` \|", top, re.MULTILINE))
    for section in sections:
        name = re.match(r"`(\w+)`", section)[1]
        documented |= {f"{name}.{key}" for key in re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)}
    task = typing.get_args(Config.model_fields["tasks"].annotation)[1]
    assert documented == keys(Config) | {f"tasks.{key}" for key in keys(task)}


def test_every_dependency_has_a_reason_and_the_conda_environments_the_same_lists():
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
