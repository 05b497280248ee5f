"""Where everything lies, what every rule runs on, and which settings it depends on. No rules here."""

import hashlib

import yaml

from star import layout
from star.config import SCORERS, key, main_scorer, methods_of, run_settings
from star.evidence import questions
from star.files import require_writable, write_text
from star.hub.fetch import needs
from star.scoring.scorer import needed
from star.tracking import store

EXPERIMENT = layout.experiment(CONFIG)
RUN = layout.run(CONFIG, "{task}", "{method}", "{seed}")  # of the job's wildcards
PROMPTS = layout.prompts(CONFIG, "{task}", "{split}")
TEST_PROMPTS = layout.prompts(CONFIG, "{task}", CONFIG.evaluation.split)
CREDIT = layout.credit(CONFIG, "{task}")
LOGS, BENCHMARKS = f"{EXPERIMENT}/logs", f"{EXPERIMENT}/benchmarks"
RESOLVED = EXPERIMENT / "config.yaml"
TABLES = ["main", "categories", "cost", "ablation", "guards"]
FIGURES = ["learning_curves", "scores", "categories", "samples"]
try:
    NEEDS = "\n".join(needs(CONFIG))  # from the network; locks the commits of unpinned repositories once
except InputError as error:
    raise WorkflowError(str(error)) from None
FETCHED_FILE = EXPERIMENT / f"fetched-{hashlib.sha256(NEEDS.encode()).hexdigest()[:12]}.txt"
# Fetching the same again reruns nothing. Needs that changed have another file: had they the same, Snakemake would stop at the
# ancient file of a job that it is about to run, and not look at what lies behind it.
FETCHED = [ancient(FETCHED_FILE)] if NEEDS else []
METHODS = list(CONFIG.methods)
SCORING_WITH = needed(CONFIG)

# A conda environment brings its own python; otherwise it is the one that runs Snakemake.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
ENVIRONMENT = "OMP_WAIT_POLICY=PASSIVE"  # Snakemake sets OMP_NUM_THREADS and its kin to {threads}
if workflow.deployment_settings.deployment_method:
    ENVIRONMENT = f"PYTHONPATH={workflow.basedir} {ENVIRONMENT}"
OFFLINE = f"HF_HUB_OFFLINE=1 {ENVIRONMENT}"  # what jobs need from the hub the rule `fetch` has brought
ONLINE_STAR, STAR = (f"{environment} {PYTHON} -m star.cli" for environment in (ENVIRONMENT, OFFLINE))

SCORING = f"../../envs/{'easyocr' if CONFIG.scorers.ocr.engine == 'easyocr' else 'star'}.yaml"  # environment of rules that score

GPUS = 0 if CONFIG.policy.device == "cpu" else 1
PROCESSES, MACHINES = CONFIG.compute.processes, CONFIG.compute.machines
ON_GPUS = f"{PYTHON} {workflow.basedir}/workflow/scripts/on_gpus.py"  # jobs side by side take different ones
GPU_STAR = f"{OFFLINE} {ON_GPUS} {GPUS} {PYTHON} -m star.cli" if GPUS else STAR
TRAIN = f"{GPU_STAR} train"
if PROCESSES > 1:
    chooser = f"{ON_GPUS} {PROCESSES} " if GPUS and MACHINES == 1 else ""  # over several machines SLURM chooses
    launch = f"{workflow.basedir}/workflow/scripts/launch {PYTHON} {PROCESSES} {MACHINES} train"
    TRAIN = f"PYTHONPATH={workflow.basedir} {OFFLINE} {chooser}{launch}"


wildcard_constraints:
    task="|".join(CONFIG.tasks),
    method="|".join(["base", *METHODS]),
    seed=r"\d+",
    split="train|validation|test|global",


def require_places():
    """Say before the first job what the last one would meet: a folder that cannot be written, a database of another version."""
    try:
        require_writable(EXPERIMENT, folder=True)
        store.require_usable(CONFIG)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def write_resolved_config():
    """The configuration with all overrides and defaults, which the jobs read. Rules depend on keys, not on this file."""
    text = yaml.safe_dump(CONFIG.model_dump(mode="json"), sort_keys=False)
    if not (RESOLVED.exists() and RESOLVED.read_text(encoding="utf-8") == text):
        write_text(RESOLVED, text)


def settings_of(wildcards):
    """The settings of the job's task and method."""
    return run_settings(CONFIG, wildcards.task, wildcards.get("method", "base"))


def scoring_keys(task):
    """What scores and guards of a task depend on: its main scorer, and all those that the guards may look with."""
    guards = [scorer for scorer in SCORERS if scorer in SCORING_WITH]
    return [key.scoring_key(CONFIG, scorer) for scorer in (main_scorer(CONFIG, task), *guards)] + [CONFIG.scorers.diversity]


def trained(wildcards):
    """What a job on a trained method waits for; nothing for the untrained model."""
    return [] if wildcards.method == "base" else [run_of(wildcards).trained]


def run_of(wildcards):
    return layout.run(CONFIG, wildcards.task, wildcards.method, wildcards.seed)


def epochs(wildcards):
    return layout.epochs(CONFIG, wildcards.task, wildcards.method)


def adapter_files(wildcards):
    """The adapters that a training must have left."""
    return [run_of(wildcards).adapter(epoch) / layout.ADAPTER_FILE for epoch in epochs(wildcards)]


def adapter_option(wildcards):
    """--adapter of the job's last checkpoint; nothing for the untrained model."""
    return "" if wildcards.method == "base" else f"--adapter {run_of(wildcards).adapter(epochs(wildcards)[-1])}"


def weights(*folders):
    """The weight files of local model folders; nothing for a hub repository."""
    return sorted(str(file) for folder in folders for file in Path(folder).glob("**/*.safetensors"))


def scorer_weights(*scorers):
    """The weight files of some scorers, and the modules of users' own ones."""
    own = [str(key.function_file(name)) for name in scorers if ":" in name]
    return own + (weights(CONFIG.scorers.pickscore.model) if "pickscore" in scorers else [])


def of_epochs(file, task, method, seed="{seed}"):
    """A file of every tested epoch of a run; `file` is a method of layout.Run."""
    run = layout.run(CONFIG, task, method, seed)
    return [str(file(run, epoch)) for epoch in layout.epochs(CONFIG, task, method)]


def sampled(task, method, seed="{seed}"):
    """What is written last of every tested epoch's pictures of a run."""
    return [f"{folder}/prompts.jsonl" for folder in of_epochs(layout.Run.samples, task, method, seed)]


def scores(task, method, seed):
    """The scores of every tested epoch of a run, by the scorer of the task's main column and by the others that it reports."""
    run, others = layout.run(CONFIG, task, method, seed), CONFIG.tasks[task].report[1:]
    return [run.scores(epoch, scorer) for epoch in layout.epochs(CONFIG, task, method) for scorer in (None, *others)]


def maps(task, method, seed):
    """The figure of a method that looks at its attention, for the first seed; nothing for the others."""
    allocation = run_settings(CONFIG, task, method).allocation
    looks = allocation.source == "attention" and allocation.control in ("none", "inverse")
    return [layout.run(CONFIG, task, method, seed).maps / "maps.svg"] if looks and int(seed) == CONFIG.seeds[0] else []


RUNS, RUNS_AND_BASE = layout.runs(CONFIG, base=False), layout.runs(CONFIG)
TESTED = list(dict.fromkeys((task, method) for task, method, _ in RUNS_AND_BASE))


def all_prompts():
    return [layout.prompts(CONFIG, task, split) for task in CONFIG.tasks for split in ("train", CONFIG.evaluation.split)]


def all_trained():
    return [layout.run(CONFIG, *run).trained for run in RUNS]


def all_samples():
    return [file for run in RUNS_AND_BASE for file in sampled(*run)]


def all_scores():
    return [file for run in RUNS_AND_BASE for file in scores(*run)]


def all_guards():
    return [file for run in RUNS_AND_BASE for file in of_epochs(layout.Run.guards, *run)]


def all_maps():
    return [file for run in RUNS for file in maps(*run)]


def all_logged():
    return [layout.run(CONFIG, *run).logged for run in RUNS_AND_BASE]


def all_credit():
    return [layout.credit(CONFIG, task) / "mlflow.done" for task in CONFIG.tasks]


def all_attributes():
    """Scores and map statistics on prompts of global attributes, where the evidence can ask about them."""
    task = questions.attribute_task(CONFIG)
    if task is None:
        return []
    runs = [layout.run(CONFIG, task, method, seed) for method in questions.ATTRIBUTE_METHODS for seed in CONFIG.seeds]
    maps = [layout.run(CONFIG, task, "star", seed).attributes / "map_statistics.csv" for seed in CONFIG.seeds]
    return [run.attributes / "scores.jsonl" for run in runs] + maps


def evidence_figures():
    """(file name, title) of the figures that `star evidence` draws."""
    return [("main", "main comparisons"), *((question.name, question.heading) for question in questions.answered(CONFIG))]


def all_evidence():
    """Nothing with a single seed, which is no evidence."""
    return rules.evidence.output if questions.can_be_asked(CONFIG) else []
