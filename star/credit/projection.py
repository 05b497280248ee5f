"""A seeded random projection that keeps inner products: gradients of millions of coordinates become some kilobytes.

Every coordinate gets a random sign, and the coordinates are dealt at random to D sums of equally many. Inner products keep
their expectation; their standard error is at most |a| |b| sqrt(2 / D). Source: count sketch and feature hashing (arXiv
0902.2206); sums of equally many are ours, because a gather adds in the same order everywhere.

Shapes: P coordinates, D dimensions.
"""

import torch
import torch.nn.functional as F

from star.flow.seeding import rng


class Projection:
    """From P `coordinates` to D `dimensions`, at most P; with as many dimensions as coordinates nothing is projected."""

    def __init__(self, coordinates: int, dimensions: int, device: torch.device) -> None:
        self.coordinates, self.dimensions = coordinates, min(dimensions, coordinates)
        self.exact = dimensions >= coordinates
        if self.exact:
            return
        generator = rng("projection", coordinates, dimensions)
        self.padding = -coordinates % dimensions
        self.sign_P = (2 * torch.randint(2, (coordinates,), generator=generator) - 1).float().to(device)
        self.order = torch.randperm(coordinates + self.padding, generator=generator).to(device)

    def __call__(self, vector_P: torch.Tensor) -> torch.Tensor:
        """The projected vector, float64 [D], on the CPU."""
        if self.exact:
            return vector_P.double().cpu()
        padded = F.pad(vector_P * self.sign_P, (0, self.padding))
        return padded[self.order].view(self.dimensions, -1).double().sum(1).cpu()
