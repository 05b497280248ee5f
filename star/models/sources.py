"""Where a base comes from. Without torch, because Snakemake reads it at every start."""

from star.config import PolicySettings
from star.hub.check import Source


def base(policy: PolicySettings) -> Source:
    """The pipeline of the policy's model."""
    return Source("policy.model", policy.model, policy.revision, ("pipeline",))
