"""Group-relative advantages (Flow-GRPO, method section 2)."""

import numpy as np


def group_advantages(rewards: np.ndarray, groups: np.ndarray, clip: float) -> np.ndarray:
    """(reward - mean of its prompt's group) / (standard deviation of all rewards + 1e-4), clipped; float64 [B].

    `groups` names the prompt of each reward. A group whose rewards are all equal gets exactly zero. Raises ValueError on a
    reward that is not finite.
    """
    if not np.isfinite(rewards).all():
        raise ValueError(f"reward of sample {int(np.flatnonzero(~np.isfinite(rewards))[0])} is not finite")
    centred = np.zeros(len(rewards))
    for group in np.unique(groups):
        members = groups == group
        if np.ptp(rewards[members]) > 0:
            centred[members] = rewards[members] - rewards[members].mean()
    return np.clip(centred / (rewards.std() + 1e-4), -clip, clip)
