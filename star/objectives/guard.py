"""GRPO-Guard (arXiv 2510.22319): Flow-GRPO with a ratio of zero mean and equal scale at every step, and equal gradients.

The log-ratio is mean(noise d), d = mean_new - mean_old, which is std (log p_new - log p_old + d^2 / (2 std^2)); the loss of a
step is divided by -dt. With a map (ours) it is the mean of M noise d: the bias is weighted by the same map, so the expectation
stays zero at the old policy for any map that was recorded before the noise was drawn.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

import torch

from star.allocation.spread import spread
from star.flow.schedule import Schedule
from star.objectives.flow_grpo import FlowGrpo
from star.objectives.points import Transition
from star.objectives.trajectory import clipped_loss, clipped_loss_by_location


def log_ratio(point: Transition, mean_MCHW: torch.Tensor) -> torch.Tensor:
    """The normalised log-ratio at every location, [M, H, W]; zero where the policy is the old one."""
    noise_MCHW = (point.x_next - point.old_mean) / point.schedule.std[point.step].item()
    return (noise_MCHW * (mean_MCHW - point.old_mean)).mean(1)


def _duration(schedule: Schedule, step: int) -> float:
    """-dt."""
    return (schedule.std[step] / schedule.spread[step]).item() ** 2


class Guard(FlowGrpo):
    """Flow-GRPO whose ratios are normalised, and whose steps have equal weight."""

    keeps_old_means = True

    def gradient_scale(self, schedule: Schedule, step: int) -> float:
        """Of a normalised log-ratio over the step's duration: noise x (coefficient of v) / -dt."""
        return (schedule.coef_v[step].abs() / _duration(schedule, step)).item()

    def _policy_loss(
        self, point: Transition, mean_MCHW: torch.Tensor, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The clipped loss a sample over the step's duration, [M], and the ratios, [M] or [M, H, W]."""
        log_ratio_MHW = log_ratio(point, mean_MCHW)
        if self.by_location:
            zero_MHW = torch.zeros_like(log_ratio_MHW)
            loss_M, ratio = clipped_loss_by_location(advantage_M, log_ratio_MHW, zero_MHW, map_MHW, self.clip_range)
        else:
            log_ratio_M = spread(log_ratio_MHW, map_MHW)
            loss_M, ratio = clipped_loss(advantage_M, log_ratio_M, torch.zeros_like(log_ratio_M), self.clip_range)
        return loss_M / _duration(point.schedule, point.step), ratio
