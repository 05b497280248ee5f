"""The recipe of the miniature base: an autoencoder, then the text encoders and the transformer together by flow matching.

In the last quarter captions are imperfect on purpose, as web captions are: a share of them is another picture's (of lettered
ones, only the word is another's). The base therefore knows every concept and follows the caption only mostly,
which is what post-training can mend. Words of the lettered test prompts are in no caption. Resumable: a killed run goes on
from its last state and ends with the same weights.

Shapes: B batch, C latent channels, H W latent size, L caption columns.
"""

import json
import math
import os
import re
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file
from torch import distributed, multiprocessing, nn
from torch.distributed.optim import ZeroRedundancyOptimizer
from tqdm import tqdm

from star.models.sd3 import SD3Attention
from star.pretraining import base
from star.runtime import has_bfloat16
from star.training.learner import optimizer_tensors, set_optimizer_tensors
from star.worlds.miniature.captions import TAGS, TEST_PROMPTS, caption, split
from star.worlds.miniature.scenes import compose, render

MIXTURE = dict(zip((*TAGS, "ocr", "free"), (0.05, 0.18, 0.1, 0.08, 0.2, 0.15, 0.14, 0.1), strict=True))
TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


@dataclass(frozen=True)
class Recipe:
    """Settings of the base training; the embedded weights are what these gave."""

    seed: int = 0
    images: int = 65536
    caption_noise: float = 0.2  # share of captions that are another picture's in the last steps
    word_noise: float = 0.5  # share of lettered captions that name another word in the last steps
    caption_dropout: float = 0.1
    autoencoder_steps: int = 1600
    autoencoder_whole_steps: int = 350
    autoencoder_batch: int = 32
    autoencoder_lr: float = 2e-3
    kl_weight: float = 1e-4
    steps: int = 18500
    batch: int = 64
    processes: int = 2
    sigma_mean: float = 0.8  # of logit(sigma): noisier than the usual 0, because shapes and letters are decided there
    sigma_std: float = 1.2
    lr: float = 1e-3
    muon_lr: float = 3e-3
    warmup: int = 300
    noisy_share: float = 0.25  # of the steps, the last ones
    decay_share: float = 0.15
    ema: float = 0.999
    save_every: int = 250
    compile: bool = True  # the transformer; for short runs it costs more than it gains


def corpus(recipe: Recipe) -> tuple[np.ndarray, list[str]]:
    """Pictures, uint8 [images, 64, 64, 3], and their captions."""
    rng = np.random.default_rng(recipe.seed)
    pools = {tag: split(tag, TEST_PROMPTS["ocr"]["ocr"] if tag == "ocr" else 0)[0] for tag in MIXTURE}
    pictures, texts = np.empty((recipe.images, 64, 64, 3), np.uint8), []
    tags = rng.choice(list(MIXTURE), size=recipe.images, p=list(MIXTURE.values()))
    for i, tag in enumerate(tqdm(tags, desc="drawing", mininterval=10)):
        described = pools[tag][int(rng.integers(len(pools[tag])))]
        pictures[i] = render(compose(described, rng))
        texts.append(caption(described))
    return pictures, texts


def noisy(texts: list[str], recipe: Recipe) -> list[str]:
    """The captions with `caption_noise` of them taken from other pictures, of lettered ones `word_noise` of the words."""
    lettered = re.compile('"[A-Z]+"')
    words = sorted({d["text"] for d in split("ocr", TEST_PROMPTS["ocr"]["ocr"])[0]})
    others = [t for t in texts if not lettered.search(t)]
    rng = np.random.default_rng([recipe.seed, 1])
    return [
        (lettered.sub(f'"{rng.choice(words)}"', t) if rng.random() < recipe.word_noise else t)
        if lettered.search(t)
        else (others[int(rng.integers(len(others)))] if rng.random() < recipe.caption_noise else t)
        for t in texts
    ]


def rate_factor(step: int, steps: int, warmup: int, decay_share: float) -> float:
    """Warm up, stay, fall linearly to zero over the last `decay_share`."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay_share * steps))


def _pixels(pictures: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1


def _bfloat16() -> torch.autocast:
    """Compute in bfloat16 where this processor has it."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=has_bfloat16(torch.device("cpu")))


def train_autoencoder(vae: nn.Module, pictures: np.ndarray, recipe: Recipe) -> float:
    """Train in place; returns the mean squared error of the last 100 steps (pixels in -1..1).

    Quarter-size crops first (a quarter of the cost), whole pictures in half batches at the end.
    """
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=recipe.autoencoder_lr, betas=(0.9, 0.98), weight_decay=0)
    generator = torch.Generator().manual_seed(recipe.seed)
    errors = []
    progress = tqdm(range(recipe.autoencoder_steps), desc="autoencoder", mininterval=10)
    for step in progress:
        whole = step >= recipe.autoencoder_steps - recipe.autoencoder_whole_steps
        batch, side = (recipe.autoencoder_batch // 2, 64) if whole else (recipe.autoencoder_batch, 32)
        rows = torch.randint(recipe.images, (batch,), generator=generator).numpy()
        top, left = torch.randint((64 - side) // 4 + 1, (2,), generator=generator).mul(4).tolist()
        x = _pixels(pictures[rows, top : top + side, left : left + side]).to(memory_format=torch.channels_last)
        with _bfloat16():
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator)
            y = vae.decode(posterior.mean + posterior.std * noise).sample
        error = F.mse_loss(y.float(), x)
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        for group in optimizer.param_groups:
            group["lr"] = recipe.autoencoder_lr * rate_factor(step, recipe.autoencoder_steps, 50, 0.4)
        optimizer.zero_grad()
        (error + recipe.kl_weight * kl).backward()
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        errors.append(error.item())
        progress.set_postfix(mse=np.mean(errors[-100:]), refresh=False)
    return float(np.mean(errors[-100:]))


@torch.no_grad()
def encode_pictures(vae: nn.Module, pictures: np.ndarray) -> torch.Tensor:
    """Latent means before scaling, half precision [images, C, H, W]."""
    latents = []
    for start in tqdm(range(0, len(pictures), 256), desc="encoding", mininterval=10):
        with _bfloat16():
            x = _pixels(pictures[start : start + 256]).to(memory_format=torch.channels_last)
            latents.append(vae.encode(x).latent_dist.mean.half())
    return torch.cat(latents)


def encode_captions(
    pipe: StableDiffusion3Pipeline, clip_BL: torch.Tensor, t5_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `pipe.encode_prompt` computes, with gradients, from token ids: columns [B, 2L, D] and pooled [B, P]."""
    outputs = [e(clip_BL, output_hidden_states=True) for e in (pipe.text_encoder, pipe.text_encoder_2)]
    t5 = pipe.text_encoder_3(t5_BL)[0]
    clip = torch.cat([o.hidden_states[-2] for o in outputs], -1)
    clip = F.pad(clip, (0, t5.shape[-1] - clip.shape[-1]))
    return torch.cat([clip, t5], 1), torch.cat([o[0] for o in outputs], -1)


def _optimizers(named: dict[str, nn.Parameter], recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer's blocks, AdamW for everything else."""
    hidden = [p for n, p in named.items() if p.ndim == 2 and "transformer_blocks" in n]
    chosen = {id(p) for p in hidden}
    others = [p for p in named.values() if id(p) not in chosen]
    return [
        ZeroRedundancyOptimizer(  # every process orthogonalises its share of the matrices
            hidden, torch.optim.Muon, lr=recipe.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=recipe.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def _token_ids(pipe: StableDiffusion3Pipeline, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids of the captions for CLIP and for T5, [B, L] each."""
    length = {"padding": "max_length", "max_length": base.TEXT_LENGTH, "truncation": True, "return_tensors": "pt"}
    return pipe.tokenizer(texts, **length).input_ids, pipe.tokenizer_3(texts, **length).input_ids


@dataclass
class _Flow:
    """What the training of the transformer changes, and keeps in a folder to go on from."""

    modules: nn.ModuleDict
    optimizers: list[torch.optim.Optimizer]
    average: dict[str, torch.Tensor]
    step: int = 0
    losses: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0

    def load(self, state: Path) -> None:
        """Become what the folder holds."""
        progress = json.loads((state / "progress.json").read_text(encoding="utf-8"))
        self.step, self.losses, self.seconds = progress["step"], progress["losses"], progress["seconds"]
        self.modules.load_state_dict(load_file(state / "weights.safetensors"), strict=False)  # buffers are constants
        self.average = load_file(state / "average.safetensors")
        for i, optimizer in enumerate(self.optimizers):
            set_optimizer_tensors(optimizer, load_file(state / f"optimizer{i}.safetensors"))

    def save(self, state: Path) -> None:
        """Write the folder, whole or not at all."""
        draft = state.with_name(f".{state.name}.tmp")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        save_file({n: p.detach().clone() for n, p in self.modules.named_parameters()}, draft / "weights.safetensors")
        save_file(self.average, draft / "average.safetensors")
        for i, optimizer in enumerate(self.optimizers):
            save_file(optimizer_tensors(optimizer), draft / f"optimizer{i}.safetensors")
        progress = {"step": self.step, "losses": self.losses, "seconds": self.seconds}
        (draft / "progress.json").write_text(json.dumps(progress), encoding="utf-8")
        shutil.rmtree(state, ignore_errors=True)
        draft.rename(state)


def _average_over_processes(parameters: list[nn.Parameter], loss: torch.Tensor, processes: int) -> float:
    """Replace every gradient by its mean over the processes; returns that of the loss."""
    shared = torch.cat([p.grad.flatten() for p in parameters] + [loss.detach().view(1)]) / processes
    distributed.all_reduce(shared)
    for p, grad in zip(parameters, shared[:-1].split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(grad.view_as(p))
    return shared[-1].item()


def train_transformer(
    pipe: StableDiffusion3Pipeline, latents: torch.Tensor, texts: list[str], recipe: Recipe, state: Path, rank: int
) -> None:
    """Train transformer and text encoders in place by flow matching, resuming from `state`, where rank 0 saves the average.

    Every process draws the whole batch and takes its rows; gradients are averaged, so the number of processes changes
    rounding only.
    """
    # What is trained, as it was when the run stopped.
    modules = nn.ModuleDict({name: getattr(pipe, name) for name in ("transformer", *TEXT_ENCODERS)})
    for block in pipe.transformer.transformer_blocks:
        block.attn.set_processor(SD3Attention())  # in float32, whose gradients are ten times faster on a CPU than bfloat16's
    named = dict(modules.named_parameters())
    parameters = list(named.values())
    flow = _Flow(modules, _optimizers(named, recipe), average={n: p.detach().clone() for n, p in named.items()})
    if (state / "progress.json").exists():
        flow.load(state)
    denoise = torch.compile(pipe.transformer) if recipe.compile else pipe.transformer

    # What it is trained on.
    early, late, none = (_token_ids(pipe, captions) for captions in (texts, noisy(texts, recipe), [""]))
    late_from = math.ceil((1 - recipe.noisy_share) * recipe.steps)
    scale, shift = pipe.vae.config.scaling_factor, pipe.vae.config.shift_factor

    mine = slice(rank, None, recipe.processes)
    steps = range(flow.step, recipe.steps)
    bar = tqdm(steps, initial=flow.step, total=recipe.steps, desc="flow matching", mininterval=15, disable=rank > 0)
    window, parent = [], os.getppid()
    for step in bar:
        if os.getppid() != parent:
            raise SystemExit("the process that started this training is gone")
        began = time.perf_counter()

        # This process's rows of the batch, noised.
        generator = torch.Generator().manual_seed((recipe.seed + 1) * 1_000_003 + step)
        rows = torch.randint(len(latents), (recipe.batch,), generator=generator)
        dropped = torch.rand(recipe.batch, 1, generator=generator) < recipe.caption_dropout
        chosen = early if step < late_from else late
        clip_BL, t5_BL = (torch.where(dropped, empty, ids[rows])[mine] for empty, ids in zip(none, chosen, strict=True))
        x0_BCHW = (latents[rows].float() - shift) * scale
        noise_BCHW = torch.randn(x0_BCHW.shape, generator=generator)
        sigma_B = (recipe.sigma_mean + recipe.sigma_std * torch.randn(recipe.batch, generator=generator)).sigmoid()
        x0_BCHW, noise_BCHW, sigma_B = x0_BCHW[mine], noise_BCHW[mine], sigma_B[mine]
        x_BCHW = torch.lerp(x0_BCHW, noise_BCHW, sigma_B[:, None, None, None])

        # Gradients of the flow-matching loss.
        with _bfloat16():
            columns, pooled = encode_captions(pipe, clip_BL, t5_BL)
            v_BCHW = denoise(
                hidden_states=x_BCHW,
                encoder_hidden_states=columns,
                pooled_projections=pooled,
                timestep=1000 * sigma_B,
                return_dict=False,
            )[0]
        loss = F.mse_loss(v_BCHW.float(), noise_BCHW - x0_BCHW)
        for optimizer in flow.optimizers:
            optimizer.zero_grad()
        loss.backward()
        window.append(_average_over_processes(parameters, loss, recipe.processes))
        nn.utils.clip_grad_norm_(parameters, 1.0)

        # A step of the weights and of their average.
        factor = rate_factor(step, recipe.steps, recipe.warmup, recipe.decay_share)
        for optimizer, rate in zip(flow.optimizers, (recipe.muon_lr, recipe.lr), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * factor
            optimizer.step()
        decay = min(recipe.ema, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(flow.average.values()), [named[n] for n in flow.average], 1 - decay)

        # What is said and kept of it.
        flow.step = step + 1
        flow.seconds += time.perf_counter() - began
        ended = flow.step == recipe.steps
        if flow.step % 100 == 0 or ended:
            flow.losses.append([flow.step, float(np.mean(window[-100:]))])
            window = window[-100:]
            bar.set_postfix(loss=flow.losses[-1][1], refresh=False)
        if flow.step % recipe.save_every == 0 or ended:
            flow.optimizers[0].consolidate_state_dict()
            if rank == 0:
                flow.save(state)


def flow_process(rank: int, recipe: Recipe, work: Path, texts: list[str]) -> None:
    torch.set_num_threads(1)
    rendezvous = (work / "rendezvous").absolute().as_uri()
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=recipe.processes)
    pipe = base.pipeline(recipe.seed)
    pipe.vae = type(pipe.vae).from_pretrained(work / "vae")
    train_transformer(pipe, load_file(work / "latents.safetensors")["latents"], texts, recipe, work / "flow", rank)
    distributed.destroy_process_group()


def _by_module(tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    modules: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        module, parameter = name.split(".", 1)
        modules.setdefault(module, {})[parameter] = tensor
    return modules


def pretrain(out: Path, work: Path, recipe: Recipe) -> None:
    """Make the base in `out`; `work` keeps what resuming needs."""
    work.mkdir(parents=True, exist_ok=True)
    pipe = base.pipeline(recipe.seed)
    pictures, texts = corpus(recipe)
    if (work / "vae" / "config.json").exists():
        pipe.vae = type(pipe.vae).from_pretrained(work / "vae")
        report = json.loads((work / "vae" / "report.json").read_text(encoding="utf-8"))
    else:
        began = time.perf_counter()
        report = {"autoencoder_mse": train_autoencoder(pipe.vae, pictures, recipe)}
        latents = encode_pictures(pipe.vae, pictures[:4096]).float()
        pipe.vae.register_to_config(scaling_factor=1 / latents.std().item(), shift_factor=latents.mean().item())
        report["autoencoder_hours"] = (time.perf_counter() - began) / 3600
        pipe.vae.save_pretrained(work / "vae")
        (work / "vae" / "report.json").write_text(json.dumps(report))
    if not (work / "latents.safetensors").exists():
        save_file({"latents": encode_pictures(pipe.vae, pictures).contiguous()}, work / "latents.safetensors")
    (work / "rendezvous").unlink(missing_ok=True)
    multiprocessing.spawn(flow_process, (recipe, work, texts), nprocs=recipe.processes)
    for name, tensors in _by_module(load_file(work / "flow" / "average.safetensors")).items():
        getattr(pipe, name).load_state_dict(tensors, strict=False)
    progress = json.loads((work / "flow" / "progress.json").read_text(encoding="utf-8"))
    pipe.vae.register_to_config(_name_or_path="")  # else the folder of this machine is saved
    pipe.save_pretrained(out)
    report |= {"losses": progress["losses"], "hours": progress["seconds"] / 3600}
    (out / "training.json").write_text(json.dumps({"recipe": asdict(recipe), **report}, indent=1))
