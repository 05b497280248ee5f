"""The policy: its adapter as diffusers loads it, other values inside, the base inside, and its refusals."""

from pathlib import Path

import policies
import pytest
import torch

from star.config import Lora, Optimizer, Training
from star.errors import InputError
from star.models import adapter
from star.models.policy import Policy
from star.models.sd3 import SD3
from star.training.checkpoint import save
from star.training.learner import Ema, Learner

PROMPTS = ["a photo of a red circle", 'a sign that says "KAT"']


def _disturb(policy: Policy) -> None:
    with torch.no_grad():
        for i, p in enumerate(policy.parameters):
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) * 0.1)


def _velocity(policy: Policy) -> torch.Tensor:
    x_BCHW = torch.randn(2, *policy.model.geometry.latents, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        return policy.velocity(x_BCHW, 0.5, policy.model.encode(PROMPTS))


def test_a_saved_adapter_loads_in_diffusers_with_its_scale(random_base: Path, tmp_path: Path) -> None:
    learner = Learner(policies.policy(random_base), Optimizer(), Training(epochs=1))
    _disturb(learner.policy)
    learner.ema = Ema(learner.parameters, 0.9, 1)
    save(tmp_path / "epoch0001", learner, learner.capture(), 1, "digest")
    expected = _velocity(learner.policy)
    with learner.policy.reference():
        base = _velocity(learner.policy)
    fresh = policies.model(random_base)
    fresh.pipe.load_lora_weights(tmp_path / "epoch0001" / "adapter")  # the user's line
    x_BCHW = torch.randn(2, *fresh.geometry.latents, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        got = fresh.velocity(x_BCHW, 0.5, fresh.encode(PROMPTS))
    assert (expected - base).abs().max() > 0.01
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_the_reference_is_the_base_without_adapter(random_base: Path) -> None:
    policy = policies.policy(random_base)
    model = policies.model(random_base)
    x_BCHW = torch.randn(2, *model.geometry.latents, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        base = model.velocity(x_BCHW, 0.5, model.encode(PROMPTS))
    fresh = _velocity(policy)
    torch.testing.assert_close(fresh, base, rtol=1e-5, atol=1e-6)  # a fresh adapter's B is zero
    _disturb(policy)
    disturbed = _velocity(policy)
    with pytest.raises(KeyError), policy.reference():
        assert torch.equal(_velocity(policy), base)
        raise KeyError
    assert torch.equal(_velocity(policy), disturbed) and not torch.equal(disturbed, base)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_other_values_are_used_inside_and_the_policy_s_own_are_back_to_the_bit(random_base: Path, precision: str) -> None:
    policy = policies.policy(random_base, precision=precision)
    _disturb(policy)
    own, own_velocity = [p.detach().clone() for p in policy.parameters], _velocity(policy)
    places = [p.data_ptr() for p in policy.parameters]
    values = [p.detach() * 0.5 for p in policy.parameters]
    kept = [value.clone() for value in values]
    with pytest.raises(KeyError), policy.using(values):
        inside = _velocity(policy)
        raise KeyError  # restored however the block is left
    assert all(torch.equal(p, before) for p, before in zip(policy.parameters, own, strict=True))
    assert [p.data_ptr() for p in policy.parameters] == places  # of which an optimizer knows
    assert all(torch.equal(value, before) for value, before in zip(values, kept, strict=True))
    assert torch.equal(_velocity(policy), own_velocity) and not torch.equal(inside, own_velocity)
    with torch.no_grad():
        for p, value in zip(policy.parameters, values, strict=True):
            p.copy_(value)
    assert torch.equal(_velocity(policy), inside)  # as if the weights were these


def test_the_adapter_is_float32_drawn_from_its_seed_and_on_the_named_layers_alone(random_base: Path) -> None:
    first, again, other = (policies.policy(random_base, seed, precision="bfloat16") for seed in (0, 0, 1))
    assert {p.dtype for p in first.parameters} == {torch.float32} and all(p.requires_grad for p in first.parameters)
    trained = [p for p in first.model.transformer.parameters() if p.requires_grad]
    assert [id(p) for p in trained] == [id(p) for p in first.parameters]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters, again.parameters, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters, other.parameters, strict=True))
    few = policies.policy(random_base, lora=Lora(rank=4, alpha=8, targets=["attn.to_q"]))
    names = {name.split(".lora_")[0].split(".", 2)[2] for name in adapter.weights(few.model.transformer)}
    assert names == {"attn.to_q"} and len(few.parameters) == 2 * 4


@pytest.mark.parametrize(
    ("targets", "wrong", "nearest"),
    [
        (["attn.to_q", "attn.toq"], "attn.toq", "attn.to_q"),
        (["to_kk"], "to_kk", "to_k"),
        (["attn.add_q_projection"], "attn.add_q_projection", "attn.add_q_proj"),
    ],
)
def test_a_target_that_is_no_module_is_refused_with_the_nearest(
    random_base: Path, targets: list[str], wrong: str, nearest: str
) -> None:
    with pytest.raises(InputError) as refusal:
        policies.policy(random_base, lora=Lora(rank=4, alpha=8, targets=targets))
    said = str(refusal.value)
    assert said == f"policy.lora.targets: `{wrong}` is no module of this model; the nearest is `{nearest}`"
    policies.policy(random_base, lora=Lora(rank=4, alpha=8, targets=list(SD3.lora_targets)))


def test_a_folder_that_is_no_adapter_is_refused(random_base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pytorch_lora_weights\.safetensors"):
        adapter.load_adapter(policies.model(random_base), tmp_path)
