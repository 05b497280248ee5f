"""Flow-GRPO (arXiv 2505.05470) written plainly from its equations (docs/method.md): a yardstick of speed and of correctness.

Nothing of star's policy, allocation or training is used. Every sample's prompt is encoded, though a group shares it; attention
is diffusers' own; every step's log-probability is kept, one number a sample; the reference is a forward pass of its own. Only
the settings are shared, so that both do the same work: the same steps get noise and are trained, the same samples are dropped.

Shapes: B samples, M micro-batch, T steps, S = T + 1 latents, C H W latents, L text columns, E their width, P pooled width.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.models.attention_processor import JointAttnProcessor2_0

from star.config import RunSettings
from star.runtime import pick_precision


@contextmanager
def stock_attention(transformer: SD3Transformer2DModel) -> Iterator[None]:
    """Inside, all attentions run diffusers' own processor."""
    attentions = [a for block in transformer.transformer_blocks for a in (block.attn, block.attn2) if a is not None]
    before = [attention.processor for attention in attentions]
    for attention in attentions:
        attention.set_processor(JointAttnProcessor2_0())
    try:
        yield
    finally:
        for attention, processor in zip(attentions, before, strict=True):
            attention.set_processor(processor)


@dataclass(frozen=True)
class Samples:
    """Sampled images with all that the update needs, on the device."""

    columns_BLE: torch.Tensor
    pooled_BP: torch.Tensor
    latents_BSCHW: torch.Tensor
    log_prob_BT: torch.Tensor

    def __getitem__(self, rows: torch.Tensor) -> "Samples":
        return Samples(*(x[rows] for x in vars(self).values()))


def joined(parts: list[Samples]) -> Samples:
    """The samples of several batches as one."""
    return Samples(*(torch.cat(x) for x in zip(*(vars(part).values() for part in parts), strict=True)))


class FlowGrpo:
    """The algorithm on a diffusers pipeline whose transformer has a LoRA adapter; the text encoders are on `device`."""

    def __init__(self, pipe: StableDiffusion3Pipeline, settings: RunSettings, device: torch.device) -> None:
        self.pipe, self.transformer, self.device = pipe, pipe.transformer, device
        self.policy, self.rollout, self.objective = settings.policy, settings.rollout, settings.objective
        self.updates, self.max_grad_norm = settings.training.updates_per_epoch, settings.optimizer.max_grad_norm
        self.dtype = pick_precision(self.policy)
        scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
        scheduler.set_timesteps(self.rollout.steps)
        self.sigmas = scheduler.sigmas.tolist()
        self.negative = self.encode([""])

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Text columns [B, L, E] and pooled vectors [B, P] of every prompt, repeated ones too."""
        columns, _, pooled, _ = self.pipe.encode_prompt(
            prompts,
            prompt_2=None,
            prompt_3=None,
            device=self.device,
            do_classifier_free_guidance=False,
            max_sequence_length=self.policy.max_sequence_length,
        )
        return columns, pooled

    def velocity(self, x: torch.Tensor, t: int, columns: torch.Tensor, pooled: torch.Tensor) -> torch.Tensor:
        """The guided velocity at step t, float32 [B, C, H, W]."""
        guided = self.policy.guidance > 1
        if guided:
            negative_columns, negative_pooled = self.negative
            columns = torch.cat([negative_columns.repeat(len(x), 1, 1), columns])
            pooled = torch.cat([negative_pooled.repeat(len(x), 1), pooled])
            x = torch.cat([x, x])
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            v = self.transformer(
                hidden_states=x.to(self.dtype),
                timestep=torch.full((len(x),), 1000 * self.sigmas[t], device=self.device),
                encoder_hidden_states=columns.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                return_dict=False,
            )[0].float()
        if not guided:
            return v
        without, conditional = v.chunk(2)
        return without + self.policy.guidance * (conditional - without)

    def transition(self, x: torch.Tensor, v: torch.Tensor, t: int, trained: range) -> tuple[torch.Tensor, float, float]:
        """Mean of the next latents, its standard deviation, and sigma_t; outside a window of trained steps it is the ODE's."""
        sigma, following = self.sigmas[t], self.sigmas[t + 1]
        dt = following - sigma
        a = self.rollout.noise_level if self.rollout.window is None or t in trained else 0.0
        sigma_t = a * math.sqrt(sigma / (1 - (sigma if sigma != 1 else self.sigmas[1])))
        mean = x * (1 + sigma_t**2 / (2 * sigma) * dt) + v * (1 + sigma_t**2 * (1 - sigma) / (2 * sigma)) * dt
        return mean, sigma_t * math.sqrt(-dt), sigma_t

    @staticmethod
    def log_prob(x_next: torch.Tensor, mean: torch.Tensor, std: float) -> torch.Tensor:
        """Log-density of the next latents, averaged over channels and locations: [B]."""
        elements = -((x_next - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))
        return elements.mean(dim=(1, 2, 3))

    @torch.no_grad()
    def sample(
        self, columns_BLE: torch.Tensor, pooled_BP: torch.Tensor, noise_BSCHW: torch.Tensor, trained: range
    ) -> tuple[Samples, list[np.ndarray]]:
        """Denoise a batch from noise (the start, then one for each step) and decode it to uint8 pictures [height, width, 3]."""
        noise_BSCHW = noise_BSCHW.to(self.device)
        x = noise_BSCHW[:, 0]
        latents, log_probs = [x], []
        for t in range(self.rollout.steps):
            mean, std, _ = self.transition(x, self.velocity(x, t, columns_BLE, pooled_BP), t, trained)
            x = mean + std * noise_BSCHW[:, t + 1]
            log_probs.append(self.log_prob(x, mean, std) if std > 0 else torch.zeros(len(x), device=self.device))
            latents.append(x)
        vae = self.pipe.vae
        image = vae.decode((x / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)).to(vae.dtype)).sample
        pictures = self.pipe.image_processor.postprocess(image.float(), output_type="np")
        pictures = list((pictures * 255).round().astype(np.uint8))
        return Samples(columns_BLE, pooled_BP, torch.stack(latents, 1), torch.stack(log_probs, 1)), pictures

    def update(
        self, samples: Samples, advantage_B: torch.Tensor, trained: range, optimizer: torch.optim.Optimizer
    ) -> dict[str, float]:
        """The epoch's optimizer steps on the samples whose advantage is not zero; means of policy loss, KL and ratio."""
        objective, seen = self.objective, []
        kept = advantage_B.nonzero().flatten().cpu()
        kept = kept[torch.randperm(len(kept))]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for rows in kept.chunk(self.updates):
            for rows_M in rows.split(self.rollout.batch):
                for t in trained:
                    loss_M, kl_M, ratio_M = self.losses(samples[rows_M.to(self.device)], advantage_B[rows_M], t, trained)
                    ((loss_M + objective.kl_weight * kl_M).sum() / (len(rows) * len(trained))).backward()
                    seen.append(torch.stack([loss_M, kl_M, ratio_M]).detach())
            torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        means = torch.cat(seen, 1).mean(1).tolist()
        return dict(zip(("policy_loss", "kl", "ratio_mean"), means, strict=True))

    def losses(
        self, samples: Samples, advantage_M: torch.Tensor, t: int, trained: range
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Clipped loss, KL to the model without adapter, and ratio, of every sample at step t, [M] each."""
        x, x_next = samples.latents_BSCHW[:, t], samples.latents_BSCHW[:, t + 1]
        mean, std, sigma_t = self.transition(x, self.velocity(x, t, samples.columns_BLE, samples.pooled_BP), t, trained)
        with torch.no_grad():
            self.transformer.disable_adapters()
            reference, *_ = self.transition(x, self.velocity(x, t, samples.columns_BLE, samples.pooled_BP), t, trained)
            self.transformer.enable_adapters()
        kl = ((mean - reference) ** 2).mean(dim=(1, 2, 3)) / (2 * sigma_t**2)
        ratio = torch.exp(self.log_prob(x_next, mean, std) - samples.log_prob_BT[:, t])
        advantage, eps = advantage_M.to(self.device), self.objective.clip_range
        return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - eps, 1 + eps)), kl, ratio
