"""`star credit` on the tiny random base: what it writes, that a stopped one goes on to the same bytes, what it refuses."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from trainings import ROOT, SMALL

from star.cli import main
from star.credit import measure
from star.credit.estimates import enough

ALLOCATIONS = ("star", "inverse", "own={blocks: [3], sharpness: 3}")
BATCHES = 4


@pytest.fixture(scope="module", autouse=True)
def few_pilots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("star.credit.measure.PILOTS", 2)
        patch.chdir(ROOT)
        yield


def credit(base: Path, out: Path, *more: str, allocations: tuple[str, ...] = ALLOCATIONS, batches: int = BATCHES) -> int:
    """The exit code of a measurement on the preference task."""
    settings = [part for one in (*SMALL, f"policy.model={base}") for part in ("--set", one)]
    chosen = ["--allocations", *allocations] if allocations else []
    common = ["--task", "preference", "--batches", str(batches), "--dimensions", "500", "--out", str(out)]
    return main(["credit", *common, *chosen, *settings, *more])


def written(out: Path) -> dict[str, bytes]:
    """Every file of a measurement, but for what a killed process left."""
    files = (file for file in sorted(out.rglob("*")) if file.is_file() and not file.name.startswith("."))
    return {str(file.relative_to(out)): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def measured(random_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("credit") / "preference"
    assert credit(random_base, out, "--octiles", "star") == 0
    return out


def test_it_writes_tables_and_a_figure(measured: Path) -> None:
    table, steps, octiles = (pd.read_csv(measured / f"{name}.csv") for name in ("credit", "steps", "octiles"))
    names = ["scalar", "star", "inverse", "own"]
    assert list(table["allocation"]) == 3 * names and set(table["batches"]) == {BATCHES}
    assert list(table["steps"].unique()) == ["equal", "equal_noise", "measured"]
    scalar = table[(table["allocation"] == "scalar") & (table["steps"] == "equal")].iloc[0]
    assert scalar[["signal", "noise", "efficiency", "same_steps", "gain"]].tolist() == [1, 1, 1, 1, 1]
    assert list(steps["allocation"].unique()) == names and list(steps["step"].unique()) == [0, 1]
    assert steps.groupby("allocation")["noise"].sum().round(6).eq(1).all()
    assert steps.groupby("allocation")["weight_equal_noise"].mean().round(6).eq(1).all()
    assert list(octiles["octile"]) == list(range(1, 9)) and octiles["signal"].sum() == pytest.approx(1, rel=1e-3)
    page = (measured / "credit.md").read_text(encoding="utf-8")
    assert "the policy gradient" in page and ("## One step alone" in page) == bool(scalar["measurable"])
    assert ("nothing is measurable yet" in page) == (not scalar["measurable"]) and "| own " in page
    assert (measured / "credit.svg").read_text(encoding="utf-8").startswith("<?xml")


def test_a_stopped_measurement_goes_on_with_more_allocations_to_the_same_bytes(
    random_base: Path, tmp_path: Path, measured: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, save, left = tmp_path / "stopped", measure.save_file, [6]

    def until(*arguments: object) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(measure, "save_file", until)
    assert credit(random_base, out, allocations=("inverse",)) == 130
    (out / "batches" / "0004" / ".scalar.123.safetensors").write_bytes(b"half a file")  # of a killed process
    assert len(list(out.rglob("batches/*/[!.]*.safetensors"))) == 5  # after AdamW's scale two batches and a half
    monkeypatch.setattr(measure, "save_file", save)
    assert credit(random_base, out, "--octiles", "star") == 0
    assert written(out) == written(measured)


def test_it_stops_when_intervals_are_narrow(random_base: Path, tmp_path: Path, measured: Path) -> None:
    shutil.copytree(measured, tmp_path / "wide")
    limits = pd.read_csv(measured / "credit.csv").query("allocation == 'star' and steps == 'equal'").iloc[0]
    width = limits["efficiency_high"] - limits["efficiency_low"]
    assert credit(random_base, tmp_path / "wide", "--until", str(width + 1), "--octiles", "star", batches=9) == 0
    assert written(tmp_path / "wide") == written(measured)
    assert not enough(sorted(measured.glob("batches/*")), watched=["star"], width=width - 1, dimensions=500)


def test_a_forward_process_objective_says_what_it_is_measured_against(random_base: Path, tmp_path: Path) -> None:
    nft = ("--set", "objective={name: nft}", "--set", "rollout.same_start=false")
    assert credit(random_base, tmp_path, *nft, allocations=("star",)) == 0
    page = (tmp_path / "credit.md").read_text(encoding="utf-8")
    assert "nft's own scalar gradient, which is no policy gradient" in page
    assert list(pd.read_csv(tmp_path / "steps.csv")["step"].unique()) == [0, 1]


def test_the_policy_may_have_an_adapter(random_base: Path, star_run: Path, tmp_path: Path, measured: Path) -> None:
    adapter = star_run / "checkpoints/epoch0003/adapter"
    assert credit(random_base, tmp_path / "trained", "--adapter", str(adapter), allocations=("inverse",)) == 0
    assert "the adapter " in (tmp_path / "trained/credit.md").read_text(encoding="utf-8")
    trained, fresh = (folder / "batches/0003/scalar.safetensors" for folder in (tmp_path / "trained", measured))
    assert trained.read_bytes() != fresh.read_bytes()


@pytest.mark.parametrize(
    ("more", "allocations", "said"),
    [
        ((), ("nowhere",), "--allocations nowhere: not known; there are scalar, star, random, "),
        ((), ("x={sharpness: -1}",), "--allocations x: allocation.sharpness: "),
        ((), ("x={source: none}",), "--allocations x: source: none is the scalar objective"),
        ((), ("x=[1]",), "--allocations x: '[1]' is no mapping"),
        ((), ("a/b={sharpness: 2}",), "--allocations a/b: "),
        ((), ("inverse", "own={sharpness: 2}"), "`own` was measured with other settings"),
        (("--seed", "1"), ALLOCATIONS, "measurement of other settings, prompts or weights; name another --out"),
        (("--set", "rollout.noise_level=0.3"), ALLOCATIONS, "measurement of other settings"),
        (("--octiles", "nobody"), ALLOCATIONS, "--octiles nobody: not among the allocations; there are star, inverse, own"),
        (("--batches", "3"), ALLOCATIONS, "--batches 3: an interval needs at least 4"),
        (("--dimensions", "0"), ALLOCATIONS, "--dimensions 0: at least 1"),
        (("--adapter", "nowhere"), ALLOCATIONS, "--adapter: no folder nowhere"),
        (("--task", "shape"), ALLOCATIONS, "tasks: no `shape`"),
    ],
)
def test_bad_input_stops_before_work(
    random_base: Path,
    tmp_path: Path,
    measured: Path,
    capsys: pytest.CaptureFixture,
    more: tuple[str, ...],
    allocations: tuple[str, ...],
    said: str,
) -> None:
    shutil.copytree(measured, tmp_path / "copy")
    before = written(tmp_path / "copy")
    assert credit(random_base, tmp_path / "copy", *more, allocations=allocations) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("star credit: ") and said in error
    assert written(tmp_path / "copy") == before
