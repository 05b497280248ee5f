"""The policy update: clipped loss with allocated log-probabilities, KL to the reference, one backward a step.

Shapes: B rollouts, M micro-batch, T steps, C H W latents.
"""

from collections import defaultdict

import numpy as np
import torch

from star.allocation.objective import allocate, clipped_loss, clipped_loss_by_location
from star.config import Training
from star.policy.generator import Encoded, Generator
from star.policy.sde import Schedule, log_prob, reference_kl, step_mean
from star.policy.seeding import generator
from star.training.rollout import Rollouts


def micro_batches(kept: np.ndarray, size: int, updates: int, seed: int, epoch: int) -> list[list[tuple[np.ndarray, int]]]:
    """Shuffle the kept rollouts into micro-batches of exactly `size` (rows, number that count), dealt to the updates.

    The last micro-batch is filled up with repeats that do not count: one batch shape keeps the ratio exactly 1.
    """
    order = kept[torch.randperm(len(kept), generator=generator("update", seed, epoch)).numpy()]
    starts = range(0, len(order), size)
    batches = [(np.resize(order[s : s + size], size), min(size, len(order) - s)) for s in starts]
    return [batches[u::updates] for u in range(min(updates, len(batches)))]


def update_policy(
    policy: Generator,
    training: Training,
    objective: str,
    schedule: Schedule,
    steps: range,
    rollouts: Rollouts,
    map_BTHW: torch.Tensor | None,
    advantage_B: np.ndarray,
    prompts: Encoded,
    empty: Encoded | None,
    optimizer: torch.optim.Optimizer,
    after_step: callable,
    *,
    batch: int,
    seed: int,
    epoch: int,
    expect_ratio_one: bool,
) -> dict[str, float]:
    """One epoch's optimizer steps; returns means of loss, policy_loss, kl, ratio, approximate KL, clip_fraction, grad_norm.

    `map_BTHW` has the maps of `steps`. The approximate KL to the rollout's policy is mean(ratio - 1 - log ratio).

    Rollouts of zero advantage are dropped. With `expect_ratio_one` every ratio of the first optimizer step must be exactly
    1, else RuntimeError: rollout and update then do not see the same numbers. Raises FloatingPointError on a loss or
    gradient that is not finite, before the weights are touched.
    """
    clip_range = training.location_clip_range if objective == "per_location" else training.clip_range
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = policy.device
    seen: dict[str, list[float]] = defaultdict(list)
    for u, batches in enumerate(micro_batches(np.flatnonzero(advantage_B), batch, training.updates_per_epoch, seed, epoch)):
        total = sum(count for _, count in batches) * len(steps)
        for rows_M, count in batches:
            prompt = prompts[torch.from_numpy(rollouts.prompt_B[rows_M])]
            advantage_M = torch.from_numpy(advantage_B[rows_M]).float().to(device)
            weight_M = (torch.arange(batch, device=device) < count).float() / total
            for s, t in enumerate(steps):
                x, x_next = (
                    rollouts.latents_BSCHW[rows_M, t].to(device),
                    rollouts.latents_BSCHW[rows_M, t + 1].to(device),
                )
                map_MHW = None if map_BTHW is None else map_BTHW[rows_M, s].to(device)
                sigma = schedule.sigma[t].item()
                v = policy.velocity(x, sigma, prompt, empty)
                mean = step_mean(schedule, t, x, v)
                new_MHW = log_prob(schedule, t, x_next, mean)
                old_MHW = rollouts.log_prob_BTHW[rows_M, t].to(device)
                if objective == "per_location":
                    loss_M, ratio = clipped_loss_by_location(advantage_M, new_MHW, old_MHW, map_MHW, clip_range)
                else:
                    new_M, old_M = allocate(new_MHW, map_MHW), allocate(old_MHW, map_MHW)
                    loss_M, ratio = clipped_loss(advantage_M, new_M, old_M, clip_range)
                deviation = (ratio.detach() - 1).abs().max().item()
                if expect_ratio_one and u == 0 and deviation != 0:
                    raise RuntimeError(f"ratio off 1 by {deviation:.1e} before the first update (epoch {epoch}, step {t})")
                policy_loss = (loss_M * weight_M).sum()
                loss, kl = policy_loss, None
                if training.kl_beta > 0:
                    with torch.no_grad(), policy.reference():
                        reference = step_mean(schedule, t, x, policy.velocity(x, sigma, prompt, empty))
                    kl = (reference_kl(schedule, t, mean, reference) * weight_M).sum()
                    loss = policy_loss + training.kl_beta * kl
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"loss is not finite (epoch {epoch}, step {t}); weights are untouched")
                loss.backward()
                per_sample = total / count
                seen["loss"].append(loss.item() * per_sample)
                seen["policy_loss"].append(policy_loss.item() * per_sample)
                seen["kl"].append(0.0 if kl is None else kl.item() * per_sample)
                counted = ratio.detach()[:count]
                seen["ratio_mean"].append(counted.mean().item())
                seen["ratio_min"].append(counted.min().item())
                seen["ratio_max"].append(counted.max().item())
                seen["approximate_kl"].append((counted - 1 - counted.log()).mean().item())
                seen["clip_fraction"].append(((counted - 1).abs() > clip_range).float().mean().item())
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.max_grad_norm)
        if not torch.isfinite(norm):
            raise FloatingPointError(f"gradient is not finite (epoch {epoch}); weights are untouched")
        seen["grad_norm"].append(norm.item())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step()
    if not seen:  # every group's rewards are equal: nothing to learn from
        nothing = ("loss", "policy_loss", "kl", "approximate_kl", "clip_fraction", "grad_norm", "ratio_max_deviation")
        return {"ratio_mean": 1.0, "ratio_min": 1.0, "ratio_max": 1.0, **dict.fromkeys(nothing, 0.0)}
    row = {name: float(np.mean(values)) for name, values in seen.items()}
    row |= {"ratio_min": float(np.min(seen["ratio_min"])), "ratio_max": float(np.max(seen["ratio_max"]))}
    return row | {"ratio_max_deviation": max(row["ratio_max"] - 1, 1 - row["ratio_min"])}
