"""The generator: any diffusers SD3-format folder or hub repository, with a LoRA adapter as the trained policy.

Rollout and update go through one call, `Generator.velocity`: latents stay float32 outside, precision is chosen inside.

Shapes: B batch, C latent channels, H W latent size, L text columns, E column width, P pooled width.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusion3Pipeline
from huggingface_hub.errors import HFValidationError
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from star.allocation.columns import chosen_spans, core_columns
from star.config import Allocation, Compute, PolicySettings
from star.errors import InputError
from star.flow.schedule import Schedule, log_prob, step_mean
from star.hub import check as hub
from star.layout import ADAPTER_FILE
from star.models.attention import CoreColumns, Recorder, install
from star.prompts.record import Prompt

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ENCODED_AT_ONCE = 64  # prompts


@dataclass(frozen=True)
class Encoded:
    """Encoded prompts: text columns [B, L, E] and pooled vectors [B, P]; the core columns ride along."""

    columns_BLE: torch.Tensor
    pooled_BP: torch.Tensor
    core: CoreColumns

    def __getitem__(self, rows: torch.Tensor) -> "Encoded":
        core = CoreColumns(self.core.index_BK[rows], self.core.weight_BK[rows])
        return Encoded(self.columns_BLE[rows], self.pooled_BP[rows], core)


def pick_device(name: str) -> torch.device:
    """`auto`, `cpu` or `cuda` to a device. Raises InputError when CUDA is missing, or has no GPU for this process."""
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("policy.device: cuda is not available here; set policy.device to auto or cpu")
    device = torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)
    number, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if device.type == "cuda" and number >= gpus:
        raise InputError(
            f"compute.processes: process {number} of this machine finds {gpus} GPU(s), and each needs its own; lower it"
        )
    return device


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware; where it does not, bfloat16 is many times slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    found = torch.cpu.get_capabilities()
    return any(found.get(name, False) for name in ("avx512_bf16", "amx_bf16"))  # elsewhere nothing was measured


def pick_precision(policy: PolicySettings) -> torch.dtype:
    """The precision inside the transformer; `auto` is bfloat16 where the policy's device has it, else float32 (ours)."""
    if policy.precision != "auto":
        return DTYPES[policy.precision]
    return torch.bfloat16 if has_bfloat16(pick_device(policy.device)) else torch.float32


def load_pipeline(policy: PolicySettings) -> StableDiffusion3Pipeline:
    """The base pipeline. Raises InputError, with the remedy, when folder, repository, licence or revision is missing."""
    source = Path(policy.model)
    if source.exists():
        if not (source / "model_index.json").exists():
            raise InputError(f"policy.model: {source} has no model_index.json; name a diffusers SD3 pipeline folder")
    elif not hub.is_repository(policy.model):
        raise InputError(f"policy.model: no folder {source}; the miniature is made by `snakemake pretrain_miniature`")
    hub.check_pin(policy.model, policy.revision, "policy.model")
    settings = {"dtype": pick_precision(policy), "use_safetensors": True}
    where = (policy.model, policy.revision, "policy.model", "model_index.json")
    try:
        pipe = hub.load(StableDiffusion3Pipeline, *where, has_tokenizers, **settings)
    except (OSError, HFValidationError) as error:
        raise InputError(f"policy.model: cannot load {policy.model}: {' '.join(str(error).split())[:300]}") from None
    if not has_tokenizers(pipe):
        raise InputError(f"policy.model: {policy.model} lacks a tokenizer; name a whole diffusers SD3 pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def has_tokenizers(pipe: StableDiffusion3Pipeline) -> bool:
    """Whether every text encoder's tokenizer has its words; transformers makes an empty one where there is none."""
    pairs = ((getattr(pipe, f"tokenizer{n}"), getattr(pipe, f"text_encoder{n}")) for n in ("", "_2", "_3"))
    return all(len(tokenizer) > 0.9 * encoder.config.vocab_size for tokenizer, encoder in pairs if encoder)


class Generator:
    """A pipeline, given or loaded, prepared as policy: frozen base, one LoRA adapter, recorded attention.

    Raises InputError when the pipeline cannot be loaded, the device is missing or a block does not exist.
    """

    def __init__(
        self,
        policy: PolicySettings,
        allocation: Allocation | None = None,
        compute: Compute | None = None,
        pipe: StableDiffusion3Pipeline | None = None,
    ) -> None:
        self.policy, self.allocation, self.compute = policy, allocation or Allocation(), compute or Compute()
        self.device = pick_device(policy.device)
        self.dtype = pick_precision(policy)
        torch.set_float32_matmul_precision("high" if self.compute.tf32 else "highest")
        self.pipe = pipe or load_pipeline(policy)
        self.transformer = self.pipe.transformer.requires_grad_(False).to(self.device).eval()
        vae = self.pipe.vae.requires_grad_(False).to(self.device).eval()
        if self.compute.vae_slicing:
            vae.enable_slicing()
        if self.compute.vae_tiling:
            vae.enable_tiling()
        if self.compute.gradient_checkpointing:
            self.transformer.enable_gradient_checkpointing()
        self.record_blocks(self.allocation.blocks)
        if self.compute.compile:
            for block in self.transformer.transformer_blocks:
                block.compile()

    def record_blocks(self, blocks: Sequence[int]) -> None:
        """Choose the blocks whose attention `sample` records. Raises InputError when one does not exist."""
        try:
            self.recorder: Recorder = install(self.transformer, list(blocks), self.allocation.heads)
        except ValueError as error:
            raise InputError(str(error)) from None

    # -- prompts ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def encode(self, records: list[Prompt]) -> Encoded:
        """Encode prompt records; the text encoders visit the device only meanwhile."""
        encoders = [e for e in (self.pipe.text_encoder, self.pipe.text_encoder_2, self.pipe.text_encoder_3) if e]
        for encoder in encoders:
            encoder.to(self.device)
        prompts = [r.text for r in records]
        encoded = [
            self.pipe.encode_prompt(
                prompts[start : start + _ENCODED_AT_ONCE],
                prompt_2=None,
                prompt_3=None,
                device=self.device,
                do_classifier_free_guidance=False,
                max_sequence_length=self.policy.max_sequence_length,
            )
            for start in range(0, len(prompts), _ENCODED_AT_ONCE)
        ]
        if self.device.type != "cpu":
            for encoder in encoders:
                encoder.to("cpu")
            torch.cuda.empty_cache()  # a scorer on the same GPU cannot use what this process keeps
        columns, pooled = torch.cat([e[0] for e in encoded]), torch.cat([e[2] for e in encoded])
        tokenizers = [(self.pipe.tokenizer, self.pipe.tokenizer_max_length)]
        if self.pipe.text_encoder_3 is not None:
            tokenizers.append((self.pipe.tokenizer_3, self.policy.max_sequence_length))
        core = core_columns(tokenizers, prompts, [chosen_spans(r.text, r.core, self.allocation.tokens) for r in records])
        return Encoded(columns, pooled, core.to(self.device))

    # -- the policy -------------------------------------------------------------------------------------------------

    def velocity(
        self, x_BCHW: torch.Tensor, sigma: float, prompt: Encoded, empty: Encoded | None, record: bool = False
    ) -> torch.Tensor:
        """The velocity at noise level sigma, float32 [B, C, H, W], with guidance when `empty` is given.

        With `record`, `self.recorder` afterwards holds the raw attention maps of the conditional branch.
        """
        columns, pooled, x = prompt.columns_BLE, prompt.pooled_BP, x_BCHW
        if empty is not None:
            b = len(x_BCHW)
            columns = torch.cat([empty.columns_BLE.expand(b, -1, -1), columns])
            pooled = torch.cat([empty.pooled_BP.expand(b, -1), pooled])
            x = torch.cat([x, x])
        timestep = torch.full((len(x),), 1000 * sigma, device=x.device)
        with (
            torch.autocast(x.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32),
            self.recorder.recording(prompt.core) if record else nullcontext(),
        ):
            v = self.transformer(
                hidden_states=x.to(self.dtype),
                encoder_hidden_states=columns.to(self.dtype),
                pooled_projections=pooled.to(self.dtype),
                timestep=timestep,
                return_dict=False,
            )[0].float()
        if empty is None:
            return v
        unconditional, conditional = v.chunk(2)
        return unconditional + self.policy.guidance * (conditional - unconditional)

    def empty_prompt(self) -> Encoded | None:
        """The encoded negative prompt "", or None when the guidance is 1."""
        return self.encode([Prompt("", "", "", "")]) if self.policy.guidance > 1 else None

    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the latents at the policy's resolution."""
        side = self.policy.resolution // self.pipe.vae_scale_factor
        return self.transformer.config.in_channels, side, side

    @torch.no_grad()
    def sample(
        self,
        noise_BSCHW: torch.Tensor,
        prompt: Encoded,
        empty: Encoded | None,
        schedule: Schedule,
        record: bool = False,
        twin_B: np.ndarray | None = None,
    ) -> "Trajectory":
        """Denoise a batch. `noise_BSCHW` holds the start and then one noise per step (the ODE needs only the start).

        Rows of equal `twin_B` have the same start and prompt: until the first noisy step one of them is computed for all.
        """
        x, text = noise_BSCHW[:, 0].to(self.device), prompt
        together = twin_B is not None and not self.compute.compile  # compiled, another batch size would be another program
        if together:
            one_G, of_B = (torch.from_numpy(rows) for rows in np.unique(twin_B, return_index=True, return_inverse=True)[1:])
            x, text = x[one_G], prompt[one_G]
        latents, log_probs, maps = [x], [], []
        side = self.latent_shape()[1] // self.transformer.config.patch_size
        for t in range(len(schedule)):
            if together and schedule.std[t] > 0:  # here twins part
                together = False
                latents, log_probs, maps = ([each[of_B] for each in kept] for kept in (latents, log_probs, maps))
                x, text = latents[-1], prompt
            with torch.set_grad_enabled(self.compute.compile):  # compiled, it must be the update's program for a ratio of 1
                v = self.velocity(x, schedule.sigma[t].item(), text, empty, record).detach()
            mean = x_next = step_mean(schedule, t, x, v)
            if schedule.std[t] > 0:
                x_next = mean + schedule.std[t].item() * noise_BSCHW[:, t + 1].to(self.device)
                log_probs.append(log_prob(schedule, t, x_next, mean))
            else:
                log_probs.append(torch.zeros_like(mean[:, 0]))
            if record:
                maps.append(self.recorder.raw_maps().unflatten(-1, (side, side)).half())
            latents.append(x_next)
            x = x_next
        return Trajectory(torch.stack(latents, 1), torch.stack(log_probs, 1), torch.stack(maps, 1) if record else None)

    @torch.no_grad()
    def decode(self, latents_BCHW: torch.Tensor) -> list:
        """Pictures of final latents: a list of uint8 arrays [height, width, 3]."""
        vae = self.pipe.vae
        z = latents_BCHW / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
        pixels = vae.decode(z.to(vae.dtype)).sample.float()
        rounded = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
        return list(rounded.permute(0, 2, 3, 1).cpu().numpy())

    # -- the adapter ------------------------------------------------------------------------------------------------

    def add_adapter(self, seed: int) -> list[torch.nn.Parameter]:
        """Add a fresh LoRA adapter (float32, Gaussian A, zero B) and return its parameters, in a fixed order."""
        lora = self.policy.lora
        torch.manual_seed(seed)
        self.transformer.add_adapter(
            LoraConfig(r=lora.rank, lora_alpha=lora.alpha, init_lora_weights="gaussian", target_modules=lora.targets)
        )
        return self._prepare_adapter()

    def _prepare_adapter(self) -> list[torch.nn.Parameter]:
        """Keep the adapter in float32, whatever the base's precision, in training and testing alike; returns its parameters."""
        parameters = [p for name, p in self.transformer.named_parameters() if "lora_" in name]
        for p in parameters:
            p.data = p.data.float()
        if self.dtype != torch.float32:  # autocast does the casting; peft's own would go to float32 and back
            for module in self.transformer.modules():
                if isinstance(module, LoraLayer):
                    module.cast_input_dtype_enabled = False
        return parameters

    def shard(self, processes: int) -> None:
        """With compute.shard, share the frozen base out over the processes (FSDP), block by block; the adapter stays whole."""
        if not self.compute.shard or processes == 1:
            return
        mesh = init_device_mesh(self.device.type, (processes,))
        trained = {p for p in self.transformer.parameters() if p.requires_grad}
        for module in (*self.transformer.transformer_blocks, self.transformer):
            fully_shard(module, mesh=mesh, ignored_params=trained)

    @contextmanager
    def reference(self) -> Iterator[None]:
        """The base policy: the adapter is switched off inside."""
        self.transformer.disable_adapters()
        try:
            yield
        finally:
            self.transformer.enable_adapters()

    def adapter_state(self) -> dict[str, torch.Tensor]:
        """The adapter's weights under peft's names."""
        return get_peft_model_state_dict(self.transformer)

    def set_adapter_state(self, state: dict[str, torch.Tensor]) -> None:
        """Put weights from `adapter_state` back. Raises InputError when they do not fit this model."""
        result = set_peft_model_state_dict(self.transformer, state)
        if result.unexpected_keys:
            raise InputError(f"adapter: weights {result.unexpected_keys[:2]} do not fit {self.policy.model}")

    def load_adapter(self, folder: Path) -> None:
        """Load a saved adapter for sampling, at the strength that its file's header names (none: alpha = rank).

        It is not merged into the base: in bfloat16 the sum would round most of it away, and the policy would not be the
        trained one bit for bit. Raises InputError when the folder holds none, or one that does not fit this model.
        """
        file = folder / ADAPTER_FILE
        if not file.exists():
            raise InputError(f"{folder}: no {ADAPTER_FILE}; name the adapter/ folder of a checkpoint")
        loader = type(self.pipe)
        state, metadata = loader.lora_state_dict(str(folder), weight_name=ADAPTER_FILE, return_lora_metadata=True)
        prefix = f"{loader.transformer_name}."
        if foreign := [key for key in state if not key.startswith(prefix)]:
            raise InputError(f"{file}: weights {foreign[:2]} are not of the transformer; only its adapters can be tested here")
        try:
            self.transformer.load_lora_adapter(dict(state), metadata=metadata, adapter_name="default")
        except (ValueError, RuntimeError) as error:
            raise InputError(f"{file}: does not fit {self.policy.model}: {' '.join(str(error).split())[:200]}") from None
        self._prepare_adapter()  # which loading rounded to the base's precision, so the weights are put in again
        self.set_adapter_state({key.removeprefix(prefix): value for key, value in state.items()})


@dataclass(frozen=True)
class Trajectory:
    """A sampled batch: latents float32 [B, T+1, C, H, W], log-probabilities [B, T, H, W], raw maps half [B, T, O, h, w].

    O counts the recorded blocks.
    """

    latents_BSCHW: torch.Tensor
    log_prob_BTHW: torch.Tensor
    raw_BTOhw: torch.Tensor | None
