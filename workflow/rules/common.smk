"""Where everything lies, what every rule runs on, and which settings it depends on. No rules here."""

import hashlib
import json
import os

import yaml

from star.config import DRAWN_BY, methods_of, published_epochs, run_settings
from star.evidence import questions
from star.hub.fetch import needs
from star.scoring import custom

EXPERIMENT = Path(CONFIG.results) / CONFIG.experiment
RUN = f"{EXPERIMENT}/{{task}}/{{method}}/seed{{seed}}"
LOGS, BENCHMARKS = f"{EXPERIMENT}/logs", f"{EXPERIMENT}/benchmarks"
RESOLVED = EXPERIMENT / "config.yaml"
ADAPTER_FILE = "pytorch_lora_weights.safetensors"
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
TASKS, METHODS, SEEDS = list(CONFIG.tasks), list(CONFIG.methods), CONFIG.seeds

# A conda environment brings its own python; otherwise it is the one that runs Snakemake.
PYTHON = "python" if workflow.deployment_settings.deployment_method else sys.executable
ENVIRONMENT = "OMP_WAIT_POLICY=PASSIVE"  # Snakemake sets OMP_NUM_THREADS and its kin to {threads}
if workflow.deployment_settings.deployment_method:
    ENVIRONMENT = f"PYTHONPATH={workflow.basedir} {ENVIRONMENT}"
OFFLINE = f"HF_HUB_OFFLINE=1 {ENVIRONMENT}"  # what jobs need from the hub the rule `fetch` has brought
ONLINE_STAR, STAR = (f"{environment} {PYTHON} -m star.cli" for environment in (ENVIRONMENT, OFFLINE))

SCORING = f"../../envs/{'easyocr' if CONFIG.scorers.ocr_engine == 'easyocr' else 'star'}.yaml"  # environment of rules that score

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
    task="|".join(TASKS),
    method="|".join(["base", *METHODS]),
    seed=r"\d+",
    step=r"\d+",
    split="train|validation|test|global",


def write_resolved_config():
    """The configuration with all overrides and defaults, which the jobs read. Rules depend on `digest`, not on this file."""
    text = yaml.safe_dump(CONFIG.model_dump(mode="json"), sort_keys=False)
    if RESOLVED.exists() and RESOLVED.read_text() == text:
        return
    RESOLVED.parent.mkdir(parents=True, exist_ok=True)
    unfinished = RESOLVED.with_name(f".config.yaml.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(RESOLVED)


def digest(*sections):
    """A parameter function: a digest of sections of the settings of the job's task and method.

    As a parameter it makes Snakemake rerun a job when one of these settings changes, and only then.
    """

    def of_job(wildcards):
        settings = run_settings(CONFIG, wildcards.task, wildcards.get("method", "base")).model_dump(mode="json")
        for key in ("workers", "diversity"):  # how many processes score, and how a guard looks, change no score
            settings["scorers"].pop(key)
        settings["prompts"].pop("mirror")  # holds the same files as the published place
        if not settings["prompts"]["files"]:
            settings["prompts"].pop("files")
        for key in ("max_kl", "save_every", "keep_states"):
            settings["training"].pop(key)
        text = json.dumps([settings[name] for name in sections])
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    return of_job


def steps(task, method):
    """Epoch counts at which a run is sampled and scored."""
    if method == "base":
        return [0]
    return sorted(published_epochs(run_settings(CONFIG, task, method).training))


def run_folder(task, method, seed):
    return RUN.format(task=task, method=method, seed=seed)


def trained_file(task, method, seed):
    return f"{run_folder(task, method, seed)}/trained.sha256"


def trained(wildcards):
    """What a job on a trained method waits for; nothing for the untrained model."""
    return [] if wildcards.method == "base" else [trained_file(wildcards.task, wildcards.method, wildcards.seed)]


def adapter_files(wildcards):
    """The adapters that a training must have left."""
    run = run_folder(wildcards.task, wildcards.method, wildcards.seed)
    return [f"{run}/checkpoints/step{n}/adapter/{ADAPTER_FILE}" for n in steps(wildcards.task, wildcards.method)]


def adapter_option(wildcards):
    """--adapter of the job's checkpoint, by default the last one; nothing for the untrained model."""
    if wildcards.method == "base":
        return ""
    step = wildcards.get("step", steps(wildcards.task, wildcards.method)[-1])
    return f"--adapter {run_folder(wildcards.task, wildcards.method, wildcards.seed)}/checkpoints/step{step}/adapter"


def weights(*folders):
    """The weight files of local model folders; nothing for a hub repository."""
    return sorted(str(file) for folder in folders for file in Path(folder).glob("**/*.safetensors"))


def scorer_weights(*tasks):
    """The weight files of the scorers of some tasks, and the modules of users' own ones."""
    own = [str(custom.source(name)) for name in tasks if ":" in name]
    return own + (weights(CONFIG.scorers.pickscore_model) if "pickscore" in tasks else [])


def scores(task, method, seed):
    return [f"{run_folder(task, method, seed)}/scores/step{step}.jsonl" for step in steps(task, method)]


def guards(task, method, seed):
    return [f"{run_folder(task, method, seed)}/guards/step{step}.json" for step in steps(task, method)]


def maps(task, method, seed):
    """The figure of a method that looks at its attention, for the first seed; nothing for the others."""
    looks = run_settings(CONFIG, task, method).allocation.source == "attention"
    return [f"{run_folder(task, method, seed)}/maps/maps.svg"] if looks and int(seed) == SEEDS[0] else []


RUNS = [(task, method, seed) for task in TASKS for method in methods_of(CONFIG, task) for seed in SEEDS]
RUNS_AND_BASE = [(task, "base", seed) for task in TASKS for seed in SEEDS] + RUNS


def all_prompts():
    return expand(f"{EXPERIMENT}/prompts/{{task}}/{{split}}.jsonl", task=TASKS, split=["train", CONFIG.evaluation.split])


def all_trained():
    return [trained_file(*run) for run in RUNS]


def all_samples():
    return [f"{run_folder(*run)}/samples/step{step}/prompts.jsonl" for run in RUNS_AND_BASE for step in steps(*run[:2])]


def all_scores():
    return [file for run in RUNS_AND_BASE for file in scores(*run)]


def all_guards():
    return [file for run in RUNS_AND_BASE for file in guards(*run)]


def all_maps():
    return [file for run in RUNS for file in maps(*run)]


def all_logged():
    return [f"{run_folder(*run)}/mlflow.done" for run in RUNS_AND_BASE]


def all_attributes():
    """Scores and map statistics on prompts of global attributes, where the evidence can ask about them."""
    if not questions.asks_about_attributes(CONFIG):
        return []
    runs = [run_folder("pickscore", method, seed) for method in questions.ATTRIBUTE_METHODS for seed in SEEDS]
    maps = [f"{run_folder('pickscore', 'star', seed)}/global/map_statistics.csv" for seed in SEEDS]
    return [f"{run}/global/scores.jsonl" for run in runs] + maps


def evidence_figures():
    """(file name, title) of the figures that `star evidence` draws."""
    return [("main", "main result"), *((q.name, f"({q.letter}) {q.title}") for q in questions.answered(CONFIG))]


def all_evidence():
    """Nothing with a single seed, which is no evidence."""
    return rules.evidence.output if questions.can_be_asked(CONFIG) else []
