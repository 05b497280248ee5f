"""Group-relative advantages (Flow-GRPO, arXiv 2505.05470), of one reward and of several.

Shapes: B rollouts of the epoch.
"""

from collections.abc import Callable, Mapping

import numpy as np


def centred(reward_B: np.ndarray, group_B: np.ndarray) -> np.ndarray:
    """Reward minus the mean of its prompt's group, float64 [B]; `group_B` names the prompt of each reward.

    A group whose rewards are all equal gets exactly zero. Raises ValueError on a reward that is not finite.
    """
    if not np.isfinite(reward_B).all():
        raise ValueError(f"reward of sample {int(np.flatnonzero(~np.isfinite(reward_B))[0])} is not finite")
    centred_B = np.zeros(len(reward_B))
    for group in np.unique(group_B):
        members = group_B == group
        if np.ptp(reward_B[members]) > 0:
            centred_B[members] = reward_B[members] - reward_B[members].mean()
    return centred_B


def group_advantages(reward_B: np.ndarray, group_B: np.ndarray, clip: float, spread: str = "epoch") -> np.ndarray:
    """Centred rewards over the standard deviation of all rewards of the `epoch`, or of their own `group`, clipped; float64 [B].

    1e-4 is added to the deviation, as in the source.
    """
    centred_B = centred(reward_B, group_B)
    deviation_B = np.full(len(reward_B), reward_B.std())
    if spread == "group":
        for group in np.unique(group_B):
            deviation_B[group_B == group] = reward_B[group_B == group].std()
    return np.clip(centred_B / (deviation_B + 1e-4), -clip, clip)


def combined_advantages(
    scorer_B: Mapping[str, np.ndarray],
    group_B: np.ndarray,
    *,
    weights: Mapping[str, float],
    combination: str,
    rule: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> np.ndarray:
    """One advantage a rollout of rewards by scorer, float64 [B]; `rule` makes advantages of rewards and groups.

    `sum`: of the weighted sum of rewards, as Flow-GRPO. `standardised`: of the weighted sum of rewards over their deviation in
    the epoch. Not in their group: a group in which a scorer sees next to no difference would count as much as any other (ours).
    `advantages`: the weighted mean of every reward's own advantages, as DanceGRPO (arXiv 2505.07818) adds them and GDPO (arXiv
    2601.05242) where `rule` divides by the group's deviation. The mean, not the sum, keeps the clip's meaning (ours).
    """
    if combination == "advantages":
        total = sum(abs(weight) for weight in weights.values())
        return sum(weight / total * rule(scorer_B[scorer], group_B) for scorer, weight in weights.items())
    spread = {scorer: reward_B.std() + 1e-4 if combination == "standardised" else 1.0 for scorer, reward_B in scorer_B.items()}
    return rule(sum(weight * (scorer_B[scorer] / spread[scorer]) for scorer, weight in weights.items()), group_B)


def correlations(advantage_B: np.ndarray, scorer_B: Mapping[str, np.ndarray], group_B: np.ndarray) -> dict[str, float | None]:
    """How far the advantages follow each scorer's rewards within the groups, -1..1; None where either is constant."""

    def correlation(centred_B: np.ndarray) -> float | None:
        norm = np.linalg.norm(centred_B) * np.linalg.norm(advantage_B)
        return float(centred_B @ advantage_B / norm) if norm > 0 else None

    return {scorer: correlation(centred(reward_B, group_B)) for scorer, reward_B in scorer_B.items()}
