"""The one spatial rule: a value a sample is the mean over places of the map times the value there.

Shapes: B samples, C latent channels, H W latent grid, h w token grid. Source: ours (docs/method.md).
"""

import numpy as np
import torch
import torch.nn.functional as F


def spread(value_BHW: torch.Tensor, map_BHW: torch.Tensor | None) -> torch.Tensor:
    """One value a sample, [B]: the mean over places of the map times the value; without a map the plain mean.

    A map of ones gives the same bits as none.
    """
    weighted = value_BHW if map_BHW is None else map_BHW * value_BHW
    return weighted.mean((1, 2))


def token_shares(masks: list[np.ndarray], tokens: tuple[int, int]) -> torch.Tensor:
    """The share of every token that masks, bool [height, width], cover: float32 [B, h, w]."""
    return F.adaptive_avg_pool2d(torch.from_numpy(np.stack(masks)).float(), tokens)
