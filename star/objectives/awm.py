"""Advantage weighted matching (arXiv 2509.25050): the flow-matching loss as log-probability, with the map inside it (ours).

l(M) = mean of M (v - v*)^2. The published log-probability is -g(l); here its slope g' is taken from the unweighted l, without
gradient, so that a map does not change the weight of its own sample: logp = -sg(g'(l)) l(M). The gradient at the policy itself
is the published one for M = 1. The ratio is 1 there, as in the published single update an epoch.

Shapes: M micro-batch, C latent channels, H W latent grid.
"""

from typing import TYPE_CHECKING

import numpy as np
import torch

from star.objectives.advantages import group_advantages
from star.objectives.forward import ForwardProcess
from star.objectives.matching import Noised, squared, velocity_distance
from star.objectives.points import Terms, Velocities

if TYPE_CHECKING:
    from star.config import Awm as Settings
    from star.training.learner import Learner

_TINY = 1e-10  # of the published `ghuber`


def slope(loss_M: torch.Tensor, t_M: torch.Tensor, weighting: str, power: float) -> torch.Tensor:
    """g'(l) of the published weightings: `uniform` l, `t` t l, `t2` t^2 l, `ghuber` ((l + 1e-10)^q - 1e-10^q) t / q."""
    if weighting == "uniform":
        return torch.ones_like(loss_M)
    if weighting == "t":
        return t_M
    if weighting == "t2":
        return t_M**2
    return t_M * (loss_M + _TINY) ** (power - 1)


class Awm(ForwardProcess):
    """Flow matching of the rollouts, weighted by their advantage; anchors to the base and to a policy that follows."""

    sampled_by_old = False
    idle = dict.fromkeys(("loss", "policy_loss", "kl", "old_distance", "matching_loss"), 0.0)

    def __init__(self, settings: "Settings") -> None:
        super().__init__(settings)
        self.skip_first = settings.skip_first

    def advantages(self, reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
        """Group-relative advantages, scaled so that the largest possible one is `advantage_max`; float64 [B]."""
        clip = self.settings.advantage_clip
        return group_advantages(reward_B, group_B, clip) * (self.settings.advantage_max / clip)

    def terms(self, point: Noised, *, velocities: Velocities, advantage_M: torch.Tensor, map_MHW: torch.Tensor | None) -> Terms:
        """The loss of every sample at a noised point, and its distances to the two anchors."""
        error = (velocities.new - (point.noise - point.x0)).double()
        plain_M = squared(error.detach())
        slope_M = slope(plain_M, point.sigma, self.settings.weighting, self.settings.power)
        log_prob_M = -slope_M * squared(error, map_MHW)
        ratio_M = torch.exp(log_prob_M - log_prob_M.detach())  # 1, with the gradient of the log-probability
        parts = {
            "policy_loss": (1.0, (-advantage_M.double() * ratio_M).float()),
            "old_distance": (self.settings.old_weight, velocity_distance(velocities.new, velocities.old)),
        }
        return Terms(parts | self._kl(velocities), means={"matching_loss": plain_M})

    def end_epoch(self, learner: "Learner", epoch: int) -> None:
        """Let the anchor follow the policy, as published: it keeps min(old_rate x epoch, old_most) of itself."""
        learner.move_old(min(self.settings.old_rate * epoch, self.settings.old_most))
