"""The benchmark's own yardsticks: plain Flow-GRPO equals our trainer, counted FLOPs equal a closed form, refusals."""

import json
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import SD3Transformer2DModel
from records import asked
from trainings import session

from benchmarks import flow_grpo, measure, objectives, sd35_medium, training
from benchmarks.report import Report
from star import config as configuration
from star.config import RunSettings
from star.prompts import make
from star.prompts.record import Prompt
from star.scoring.pickscore import PickScorer
from star.training import rollout as rolling
from star.training.epoch import prepare_epoch
from star.training.update import update_policy

ROOT = Path(__file__).parents[2]
SMALL = ["rollout.steps=4", "rollout.groups=2", "rollout.group_size=6", "rollout.batch=4", "rollout.same_start=false"]
SMALL += ["rollout.trained_fraction=0.99", "training.updates_per_epoch=1", "policy.precision=float32"]
SMALL += ["objective.clip_range=5e-3", "objective.kl_weight=1.0", "optimizer.max_grad_norm=1e9"]
WHOLE, WINDOW = ["rollout.window=null", "rollout.window_range=null"], ["rollout.window=2", "rollout.window_range=[0, 4]"]
LATE = ["rollout.window=2", "rollout.window_range=[1, 3]", "rollout.same_start=true"]  # one step before them


class NoRewards:
    """Keeps the pictures that it should score."""

    def __init__(self) -> None:
        self.pictures: list[np.ndarray] = []

    def submit(self, pictures: list[np.ndarray], records: list[Prompt]) -> Future:
        self.pictures += pictures
        done: Future = Future()
        done.set_result((np.zeros(len(pictures)), {}))
        return done


def _settings(base: Path, *more: str) -> tuple[RunSettings, list[Prompt]]:
    config = configuration.load(ROOT / "config/miniature.yaml", [*SMALL, f"policy.model={base}", *more])
    return configuration.run_settings(config, "preference", "flow_grpo"), make.records(config, "preference", "train")


def _disturb(parameters: list[torch.nn.Parameter], size: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn(p.shape, generator=generator), alpha=size)


@pytest.mark.parametrize(("guidance", "steps"), [(1.0, WHOLE), (2.5, WINDOW), (2.5, LATE)])
def test_plain_flow_grpo_is_the_scalar_method(
    random_base: Path, guidance: float, steps: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same noise and prompts, written twice: pictures, latents, log-probabilities, losses and the gradient of an epoch."""
    settings, records = _settings(random_base, f"policy.guidance={guidance}", *steps)
    rollout, pool = settings.rollout, NoRewards()
    ours = session(settings, records, pool)
    learner, policy = ours.learner, ours.learner.policy
    pipe, transformer = policy.model.pipe, policy.model.transformer
    _disturb(learner.parameters, 0.2, seed=1)  # a policy that differs from its reference
    noises, denoise = [], rolling.denoise

    def listening(model: object, noise_BSCHW: torch.Tensor, **more: object) -> object:
        noises.append(noise_BSCHW)
        return denoise(model, noise_BSCHW, **more)

    monkeypatch.setattr(rolling, "denoise", listening)
    epoch = prepare_epoch(ours, 1)
    trained, found = epoch.trained, rolling.sample_rollouts(ours, epoch)

    plain = flow_grpo.FlowGrpo(pipe, settings, policy.device)
    with flow_grpo.stock_attention(transformer):
        text = plain.encode([prompt.text for prompt in epoch.prompts for _ in range(rollout.group_size)])
        theirs, pictures = plain.sample(*text, torch.cat(noises), trained)
    assert abs(np.stack(pictures).astype(int) - np.stack(pool.pictures)).max() <= 1
    torch.testing.assert_close(theirs.latents_BSCHW, found.latents_RSCHW, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.log_prob_BT, found.log_prob_RTHW.mean((2, 3)), rtol=1e-4, atol=1e-4)

    _disturb(learner.parameters, 0.01, seed=2)  # ratios off 1, some of them clipped
    advantage_B = np.random.default_rng(0).normal(size=len(found.reward_B))
    advantage_B[[1, 2, 6, 9]] = 0  # are dropped
    gradients = []

    def keep(*_: object) -> tuple[float, float]:
        gradients.append(torch.cat([p.grad.flatten() for p in learner.parameters]))
        learner.optimizer.zero_grad()
        return 0.0, 0.0

    learner.step = learner.optimizer.step = keep
    row = update_policy(ours, epoch, found, advantage_B=advantage_B, map_RTHW=None, expect_ratio_one=False)
    with flow_grpo.stock_attention(transformer):
        means = plain.update(theirs, torch.from_numpy(advantage_B).float(), trained, learner.optimizer)
    assert 0 < row["clip_fraction"] < 1 and row["kl"] > 0
    for name, value in means.items():
        assert value == pytest.approx(row[name], rel=1e-4), name
    mine, plains = gradients
    torch.testing.assert_close(plains, mine, rtol=1e-3, atol=1e-4 * mine.abs().max().item())


def _linear(tokens: int, inner: int, outer: int) -> int:
    return 2 * tokens * inner * outer


def _attention(tokens: int, width: int) -> int:
    return 2 * 2 * tokens**2 * width


@torch.no_grad()
def test_counted_flops_equal_a_closed_form() -> None:
    """SD3.5's transformer: three joint blocks, the first with a second attention, the last without text output."""
    width, heads, text_width, pooled_width, channels, patch, side, text = 32, 4, 24, 20, 4, 2, 12, 7
    model = SD3Transformer2DModel(
        sample_size=side,
        patch_size=patch,
        in_channels=channels,
        out_channels=channels,
        num_layers=3,
        attention_head_dim=width // heads,
        num_attention_heads=heads,
        caption_projection_dim=width,
        joint_attention_dim=text_width,
        pooled_projection_dim=pooled_width,
        pos_embed_max_size=side,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    image = (side // patch) ** 2

    def block(dual: bool, last: bool) -> int:
        modulation = _linear(1, width, (9 if dual else 6) * width) + _linear(1, width, (2 if last else 6) * width)
        projections = 4 * _linear(image, width, width) + (3 if last else 4) * _linear(text, width, width)
        feed_forward = 2 * _linear(image + (0 if last else text), width, 4 * width)
        second = 4 * _linear(image, width, width) + _attention(image, width) if dual else 0
        return modulation + projections + _attention(image + text, width) + feed_forward + second

    pixels = channels * patch**2
    ends = _linear(image, pixels, width) + _linear(text, text_width, width) + _linear(image, width, pixels)
    ends += _linear(1, 256, width) + _linear(1, pooled_width, width) + 2 * _linear(1, width, width)
    ends += _linear(1, width, 2 * width)
    expected = block(dual=True, last=False) + block(dual=False, last=False) + block(dual=False, last=True) + ends

    def forward() -> None:
        model(
            hidden_states=torch.randn(1, channels, side, side),
            encoder_hidden_states=torch.randn(1, text, text_width),
            pooled_projections=torch.randn(1, pooled_width),
            timestep=torch.tensor([500.0]),
        )

    assert measure.count(forward) == expected


def test_counted_flops_of_attention_have_its_backward_pass() -> None:
    """Two products forward; five backward, for the scores are computed again."""
    q, k, v = (torch.randn(1, 2, 16, 8, requires_grad=True) for _ in range(3))
    both = measure.count(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v).sum().backward())
    assert both == 7 * 2 * 2 * 16**2 * 8


def test_the_true_size_is_the_published_one() -> None:
    """transformer/diffusion_pytorch_model.safetensors of Stable Diffusion 3.5 Medium has 4.94 GB in 16 bits."""
    with torch.device("meta"):
        stored = sd35_medium.transformer().state_dict().values()
    assert sum(2 * t.numel() for t in stored) == pytest.approx(4.94e9, rel=2e-3)


def test_the_true_size_reward_passes_the_scorers_own_checks(tmp_path: Path) -> None:
    sd35_medium.save_pickscore(tmp_path, torch.device("cpu"), layers=2)
    config = configuration.load(ROOT / "config/sd35-medium.yaml", ["scorers.device=cpu"])
    folder = {"pickscore": configuration.Pickscore(model=str(tmp_path), processor=str(tmp_path))}
    scorer = PickScorer(config.scorers.model_copy(update=folder))
    assert np.isfinite(scorer([np.zeros((64, 64, 3), np.uint8)], [asked("a dog")])[0].reward)


def test_paired_ratios_ignore_what_slows_both() -> None:
    slow = np.array([1.0, 3.0, 2.0, 7.0, 1.5])
    assert measure.paired_ratio(list(1.25 * slow), list(slow)) == pytest.approx((1.25, 1.25, 1.25))


def test_the_script_runs_and_its_table_adds_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    small = ["rollout.groups=2", "rollout.group_size=4", "rollout.batch=4"]
    arguments = [argument for change in small for argument in ("--set", change)]
    assert training.main(["--repeats", "1", "--out", str(tmp_path / "bench"), *arguments]) == 0
    report = json.loads((tmp_path / "bench.json").read_text())
    numbers = {row["name"]: row["value"] for row in report["numbers"]}
    for method in ("flow_grpo", "star", "plain"):
        seconds = sum(
            r["value"] for r in report["numbers"] if r["unit"] == "s an epoch" and r["name"].startswith(f"{method}: ")
        )
        assert numbers[f"{method}: images a second"] == pytest.approx(8 / seconds)
    for method in ("flow_grpo", "star"):
        assert numbers[f"{method}: largest ratio off 1"] == 0
    rates = {method: numbers[f"{method}: images a second"] for method in ("flow_grpo", "star")}
    more = 100 * (rates["flow_grpo"] / rates["star"] - 1)
    assert numbers["STAR over scalar, whole epoch"] == pytest.approx(more)
    table = (tmp_path / "bench.md").read_text()
    assert all(f"| {name} | {value:.4g} |" in table for name, value in numbers.items())
    assert set(report["about"]) == {"command", "device", "torch", "date", "revision", "load"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--layers", "2"], "--layers"),
        (["--size", "sd35-medium", "--layers", "1"], "--layers"),
        (["--repeats", "0"], "--repeats"),
        (["--set", "rollout.groops=2"], "groops"),
        (["--out", "/does/not/exist/bench"], "--out"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert training.main(arguments) == 2
    assert named in capfd.readouterr().err


@pytest.mark.parametrize("objective", ["flow_grpo", "nft"])
def test_objectives_are_measured_with_and_without_maps(random_base: Path, tmp_path: Path, objective: str) -> None:
    more = [f"{{objective: {{name: {objective}}}, allocation: {{source: {source}}}}}" for source in ("none", "attention")]
    methods = [f"methods.it={more[0]}", f"methods.it_map={more[1]}"]
    config = configuration.load(
        ROOT / "config/miniature.yaml",
        [*SMALL, *WHOLE, f"policy.model={random_base}", "tasks.preference.overrides={}", *methods],
    )
    report = Report(tmp_path / "found", torch.device("cpu"), module="objectives")
    objectives.measure(config, "preference", ["it", "it_map"], repeats=2, report=report)
    value = {row["name"]: row["value"] for row in report.rows}
    assert value["it: passes an image"] == {"flow_grpo": 4 + 2 * 3 + 3, "nft": 4 + 3 * 3 + 3}[objective]
    assert 0 < value["it_map: operations over it"] < 5  # recorded columns are few
    assert 0 < value["it_map: the map's own functions"] < 50
    assert "benchmarks.objectives" in (tmp_path / "found.md").read_text()
