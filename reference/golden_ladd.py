"""Golden cases of the whole LADD step: losses, draws, gradients of student and heads, and the networks after the update.

Student, teacher and heads are filled from three different seeds, so that no test passes by mixing them up.  Learning
rates are large, so that a wrong update shows in the parameters.
"""

from dataclasses import asdict, replace

import ladd
from golden import Case, fill_parameters
from golden_models import TINY
from heads import Heads
from mmdit import MMDiT, Config

CONFIG = Config(depth=2, heads=1, head_dim=64, qk_norm=True, **TINY)
WIDTH, TEXT, LATENT = 64, 5, (4, 8)
SEEDS = dict(student_seed=201, teacher_seed=202, heads_seed=203, noise_seed=2034)
STUDENT_T = {
    "kind": "discrete", "values": [1.0, 0.75, 0.5, 0.25], "probs": [0.7, 0.1, 0.1, 0.1],
    "warmup_probs": [0.0, 0.0, 0.5, 0.5], "warmup_steps": 500,
}  # fmt: skip
COMMON = dict(taps=(0, 1), student_t=STUDENT_T, lr_student=1e-3, lr_heads=2e-3, weight_decay=0.01, ema_decay=0.99)
FULL = dict(loss="non_saturating", mismatch_weight=0.5, r1_weight=0.7, r1_sigma=0.1, distill_weight=0.3)
EDIT = replace(CONFIG, conditioning_channels=4)
STEPS = {
    "ladd_simultaneous": (3, 600, ladd.StepConfig(update="simultaneous", **COMMON)),
    "ladd_alternating": (3, 600, ladd.StepConfig(update="alternating", **COMMON)),
    "ladd_full": (3, 7, ladd.StepConfig(update="simultaneous", **COMMON, **FULL)),
    "ladd_full_alternating": (3, 7, ladd.StepConfig(update="alternating", **COMMON, **FULL)),
    "ladd_edit": (2, 7, ladd.StepConfig(update="simultaneous", **COMMON, **FULL)),
}


def ladd_case(name, batch_size, step, step_config, dtype):
    first_sample = 4
    config = EDIT if name == "ladd_edit" else CONFIG
    case = Case(
        name, "ladd_step", 200, dtype, model=config.described(), ladd=asdict(step_config), groups=step_config.groups,
        head_width=WIDTH, B=batch_size, step=step, first_sample=first_sample, **SEEDS,
    )  # fmt: skip
    student = fill_parameters(MMDiT(config), SEEDS["student_seed"]).to(dtype)
    teacher = fill_parameters(MMDiT(config), SEEDS["teacher_seed"]).to(dtype)
    network = fill_parameters(Heads(len(step_config.taps), CONFIG.hidden, CONFIG.pooled_dim, WIDTH), SEEDS["heads_seed"]).to(dtype)
    batch = ladd.Batch(
        case.normal("x0", batch_size, CONFIG.in_channels, *LATENT).detach(),
        case.normal("context", batch_size, TEXT, CONFIG.context_dim).detach(),
        case.normal("pooled", batch_size, CONFIG.pooled_dim).detach(),
        first_sample,
    )
    if config.conditioning_channels:
        batch.conditioning = case.normal("conditioning", batch_size, config.conditioning_channels, *LATENT).detach()
    trainer = ladd.Trainer(step_config, student, teacher, network)
    record = trainer.step(batch, SEEDS["noise_seed"], step)

    for side in ("student", "heads"):
        for parameter, gradient in record.pop(f"{side}_gradients").items():
            case.sampled(f"grad.{side}.{parameter}", gradient)
    for key, value in record.items():
        case.out(key, value)
    for side, after in (("student", student), ("heads", network), ("ema", trainer.ema)):
        for parameter, value in after.named_parameters():
            case.sampled(f"after.{side}.{parameter}", value)
    return case


def ladd_steps(dtype):
    for name, (batch_size, step, step_config) in STEPS.items():
        yield ladd_case(name, batch_size, step, step_config, dtype)


ALL = [ladd_steps]
