"""Where the rollouts of a prompt differ, and where such differences go with the reward. Source: ours (docs/method.md).

Groups may lie over several processes: what a process adds up of its own rollouts is summed by `total`, and nothing else of the
others' latents is needed. Sums are float64, so that the maps are the same however the rollouts are dealt.

Shapes: R rollouts held by this process, B rollouts of the epoch, G groups, C H W latents, h w token grid.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

Total = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Groups:
    """The epoch's rewards (or advantages) [B] and groups [B], numbered from 0, and which rollouts this process holds [R]."""

    reward_B: np.ndarray
    group_B: np.ndarray
    row_R: np.ndarray

    @property
    def size_G(self) -> np.ndarray:
        """How many rollouts each group has."""
        return np.maximum(np.bincount(self.group_B), 1)  # 1: of a number that no group has

    @property
    def group_R(self) -> torch.Tensor:
        """The groups of the held rollouts."""
        return torch.from_numpy(self.group_B[self.row_R])


def differences(x_RCHW: torch.Tensor, groups: Groups, total: Total) -> torch.Tensor:
    """Latents minus their group's mean, float64 [R, C, H, W]."""
    size_G = torch.from_numpy(groups.size_G).double()
    mean_GCHW = _added(x_RCHW.double(), groups, total) / size_G[:, None, None, None]
    return x_RCHW.double() - mean_GCHW[groups.group_R]


def deviation(x_RCHW: torch.Tensor, groups: Groups, total: Total) -> torch.Tensor:
    """The squared difference from the group's mean, float64 [R, H, W], summed over channels."""
    return differences(x_RCHW, groups, total).square().sum(1)


def covariance(x_RCHW: torch.Tensor, groups: Groups, total: Total, *, leave_one_out: bool) -> torch.Tensor:
    """The squared covariance of latents and reward in a group, float64 [R, H, W], summed over channels.

    |mean over the group of (r_b - mean r) (x_b - mean x)|^2. With `leave_one_out` a rollout's map is that of the others, so it
    depends neither on its own reward nor on its own latents. Zero where the rewards that count are all equal.
    """
    size_G = groups.size_G
    size_R = torch.from_numpy(size_G[groups.group_B[groups.row_R]]).double()[:, None, None, None]
    mean_G = np.bincount(groups.group_B, groups.reward_B) / size_G
    centred_R = torch.from_numpy((groups.reward_B - mean_G[groups.group_B])[groups.row_R])[:, None, None, None]
    d_RCHW = differences(x_RCHW, groups, total)
    sum_RCHW = _added(centred_R * d_RCHW, groups, total)[groups.group_R]
    if leave_one_out:  # sums about the others' means, from sums about the whole group's
        sum_RCHW = sum_RCHW - size_R / (size_R - 1) * centred_R * d_RCHW
        size_R = size_R - 1
    counts_R = torch.from_numpy(_differ(groups, leave_one_out)[groups.row_R])
    return torch.where(counts_R[:, None, None], (sum_RCHW / size_R).square().sum(1), 0.0)


def _differ(groups: Groups, leave_one_out: bool) -> np.ndarray:
    """Whether the rewards that count for a rollout differ at all, bool [B]: else what remains is rounding."""
    differ_B = np.zeros(len(groups.reward_B), bool)
    for group in np.unique(groups.group_B):
        members = np.flatnonzero(groups.group_B == group)
        rewards = groups.reward_B[members]
        differ_B[members] = np.ptp(rewards) > 0
        if leave_one_out:
            differ_B[members] = [len(rewards) > 1 and np.ptp(np.delete(rewards, i)) > 0 for i in range(len(rewards))]
    return differ_B


def _added(value_RCHW: torch.Tensor, groups: Groups, total: Total) -> torch.Tensor:
    """The sum over every group's rollouts, wherever they are held, [G, C, H, W]."""
    sum_GCHW = value_RCHW.new_zeros(len(groups.size_G), *value_RCHW.shape[1:])
    return total(sum_GCHW.index_add_(0, groups.group_R, value_RCHW))


def by_token(value_RHW: torch.Tensor, patch: int) -> torch.Tensor:
    """The mean over the `patch` x `patch` latents of every token, float32 [R, h, w]."""
    return F.avg_pool2d(value_RHW, patch).float()
