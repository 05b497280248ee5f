"""Every random number from (seed, epoch, prompt, rollout): the same for any method, batch split or number of processes."""

import hashlib

import torch


def rng(*key: int | str) -> torch.Generator:
    """A CPU generator of random numbers seeded by the SHA-256 of its key's repr, in which 1 and numpy's 1 differ."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def noise(shape: tuple[int, ...], *key: int | str) -> torch.Tensor:
    """Standard normal noise of one rollout, float32."""
    return torch.randn(shape, generator=rng(*key))
