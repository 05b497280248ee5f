"""`star doctor`: caches written by hand in the hub's layout, a hub on this machine, and what the loaders can load."""

import hashlib
import os
import shutil
import sqlite3
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch
from hub_server import COMMIT, Hub
from huggingface_hub import constants

from star import cli
from star.config import Config, PolicySettings, load
from star.doctor import machine, packages
from star.doctor.examine import examine
from star.doctor.weights import lacks
from star.errors import InputError
from star.hub import lock
from star.hub.check import Source
from star.models.load import load_pipeline
from star.scoring.scorer import needed
from star.worlds.coco import published

ROOT = Path(__file__).parents[2]
HERE = [  # the paper's configuration with what this machine has
    "policy.model=some/pipeline",
    f"policy.revision={COMMIT}",
    "policy.device=auto",
    "scorers.ocr.engine=rapidocr",
    "prompts.ocr=generated",
    "tasks={geneval: {prompts: geneval, reward: {geneval: 0.8, ocr: 0.2}}}",
    *(f"scorers.{model}=some/clip" for model in ("geneval.model", "geneval.color_model", "pickscore.model")),
    "scorers.pickscore.processor=some/clip",
    *(f"scorers.geneval.{key}={COMMIT}" for key in ("revision", "color_revision")),
    *(f"scorers.pickscore.{key}={COMMIT}" for key in ("revision", "processor_revision")),
]


def _config(*more: str, file: str = "sd35-medium") -> Config:
    return load(ROOT / f"config/{file}.yaml", [*(HERE if file == "sd35-medium" else []), *more])


def _lines(config: Config, capsys: pytest.CaptureFixture) -> tuple[int, list[str]]:
    """Exit code and the lines that do not speak of packages."""
    code = examine(config)
    return code, [line for line in capsys.readouterr().out.splitlines() if "ok   package" not in line]


def _about(lines: list[str], what: str) -> str:
    (line,) = [line for line in lines if line[5:].startswith(what)]
    return line


def _cache(cache: Path, repository: str, folder: Path) -> Path:
    """A repository in the cache, as huggingface_hub lays it out; returns its snapshot."""
    home = cache / f"models--{repository.replace('/', '--')}"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs/main").write_text(COMMIT)
    snapshot = home / "snapshots" / COMMIT
    for file in (path for path in folder.rglob("*") if path.is_file()):
        blob = home / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        link = snapshot / file.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture(autouse=True)
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_the_miniature_has_everything_and_no_hub_is_asked(hub_server: Hub, capsys: pytest.CaptureFixture) -> None:
    code, lines = _lines(_config(file="miniature"), capsys)
    assert code == 0 and all(line.startswith("ok   ") for line in lines) and hub_server.asked == []
    keys = ("policy.model", "scorers.pickscore.model", "scorers.pickscore.processor", "scorers.ocr.engine: rapidocr", "MLflow")
    assert all(_about(lines, key) for key in keys)
    assert not any("scorers.geneval" in line or "prompts" in line for line in lines)


def test_a_whole_cache_is_found_at_its_commit_and_no_hub_is_asked(
    hub_server: Hub, hub_cache: Path, capsys: pytest.CaptureFixture
) -> None:
    clip, pipeline = (_cache(hub_cache, name, folder) for name, folder in hub_server.folders.items())
    code, lines = _lines(_config(), capsys)
    assert code == 0 and hub_server.asked == []
    assert _about(lines, "policy.model").startswith(
        f"ok   policy.model: some/pipeline at {COMMIT[:12]} in the hub cache {pipeline}"
    )
    for key in ("geneval.model", "geneval.color_model", "pickscore.model", "pickscore.processor"):
        assert str(clip) in _about(lines, f"scorers.{key}")
    size = sum(file.stat().st_size for file in hub_server.folders["some/clip"].rglob("*") if file.is_file()) / 1e6
    assert _about(lines, "scorers.geneval.color_model").endswith(f", {size:.1f} MB")
    code, lines = _lines(_config(f"scorers.geneval.color_revision={'ab' * 20}"), capsys)
    assert code == 1 and _about(lines, "scorers.geneval.color_model").startswith(
        "FAIL scorers.geneval.color_model: some/clip at abababababab is not"
    )


def test_a_broken_download_is_noticed(hub_server: Hub, hub_cache: Path, capsys: pytest.CaptureFixture) -> None:
    clip, pipeline = (_cache(hub_cache, name, folder) for name, folder in hub_server.folders.items())
    for file in (clip / "tokenizer.json", pipeline / "vae/diffusion_pytorch_model.safetensors"):
        file.resolve().unlink()  # the link is there, what it points to is not
    code, lines = _lines(_config(), capsys)
    remedy = ": run `star fetch` with this configuration"
    assert code == 1
    assert _about(lines, "policy.model").endswith(f"lacks vae/diffusion_pytorch_model.safetensors{remedy}")
    assert "lacks tokenizer.json" in _about(lines, "scorers.geneval.color_model")
    assert _about(lines, "scorers.pickscore.model").startswith("ok")
    assert _about(lines, "hub: some/clip") == "ok   hub: some/clip can be downloaded"


@pytest.mark.parametrize("token", [None, "refused", "granted"])
def test_the_licence_gate(
    token: str | None, hub_server: Hub, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_server.gated = {"some/pipeline"}
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    code, lines = _lines(_config(), capsys)
    assert code == 1 and "is not in the hub cache" in _about(lines, "policy.model")
    gate = _about(lines, "hub: some/pipeline")
    if token == "granted":
        assert gate == "ok   hub: some/pipeline can be downloaded"
    else:
        login = "`hf auth login`" if token is None else "the token of this machine must belong to"
        assert gate.startswith(f"FAIL hub: some/pipeline is gated; accept its licence at {hub_server.url}/some/pipeline")
        assert login in gate
    assert _about(lines, "hub: some/clip").startswith("ok") and len(hub_server.asked) == 2  # once a repository


def test_a_repository_without_a_commit_is_told_to_fetch(hub_server: Hub, capsys: pytest.CaptureFixture) -> None:
    code, lines = _lines(_config("scorers.geneval.revision=null", "scorers.geneval.color_model=no/such"), capsys)
    assert code == 1
    pin = _about(lines, "scorers.geneval.revision")
    assert "some/clip has no commit" in pin and "run `star fetch --config ...` once" in pin
    assert _about(lines, "hub: some/clip") == "ok   hub: some/clip can be downloaded"
    assert _about(lines, "hub: no/such").startswith("FAIL hub: no/such is not on the hub, or private")


def test_a_file_that_is_not_the_locked_one_is_named(hub_server: Hub, hub_cache: Path, capsys: pytest.CaptureFixture) -> None:
    clip, _ = (_cache(hub_cache, name, folder) for name, folder in hub_server.folders.items())
    source = Source("scorers.geneval.color_model", "some/clip", COMMIT, ("model", "tokenizer", "images"))
    lock.record(source, clip, online=False)
    assert _lines(_config(), capsys)[0] == 0
    file = clip / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b"a", b"b", 1))
    code, lines = _lines(_config(), capsys)
    told = _about(lines, f"scorers.geneval.color_model: {file} is not the file that")
    assert code == 1 and told.startswith("FAIL") and f"remove {file.resolve()} and run `star fetch" in told


def test_a_silent_hub_is_asked_once(silent_hub: list, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    code, lines = _lines(_config(), capsys)
    assert code == 1 and len(silent_hub) == 1
    assert "does not answer" in _about(lines, f"hub: {constants.ENDPOINT}")
    assert _about(lines, "hub: no token").startswith("FAIL") and "`hf auth login`" in _about(lines, "hub: no token")
    monkeypatch.setenv("HF_TOKEN", "some")
    _, lines = _lines(_config(), capsys)
    assert _about(lines, "hub: a token is there").startswith("ok")


def test_offline_mode_is_respected(hub_server: Hub, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, lines = _lines(_config(), capsys)
    assert code == 1 and hub_server.asked == []
    assert "HF_HUB_OFFLINE" in _about(lines, f"hub: {hub_server.url}")


def test_the_command_goes_by_the_environment(hub_server: Hub, tmp_path: Path) -> None:
    _cache(tmp_path / "home/hub", "some/clip", hub_server.folders["some/clip"])
    hub_server.gated = {"some/pipeline"}
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub_server.url}
    command = [sys.executable, "-m", "star.cli", "doctor", "--config", "config/sd35-medium.yaml"]
    command += [f"--set={setting}" for setting in HERE]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert done.returncode == 1, done.stderr
    assert [line for line in lines if line.startswith("FAIL")] == [
        _about(lines, "policy.model: some/pipeline at"),
        _about(lines, "hub: some/pipeline is gated"),
    ]


@pytest.mark.parametrize(
    "gone",
    [
        *("model_index.json", "transformer/config.json", "transformer/diffusion_pytorch_model.safetensors", "vae/config.json"),
        *("text_encoder_2/model.safetensors", "tokenizer/tokenizer.json", "tokenizer_3", "scheduler/scheduler_config.json"),
        *("README.md", "tokenizer/tokenizer_config.json"),
    ],
)
def test_what_lacks_is_what_cannot_be_loaded(gone: str, random_base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "base"
    shutil.copytree(random_base, folder)
    path = folder / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    try:
        load_pipeline(PolicySettings(model=str(folder), resolution=64, guidance=1.0))
        loads = True
    except (InputError, TypeError):  # a scheduler without its configuration
        loads = False
    assert (lacks(folder, "pipeline") == []) == loads


def test_weights_in_shards(random_base: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    CLIPModel.from_pretrained("resources/miniature/pickscore").save_pretrained(tmp_path, max_shard_size="1MB")
    first, *others = sorted(tmp_path.glob("model-*.safetensors"))
    assert others and lacks(tmp_path, "model") == []
    first.unlink()
    assert lacks(tmp_path, "model") == [first.name]


@pytest.mark.parametrize(
    ("file", "tasks", "expected"),
    [
        ("miniature", "{it: {prompts: letters, reward: {ocr: 1}}}", {"ocr", "pickscore"}),
        ("miniature", "{it: {prompts: preference, reward: {pickscore: 1}}}", {"geneval", "pickscore"}),
        ("sd35-medium", "{it: {prompts: pickscore, reward: {pickscore: 1}}}", {"ocr", "pickscore"}),
        ("sd35-medium", "{it: {prompts: geneval, reward: {pickscore: 1}, report: [geneval]}}", {"geneval", "pickscore"}),
        (
            "sd35-medium",
            "{it: {prompts: geneval, reward: {ocr: 1}, report: [pickscore, geneval]}}",
            {"geneval", "ocr", "pickscore"},
        ),
    ],
)
def test_the_scorers_of_a_configuration(file: str, tasks: str, expected: set) -> None:
    assert needed(_config(f"tasks={tasks}", file=file)) == expected


def test_packages_are_those_of_pyproject(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = [str(r) for extra in ("", "easyocr", "slurm") for r in packages.requirements(extra)]
    versions = {"torch": "2.12.0", "mlflow": None, "easyocr": None, "torchvision": None}

    def version(name: str, true: object = metadata.version) -> str:
        if versions.get(name, "") is None:
            raise metadata.PackageNotFoundError(name)
        return versions.get(name) or true(name)

    def uninstalled(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "version", version)
    monkeypatch.setattr(packages.metadata, "requires", uninstalled)
    config = _config("scorers.ocr.engine=easyocr")
    found = list(packages.check(config))
    wrong = [line for fine, line in found if not fine]
    assert wrong[:2] == [
        "package torch 2.12.0 is not ==2.13.0: run `make install`",
        "package mlflow is missing: run `make install`",
    ]
    assert all("pip install torch==2.13.0 -e '.[easyocr]'" in line for line in wrong[2:]) and len(wrong) == 4
    known = {str(r) for extra in ("", "easyocr", "slurm") for r in packages.requirements(extra)}
    assert set(installed) <= known and len(found) == len(known)
    assert not any("easyocr" in line for _, line in packages.check(_config()))


def test_published_prompts_are_found_and_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "CACHE", tmp_path / "cache")
    good = {name: f"a caption of {name}\n".encode() for name in published.BLOBS}
    monkeypatch.setattr(published, "BLOBS", {name: published.blob_hash(data) for name, data in good.items()})
    settings = (
        "prompts.ocr=published",
        "tasks={ocr: {prompts: ocr, reward: {ocr: 1}}, pickscore: {prompts: pickscore, reward: {pickscore: 1}}}",
    )
    for name, data in good.items():
        for place in ("cache", "mirror"):
            (tmp_path / place / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place / name).write_bytes(data)
    (tmp_path / "cache/dataset/ocr/train.txt").write_text("spoilt")
    (tmp_path / "cache/dataset/ocr/test.txt").unlink()
    (tmp_path / "mirror/dataset/pickscore/test.txt").unlink()
    cached = [line for line in _lines(_config(*settings), capsys)[1] if "prompts:" in line]
    assert [line[:4] for line in cached] == ["FAIL", "FAIL", "ok  ", "ok  "]
    assert "not the published dataset/ocr/train.txt" in cached[0] and "delete it" in cached[0]
    assert "`star fetch` with this configuration" in cached[1] and "prompts.mirror" in cached[1]
    mirrored = [
        line for line in _lines(_config(*settings, f"prompts.mirror={tmp_path}/mirror"), capsys)[1] if "prompts:" in line
    ]
    assert [line[:4] for line in mirrored] == ["ok  ", "ok  ", "ok  ", "FAIL"]
    assert "prompts.mirror: no file" in mirrored[3]


def _database(folder: Path) -> tuple[bool, str]:
    """What the doctor says of the database in a folder of results."""
    return list(machine.check(_config(f"results={folder}")))[-1]


def test_the_database_is_judged_and_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    database = tmp_path / "mlflow.db"
    assert _database(tmp_path) == (True, f"MLflow: {database} will be made by the first run")
    assert not database.exists()
    client = MlflowClient(f"sqlite:///{tmp_path}/made.db")
    client.create_run(client.create_experiment("some"))
    shutil.copy(tmp_path / "made.db", database)
    content = database.read_bytes()
    assert _database(tmp_path) == (True, f"MLflow: {database} holds 1 runs; compare them with `make ui`")
    assert database.read_bytes() == content
    older, other = tmp_path / "older/mlflow.db", tmp_path / "other/mlflow.db"
    older.parent.mkdir()
    other.parent.mkdir()
    shutil.copy(database, older)
    with sqlite3.connect(older) as connection:
        connection.execute("update alembic_version set version_num = '451aebb31d03'")
    fine, line = _database(older.parent)
    assert not fine and "out-of-date database schema" in line and line.endswith(f"`mlflow db upgrade sqlite:///{older}`")
    other.write_bytes(b"no database" * 100)
    fine, line = _database(other.parent)
    assert not fine and "file is not a database" in line and "\n" not in line
    assert not list(Path.cwd().iterdir())


@pytest.mark.parametrize(
    ("capability", "compiled", "runs"),
    [
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False),
        ((7, 5), ["sm_75", "sm_80"], True),
        ((8, 9), ["sm_80", "sm_90a"], True),
        ((12, 1), ["sm_90", "sm_120"], True),
        ((8, 0), ["sm_86", "sm_90"], False),
        ((12, 0), ["sm_90", "compute_90"], True),
        ((8, 6), ["sm_90", "compute_90"], False),
        ((9, 0), ["gfx90a", "gfx942"], True),
    ],
)
def test_kernels_of_a_gpus_generation(
    gpus: None, capability: tuple[int, int], compiled: list[str], runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: compiled)
    major, minor = capability
    said = f"GPU: this torch has no kernels for its generation, sm_{major}{minor}"
    wrong = [line for fine, line in machine.check(_config()) if not fine]
    assert any(line.startswith(said) for line in wrong) != runs


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two GPUs without bfloat16, as torch would speak of them."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (30 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "H100")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_75", "sm_80", "sm_90"])


def test_a_gpu_that_is_asked_for_and_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    wrong = [line for fine, line in machine.check(_config("policy.device=cuda")) if not fine]
    assert wrong[0].startswith("policy.device: cuda, but torch sees no GPU")


def test_gpus_and_what_they_compute_in(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = _config("policy.device=cuda", "scorers.device=cuda", "compute.processes=4")
    found = list(machine.check(config))
    assert found[0] == (True, "GPU H100: 30 of 80 GiB free")
    assert found[1] == (False, "compute.processes: 4 on a machine, 2 GPUs here; lower it")
    assert found[2] == (False, "policy.precision: bfloat16, but this GPU lacks it; use float16")
    config = _config("policy.device=cpu", "scorers.device=cuda", "scorers.pickscore.precision=bfloat16")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False, "amx_bf16": True})
    assert list(machine.check(config))[1:3] == [
        (True, "policy.precision: bfloat16, which the processor has"),
        (False, "scorers.pickscore.precision: bfloat16, but this GPU lacks it; use float16"),
    ]
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    assert list(machine.check(config))[1] == (
        False,
        "policy.precision: bfloat16, but this processor lacks it and is slow in it; use float32",
    )
    assert "onnxruntime-gpu" in found[3][1]


def test_the_checkpoint_of_mmdet(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other.pth"
    other.write_bytes(b"other")
    _, lines = _lines(_config("scorers.geneval.detector=mmdet", f"scorers.geneval.model={other}"), capsys)
    assert "is not GenEval's checkpoint" in _about(lines, "scorers.geneval.model")
    assert "envs/mmdet.yaml" in _about(lines, "package mmdet is missing")


def test_folders_that_are_missing_or_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    settings = [f"--set=policy.model={tmp_path}", "--set=scorers.pickscore.model=no/such/folder"]
    assert cli.main(["doctor", *settings]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("FAIL")]
    assert len(failed) == 2
    assert f"policy.model: {tmp_path} lacks model_index.json: name a whole one" in failed[0]
    assert "scorers.pickscore.model: no folder no/such/folder" in failed[1]
