"""The targets of the baselines' distillation losses in autograd, for rectified flow.

ADD (arXiv 2311.17042): renoise the student's sample to t', ask the frozen teacher, guided, for the image it sees there:
L = weight * mean c(t') (x0_hat - target)^2, no gradient through the target.
LCM (arXiv 2310.04378): one guided Euler step of the teacher from t = n / intervals to s = (n - 1) / intervals, then the
image that the student's moving average sees there: L = mean (x0_hat - target)^2.
"""

import torch

import flow

SCORE_T, SCORE_NOISE = 7, 8
WEIGHTS = {"exponential": lambda t: 1 - t, "sds": lambda t: t * (1 - t) / 2, "constant": torch.ones_like}


def grid(intervals, first):
    """The times n / intervals for each n from `first`, alike likely."""
    values = [(first + i) / intervals for i in range(intervals)]
    return {"kind": "discrete", "values": values, "probs": [1 / intervals] * intervals, "warmup_probs": [], "warmup_steps": 0}


def guided(teacher, x, t, batch, negative, scale):
    """Velocity of the teacher with the text of `batch`, away from `negative` (context [1, L, Cd], pooled [1, P])."""
    context, pooled = (part.expand(len(x), *part.shape[1:]) for part in negative)
    return flow.guided_velocity(teacher, x, t, batch.context, batch.pooled, context, pooled, scale)


@torch.no_grad()
def score_target(teacher, x0_hat, batch, negative, config, seed, step):
    """(target, t')."""
    t = flow.timesteps(config["t"], len(x0_hat), seed, step, SCORE_T, batch.first_sample)
    x = flow.interpolate(x0_hat, flow.noise(x0_hat.shape, seed, step, SCORE_NOISE, batch.first_sample, x0_hat.dtype), t)
    return flow.predict_x0(x, guided(teacher, x, t, batch, negative, config["guidance"]), t), t


def score_loss(x0_hat, target, t, config):
    c = flow.per_sample(WEIGHTS[config["weighting"]](t.to(x0_hat.dtype)), x0_hat)
    return config["weight"] * (c * (x0_hat - target).square()).mean()


@torch.no_grad()
def consistency_target(teacher, average, x_t, t, batch, negative, config, seed, step):
    """(target, s)."""
    intervals = config["intervals"]
    s = flow.timesteps(grid(intervals, 0), len(x_t), seed, step, flow.STUDENT_T, batch.first_sample)
    x_s = x_t - guided(teacher, x_t, t, batch, negative, config["guidance"]) / intervals
    return flow.predict_x0(x_s, average(x_s, s, batch.context, batch.pooled), s), s
