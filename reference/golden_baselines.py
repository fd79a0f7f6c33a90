"""Golden cases of the baselines' steps: target, loss, and the student's gradient.

Student, teacher, heads and the student's moving average come from four different seeds, so that no test passes by mixing
them up.  The ADD cases have the adversarial loss too, which reaches the student through heads and teacher.
"""

from dataclasses import asdict, replace

import torch

import baselines
import flow
import ladd
from golden import Case, fill_parameters
from golden_ladd import COMMON, CONFIG, LATENT, SEEDS, TEXT, WIDTH
from heads import Heads
from mmdit import MMDiT

AVERAGE_SEED = 204
UNIFORM = {"kind": "uniform"}
STEP = ladd.StepConfig(**COMMON)
STEPS = {
    "add_exponential": {"kind": "score", "adversarial": 1.0, "weight": 2.5, "weighting": "exponential", "t": UNIFORM, "guidance": 3.0},
    "add_sds": {"kind": "score", "adversarial": 0.5, "weight": 0.75, "weighting": "sds", "t": STEP.renoise_t, "guidance": 1.0},
    "score_constant": {"kind": "score", "adversarial": 0.0, "weight": 1.5, "weighting": "constant", "t": UNIFORM, "guidance": 2.0},
    "lcm_guided": {"kind": "consistency", "adversarial": 0.0, "intervals": 5, "guidance": 3.0},
    "lcm_unguided": {"kind": "consistency", "adversarial": 0.0, "intervals": 2, "guidance": 1.0},
}


def baseline_case(name, baseline, dtype):
    batch_size, step, first_sample, seed = 3, 600, 4, SEEDS["noise_seed"]
    consistency = baseline["kind"] == "consistency"
    config = replace(STEP, student_t=baselines.grid(baseline["intervals"], 1)) if consistency else STEP
    case = Case(
        name, "baseline_step", 210, dtype, model=asdict(CONFIG), ladd=asdict(config), baseline=baseline, head_width=WIDTH,
        B=batch_size, step=step, first_sample=first_sample, average_seed=AVERAGE_SEED, **SEEDS,
    )  # fmt: skip
    network = lambda seed: fill_parameters(MMDiT(CONFIG), seed).to(dtype)
    student, teacher, average = network(SEEDS["student_seed"]), network(SEEDS["teacher_seed"]), network(AVERAGE_SEED)
    average.pos_embed.copy_(student.pos_embed)  # which is no parameter, and so not averaged
    heads = fill_parameters(Heads(len(config.taps), CONFIG.hidden, CONFIG.pooled_dim, WIDTH), SEEDS["heads_seed"]).to(dtype)
    batch = ladd.Batch(
        case.normal("x0", batch_size, CONFIG.in_channels, *LATENT).detach(),
        case.normal("context", batch_size, TEXT, CONFIG.context_dim).detach(),
        case.normal("pooled", batch_size, CONFIG.pooled_dim).detach(),
        first_sample,
    )
    negative = (case.normal("negative_context", 1, TEXT, CONFIG.context_dim).detach(), case.normal("negative_pooled", 1, CONFIG.pooled_dim).detach())

    draws = ladd.Draws(config, batch, seed, step)
    x0_hat = ladd.predict(student, batch, draws)
    if consistency:
        x_t = flow.interpolate(batch.x0, draws.noise, draws.t)
        target, t = baselines.consistency_target(teacher, average, x_t, draws.t, batch, negative, baseline, seed, step)
        loss = (x0_hat - target).square().mean()
    else:
        target, t = baselines.score_target(teacher, x0_hat.detach(), batch, negative, baseline, seed, step)
        loss = baselines.score_loss(x0_hat, target, t, baseline)
    if baseline["adversarial"] > 0:
        fake = ladd.renoised_groups(config, x0_hat, batch, draws)[:1]
        logits = ladd.score(config, teacher, heads, fake, draws.t_hat)
        loss = loss + baseline["adversarial"] * ladd.generator_loss(logits[:, ladd.FAKE], config).mean()
    gradients = torch.autograd.grad(loss, list(student.parameters()))

    case.outs(t=draws.t, x0_hat=x0_hat, target_t=t, target=target, squared_error=(x0_hat - target).square().mean())
    for (parameter, _), gradient in zip(student.named_parameters(), gradients):
        case.sampled(f"grad.student.{parameter}", gradient)
    return case


def baseline_steps(dtype):
    for name, baseline in STEPS.items():
        yield baseline_case(name, baseline, dtype)


ALL = [baseline_steps]
