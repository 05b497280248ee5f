"""Group-relative advantages (Flow-GRPO, arXiv 2505.05470)."""

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
