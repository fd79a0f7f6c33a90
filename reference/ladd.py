"""One LADD training step (arXiv 2403.12015) in autograd: losses, gradients, both optimizers, EMA.

The student maps x_t to x0_hat; fake and real are renoised to t_hat and read by the frozen teacher, whose block features the
heads score.  L_D separates real from fake; L_G flows through heads and teacher into the student.
`simultaneous` takes both gradients from one set of features; `alternating` updates the student first, then
the heads with fresh draws and the updated student.  Groups of the discriminator's batch, in this order: fake, real,
[mismatch], [perturbed].  All means run over heads x samples x positions.
"""

import copy
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

import flow

FAKE, REAL = 0, 1


@dataclass(frozen=True)
class StepConfig:
    taps: tuple
    update: str = "simultaneous"  # or "alternating"
    loss: str = "hinge"  # or "non_saturating"
    student_t: dict = field(default_factory=lambda: {"kind": "uniform"})
    renoise_t: dict = field(default_factory=lambda: {"kind": "logit_normal", "mean": 1.0, "std": 1.0})
    mismatch_weight: float = 0.0  # 0: no such group
    r1_weight: float = 0.0  # 0: no such group
    r1_sigma: float = 0.01
    distill_weight: float = 0.0
    lr_student: float = 1e-5
    lr_heads: float = 2e-5
    betas: tuple = (0.9, 0.999)
    weight_decay: float = 0.0
    max_norm: float = 1.0
    ema_decay: float = 0.99

    @property
    def groups(self):
        return ["fake", "real"] + ["mismatch"] * (self.mismatch_weight > 0) + ["perturbed"] * (self.r1_weight > 0)


@dataclass
class Batch:
    x0: torch.Tensor  # [B, C, Hl, Wl]
    context: torch.Tensor  # [B, L, Cd]
    pooled: torch.Tensor  # [B, P]
    first_sample: int = 0  # where this batch starts in the global one
    conditioning: torch.Tensor | None = None  # [B, K, Hl, Wl], never noised


class Draws:
    """The step's random numbers; `phase` is 0, or DISCRIMINATOR_PHASE in the second half of an alternating step."""

    def __init__(self, config, batch, seed, step, phase=0):
        def normal(stream):
            return flow.noise(batch.x0.shape, seed, step, stream + phase, batch.first_sample, batch.x0.dtype)

        def times(distribution, stream):
            return flow.timesteps(distribution, len(batch.x0), seed, step, stream + phase, batch.first_sample)

        self.t = times(config.student_t, flow.STUDENT_T)
        self.t_hat = times(config.renoise_t, flow.RENOISE_T)
        self.noise = normal(flow.STUDENT_NOISE)
        self.fake_noise = normal(flow.FAKE_NOISE)
        self.real_noise = normal(flow.REAL_NOISE)
        self.perturbation = normal(flow.PERTURBATION)


def predict(student, batch, draws):
    """x0_hat [B, C, Hl, Wl] of the student."""
    x_t = flow.interpolate(batch.x0, draws.noise, draws.t)
    return flow.predict_x0(x_t, student(x_t, draws.t, batch.context, batch.pooled, conditioning=batch.conditioning), draws.t)


def renoised_groups(config, x0_hat, batch, draws):
    """One (latent, context, pooled) per group.  A mismatched sample reads the text of the next sample of its batch."""
    real = flow.interpolate(batch.x0, draws.real_noise, draws.t_hat)
    groups = {
        "fake": (flow.interpolate(x0_hat, draws.fake_noise, draws.t_hat), batch.context, batch.pooled),
        "real": (real, batch.context, batch.pooled),
    }
    if config.mismatch_weight > 0:
        groups["mismatch"] = (real, batch.context.roll(-1, 0), batch.pooled.roll(-1, 0))
    if config.r1_weight > 0:
        moved = batch.x0 + config.r1_sigma * draws.perturbation
        groups["perturbed"] = (flow.interpolate(moved, draws.real_noise, draws.t_hat), batch.context, batch.pooled)
    return list(groups.values())


def score(config, teacher, heads, groups, t_hat, conditioning=None):
    """Logits [heads, groups, B, N] of renoised groups, all in one teacher batch; all groups have the same conditioning."""
    latent, context, pooled = (torch.cat(part) for part in zip(*groups))
    t = t_hat.repeat(len(groups))
    conditioning = None if conditioning is None else conditioning.repeat(len(groups), 1, 1, 1)
    features = teacher.features(latent, t, context, pooled, config.taps, conditioning)
    return heads(features, t, pooled, teacher.grid(latent)).unflatten(1, (len(groups), -1))


def discriminator_loss(logits, config):
    """logits [heads, groups, B, N] -> the loss of every head [heads]; L_D is their mean."""
    logit = dict(zip(config.groups, logits.unbind(1)))  # each [heads, B, N]
    mean = lambda x: x.mean((1, 2))
    if config.loss == "hinge":
        as_real = lambda x: F.relu(1 - x)
        as_fake = lambda x: F.relu(1 + x)
    else:
        as_real = lambda x: F.softplus(-x)
        as_fake = F.softplus
    loss = mean(as_real(logit["real"])) + mean(as_fake(logit["fake"]))
    if "mismatch" in logit:
        loss = loss + config.mismatch_weight * mean(as_fake(logit["mismatch"]))
    if "perturbed" in logit:
        loss = loss + config.r1_weight * mean((logit["real"] - logit["perturbed"]).square())
    return loss


def generator_loss(fake, config):
    """fake logits [heads, B, N] -> the loss of every head [heads]; L_G is their mean."""
    return (-fake if config.loss == "hinge" else F.softplus(-fake)).mean((1, 2))


def head_statistics(logits):
    """Per head: mean real, mean fake, share of real logits > 0, share of fake logits < 0.  [heads, 4]"""
    real, fake = logits[:, REAL], logits[:, FAKE]
    parts = [real, fake, (real > 0).to(real.dtype), (fake < 0).to(real.dtype)]
    return torch.stack([part.mean((1, 2)) for part in parts], dim=-1)


class Trainer:
    """Holds the networks, optimizers and the EMA; `step` performs one update and returns what it measured."""

    def __init__(self, config, student, teacher, heads):
        self.config, self.student, self.teacher, self.heads = config, student, teacher, heads
        teacher.requires_grad_(False)
        options = {"betas": config.betas, "weight_decay": config.weight_decay, "eps": 1e-8}
        self.student_optimizer = torch.optim.AdamW(student.parameters(), config.lr_student, **options)
        self.heads_optimizer = torch.optim.AdamW(heads.parameters(), config.lr_heads, **options)
        self.ema = copy.deepcopy(student).requires_grad_(False)
        self.updates = 0

    def step(self, batch, seed, step):
        simultaneous = self.config.update == "simultaneous"
        record = {}
        draws = Draws(self.config, batch, seed, step)
        x0_hat = predict(self.student, batch, draws)
        groups = renoised_groups(self.config, x0_hat, batch, draws)
        logits = score(self.config, self.teacher, self.heads, groups if simultaneous else groups[:1], draws.t_hat, batch.conditioning)
        student_gradients = self.student_backward(logits[:, FAKE], x0_hat, batch, record)
        if simultaneous:
            heads_gradients = self.heads_backward(logits, record)
            record |= {"t": draws.t, "t_hat": draws.t_hat, "x0_hat": x0_hat.detach()}
            self.update_student(student_gradients, record)
            self.update_heads(heads_gradients, record)
            return record

        self.update_student(student_gradients, record)
        fresh = Draws(self.config, batch, seed, step, flow.DISCRIMINATOR_PHASE)
        with torch.no_grad():
            again = predict(self.student, batch, fresh)
        groups = renoised_groups(self.config, again, batch, fresh)
        logits = score(self.config, self.teacher, self.heads, groups, fresh.t_hat, batch.conditioning)
        self.update_heads(self.heads_backward(logits, record), record)
        record |= {"t": draws.t, "t_hat": draws.t_hat, "x0_hat": x0_hat.detach()}
        record |= {"d.t": fresh.t, "d.t_hat": fresh.t_hat, "d.x0_hat": again}
        return record

    def student_backward(self, fake_logits, x0_hat, batch, record):
        per_head = generator_loss(fake_logits, self.config)
        loss = per_head.mean()
        record |= {"generator_loss": loss.detach(), "generator_loss_per_head": per_head.detach()}
        if self.config.distill_weight > 0:
            distillation = (x0_hat - batch.x0).square().mean()
            record["distillation_loss"] = distillation.detach()
            loss = loss + self.config.distill_weight * distillation
        record["student_loss"] = loss.detach()
        return torch.autograd.grad(loss, list(self.student.parameters()), retain_graph=True)

    def heads_backward(self, logits, record):
        per_head = discriminator_loss(logits, self.config)
        record |= {"discriminator_loss": per_head.mean().detach(), "discriminator_loss_per_head": per_head.detach()}
        record |= {"logits": logits.detach(), "head_statistics": head_statistics(logits.detach())}
        return torch.autograd.grad(per_head.mean(), list(self.heads.parameters()))

    def update_student(self, gradients, record):
        self.apply("student", self.student, self.student_optimizer, gradients, record)
        self.updates += 1
        decay = min(self.config.ema_decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for average, parameter in zip(self.ema.parameters(), self.student.parameters()):
                average += (1 - decay) * (parameter - average)

    def update_heads(self, gradients, record):
        self.apply("heads", self.heads, self.heads_optimizer, gradients, record)

    def apply(self, name, network, optimizer, gradients, record):
        """Records the gradients as they come, clips their global norm, and steps."""
        names = [parameter for parameter, _ in network.named_parameters()]
        record[f"{name}_gradients"] = {n: g.clone() for n, g in zip(names, gradients)}
        for parameter, gradient in zip(network.parameters(), gradients):
            parameter.grad = gradient
        record[f"{name}_norm"] = torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.max_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
