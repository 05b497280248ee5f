"""The clipped policy objective with spatially allocated log-probabilities, in two forms. Source: ours (method section 3).

`weighted`: one ratio a sample, of `allocate`d log-probabilities, into `clipped_loss`. `per_location`: a ratio and a clip at
every location, `clipped_loss_by_location`. Both have the same gradient where the ratio is 1.

Shapes: B samples, H W latent grid.
"""

import torch


def allocate(log_prob_BHW: torch.Tensor, M_BHW: torch.Tensor | None) -> torch.Tensor:
    """One log-probability a sample, [B]: the mean over locations of M times the location's log-probability.

    Without a map this is Flow-GRPO's scalar log-probability; a map of ones gives the same bits.
    """
    weighted = log_prob_BHW if M_BHW is None else M_BHW * log_prob_BHW
    return weighted.mean((1, 2))


def clipped_loss(
    advantage_B: torch.Tensor, new_B: torch.Tensor, old_B: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """PPO's clipped loss a sample and the ratio, both [B] (Flow-GRPO, method section 2)."""
    ratio_B = torch.exp(new_B - old_B)
    clipped_B = ratio_B.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage_B * ratio_B, -advantage_B * clipped_B), ratio_B


def clipped_loss_by_location(
    advantage_B: torch.Tensor, new_BHW: torch.Tensor, old_BHW: torch.Tensor, M_BHW: torch.Tensor, clip_range: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss a sample, [B], as the mean over locations of M times PPO's clipped loss there; and the ratios, [B, H, W]."""
    loss_BHW, ratio_BHW = clipped_loss(advantage_B[:, None, None], new_BHW, old_BHW, clip_range)
    return (M_BHW * loss_BHW).mean((1, 2)), ratio_BHW
