"""A base whose blocks are kept in the CPU's memory: the same bits as one that lies whole on the device."""

from collections.abc import Iterator
from pathlib import Path

import policies
import pytest
import torch
import trainings
from PIL import Image
from torch import distributed
from torch.distributed.tensor import DTensor

from star import config as configuration
from star.config import Compute
from star.config.key import training_key
from star.files import sha256
from star.models.memory import resident_bytes, spread
from star.models.policy import Policy
from star.sampling.sample import sample

PROMPTS = ["a photo of a red circle", "a photo of a blue star"]


@pytest.fixture(autouse=True)
def no_group_left() -> Iterator[None]:
    """Other tests make their own group of processes, or none."""
    yield
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _gradients(base: Path, compute: Compute) -> tuple[Policy, list[torch.Tensor]]:
    """The gradients of a policy in bfloat16, two branches, one recorded block; then its velocity."""
    policy = Policy(policies.model(base, compute, precision="bfloat16", guidance=2.0), policies.settings(base).lora, 0)
    policy.model.watch([1])
    with torch.no_grad():
        for parameter in policy.parameters:  # lora_B starts at zero, and then lora_A has no gradient
            parameter.add_(0.01)
    spread(policy.model, compute, processes=1)
    x_BCHW = torch.randn(2, *policy.model.geometry.latents, generator=torch.Generator().manual_seed(0))
    v_BCHW = policy.velocity(x_BCHW, 0.5, policy.model.encode(PROMPTS))
    v_BCHW.square().mean().backward()
    return policy, [*(p.grad for p in policy.parameters), v_BCHW.detach()]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_offloaded_blocks_change_no_bit_of_velocity_and_gradient(random_base: Path, checkpointing: bool) -> None:
    _, whole = _gradients(random_base, Compute(gradient_checkpointing=checkpointing))
    policy, offloaded = _gradients(random_base, Compute(gradient_checkpointing=checkpointing, offload="blocks"))
    assert sum(bool(gradient.any()) for gradient in whole) >= len(whole) - 2  # the last block asks nothing for the text
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(offloaded, whole, strict=True))
    frozen = [p for p in policy.model.transformer.parameters() if not p.requires_grad]
    assert all(isinstance(p, DTensor) for p in frozen)  # between passes: FSDP's share, in the CPU's memory
    assert not any(isinstance(p, DTensor) for p in policy.parameters)


def test_training_and_testing_offloaded_give_the_same_files(random_base: Path, tmp_path: Path) -> None:
    def made(name: str, *more: str) -> tuple[str, bytes]:
        changes = (*more, "training.epochs=1", "evaluation={steps: 2, images_per_prompt: 1}")
        run = tmp_path / name
        trainings.train(random_base, run, "star", *changes)
        adapter = run / "checkpoints/epoch0001/adapter"
        lines = tmp_path / "prompts.jsonl"
        lines.write_text(
            '{"id": "a", "task": "preference", "tag": "x", "prompt": "a photo of a red circle", "core": [], "metadata": {}}\n'
        )
        sample(trainings.config(random_base, *changes), lines, run / "samples", adapter=adapter)
        (weights,), (picture,) = adapter.glob("*.safetensors"), (run / "samples").rglob("*.png")
        with Image.open(picture) as shown:
            return sha256(weights), shown.tobytes()

    assert made("offloaded", "compute.offload=blocks") == made("whole")


def test_most_of_the_weights_at_a_time(random_base: Path) -> None:
    """Offloaded: what is in no block, and three blocks. Shared out over four: a quarter of all beside these."""
    model = policies.model(random_base)
    sizes = [sum(p.nbytes for p in block.parameters()) for block in model.transformer.transformer_blocks]
    whole = sum(p.nbytes for p in model.transformer.parameters())
    gathered = whole - sum(sizes) + 3 * max(sizes)
    assert resident_bytes(model, Compute(), 4) == resident_bytes(model, Compute(shard=True), 1) == whole
    assert resident_bytes(model, Compute(offload="blocks"), 1) == gathered
    assert resident_bytes(model, Compute(shard=True), 4) == whole / 4 + gathered


def test_offload_is_no_part_of_the_key() -> None:
    settings = [
        configuration.run_settings(configuration.load(trainings.ROOT / "config/miniature.yaml", more), "shapes", "star")
        for more in ([], ["compute.offload=blocks"])
    ]
    assert training_key(settings[0]) == training_key(settings[1])
