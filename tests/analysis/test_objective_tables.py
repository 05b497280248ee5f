"""What half of a baseline's gain costs, on curves whose crossings are known."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from star import config as configuration
from star.analysis import objectives
from star.errors import InputError
from star.layout import run

ROOT = Path(__file__).parents[2]
SLOPES = {"flow_grpo": 0.02, "nft": 0.08, "awm": 0.001}  # reward an epoch


def _curve(seeds: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"task": "letters", "method": method, "seed": seed, "epoch": epoch, "reward": gain, "gain": gain}
            | {"images": 96 * epoch, "seconds": (2 if method == "nft" else 1) * epoch * (1 + seed)}
            for method, slope in SLOPES.items()
            for seed in range(seeds)
            for epoch in range(1, 11)
            for gain in [slope * epoch]
        ]
    )


def test_costs_to_half_of_the_baselines_gain_and_their_ratios() -> None:
    curve = _curve(3)
    assert objectives.half_gain(curve, "flow_grpo")["letters"] == pytest.approx(0.1)
    at = objectives.costs(curve, "flow_grpo").set_index(["method", "seed"])
    assert at.loc[("flow_grpo", 0), "images"] == pytest.approx(5 * 96)
    assert at.loc[("nft", 2), "images"] == pytest.approx(1.25 * 96) and at.loc[("nft", 2), "seconds"] == pytest.approx(7.5)
    assert np.isnan(at.loc[("awm", 1), "images"])
    rows = objectives.table(curve, "flow_grpo").set_index("method")
    assert rows.loc["nft", ["images_ratio", "images_low", "images_high"]].tolist() == pytest.approx([4, 4, 4])
    assert rows.loc["nft", "seconds_ratio"] == pytest.approx(2) and rows.loc["nft", "gain"] == pytest.approx(0.8)
    assert rows.loc["awm", "reached"] == 0 and np.isnan(rows.loc["awm", "images_ratio"])
    assert np.isnan(objectives.table(_curve(1), "flow_grpo").set_index("method").loc["nft", "images_low"])  # one seed: none
    shown = objectives.readable(objectives.table(curve, "flow_grpo")).set_index("method")
    assert shown.loc["nft", "fewer images"] == "4.0 [4.0, 4.0]" and shown.loc["awm", "fewer images"] == "-"


def test_a_ratios_interval_is_students_on_the_logarithm() -> None:
    found = objectives.ratio(np.array([8.0, 8.0]), np.array([1.0, 4.0]))
    assert found.mean == pytest.approx(4.0)  # the geometric mean of 8 and 2
    assert np.log(found.high / found.mean) == pytest.approx(12.706 * np.log(2) * np.sqrt(2) / np.sqrt(2), rel=1e-4)


def test_curves_start_at_the_untrained_policys_reward_by_the_same_sampler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    config = configuration.load("config/experiments/objectives-miniature.yaml", [f"results={tmp_path}"])
    with pytest.raises(InputError, match="no finished"):
        objectives.curves(config)
    for method, start in (("flow_grpo", 0.4), ("nft", 0.6)):
        for seed in (0, 1):
            folder = run(config, "letters", method, seed)
            folder.folder.mkdir(parents=True)
            rows = [
                {"epoch": e, "reward_mean": start + 0.1 * seed + 0.01 * (e - 1), "reward_std": 0.1, "images": 96}
                | {
                    "peak_memory_bytes": 1,
                    "seconds_rollout": 1.0,
                    "seconds_maps": 0.0,
                    "seconds_reward": 0.5,
                    "seconds_update": 2,
                }
                for e in range(1, 17)
            ]
            folder.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
            if not (method == "nft" and seed == 1):
                folder.trained.write_text("")
    curve = objectives.curves(config)
    assert set(zip(curve["method"], curve["seed"], strict=True)) == {("flow_grpo", 0), ("flow_grpo", 1), ("nft", 0)}
    nft = curve[curve["method"] == "nft"]
    assert nft["gain"].tolist()[:4] == pytest.approx([0, 0.005, 0.01, 0.02])  # running mean over three epochs
    assert nft["images"].iloc[-1] == 16 * 96 and nft["seconds"].iloc[-1] == 16 * 3.5
    assert curve[(curve["method"] == "flow_grpo") & (curve["epoch"] == 1)]["gain"].tolist() == pytest.approx([-0.05, 0.05])
    out = tmp_path / "found"
    file = tmp_path / "config.yaml"
    file.write_text(f"extends: {ROOT}/config/experiments/objectives-miniature.yaml\nresults: {tmp_path}\n")
    assert objectives.main(["--config", str(file), "--out", str(out)]) == 0
    assert {f.name for f in tmp_path.glob("found*")} == {"found.md", "found.csv", "found.svg", "found-curves.csv"}
    assert "1 of 1" in out.with_suffix(".md").read_text()
