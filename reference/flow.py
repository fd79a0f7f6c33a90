"""Rectified flow: noise, timestep distributions, guidance and the two samplers.

x_t = (1 - t) x0 + t eps, velocity v = eps - x0, so x0_hat = x_t - t v.  From t to s: Euler x_s = x_t + (s - t) v, or
renoise x_s = (1 - s) x0_hat + s eps'.  Every draw comes from Philox by (seed, step, stream, element), so
that a sample's noise does not depend on the batch it is computed in.  Times are float32 values, whatever the
dtype of the mathematics around them.
"""

import numpy as np
import torch

import philox

STUDENT_T, STUDENT_NOISE, RENOISE_T, FAKE_NOISE, REAL_NOISE, PERTURBATION = 1, 2, 3, 4, 5, 6
DISCRIMINATOR_PHASE = 16  # added to each of them in the second phase of an alternating step
START_NOISE, SAMPLER_NOISE = 48, 49  # sampler step k draws from stream SAMPLER_NOISE + k


def per_sample(t, x):
    """[B] -> [B, 1, 1, 1], in x's dtype, to multiply x."""
    return t.to(x.dtype).view(-1, *[1] * (x.dim() - 1))


def noise(shape, seed, step, stream, first_sample=0, dtype=torch.float64):
    """Standard normals [B, ...]; sample b of the call is sample first_sample + b of the global batch."""
    numel = int(np.prod(shape[1:]))
    drawn = philox.normals(seed, step, stream, first_sample * numel, shape[0] * numel)
    return torch.from_numpy(drawn).to(dtype).reshape(shape)


def timesteps(distribution, batch, seed, step, stream, first_sample=0):
    """Times of `batch` samples, float32 [B].  distribution: a dict with "kind" and its parameters."""
    u = philox.uniforms(seed, step, stream, first_sample, batch)
    kind = distribution["kind"]
    if kind == "discrete":
        warming_up = step < distribution["warmup_steps"]
        probabilities = distribution["warmup_probs" if warming_up else "probs"]
        cumulative = np.cumsum(np.array(probabilities, np.float32), dtype=np.float32)
        index = np.minimum((u[:, None] >= cumulative).sum(1), len(cumulative) - 1)
        t = np.array(distribution["values"], np.float32)[index]
    elif kind == "logit_normal":
        normal = philox.normals(seed, step, stream, first_sample, batch).astype(np.float64)
        t = 1 / (1 + np.exp(-(distribution["mean"] + distribution["std"] * normal)))
        t = np.clip(t, 0.001, 0.999)
    elif kind == "uniform":
        t = u
    elif kind == "shifted":
        t = shift_time(u.astype(np.float64), distribution["shift"])
    else:
        raise ValueError(f"unknown timestep distribution {kind!r}")
    return torch.from_numpy(np.asarray(t, np.float32))


def shift_time(u, shift):
    return shift * u / (1 + (shift - 1) * u)


def interpolate(x0, eps, t):
    t = per_sample(t, x0)
    return (1 - t) * x0 + t * eps


def predict_x0(x_t, velocity, t):
    return x_t - per_sample(t, x_t) * velocity


def schedule(steps, shift):
    """n + 1 times from 1 to 0, shifted: float32 [n + 1]."""
    u = np.linspace(1, 0, steps + 1)
    return torch.from_numpy(shift_time(u, shift).astype(np.float32))


def guided_velocity(model, x, t, context, pooled, negative_context, negative_pooled, scale):
    """v_negative + scale (v - v_negative), both halves in one batch; scale 1 asks for no second half."""
    batch_t = t.expand(len(x))
    if scale == 1:
        return model(x, batch_t, context, pooled)
    both = model(
        torch.cat([x, x]),
        torch.cat([batch_t, batch_t]),
        torch.cat([context, negative_context]),
        torch.cat([pooled, negative_pooled]),
    )
    positive, negative = both.chunk(2)
    return negative + scale * (positive - negative)


def guided_edit_velocity(model, x, t, context, pooled, negative_context, negative_pooled, scale, conditioning, image_scale):
    """v(0, 0) + image_scale (v(c, 0) - v(0, 0)) + scale (v(c, text) - v(c, 0)): InstructPix2Pix, equation 3."""
    t = t.expand(len(x))
    full = model(x, t, context, pooled, conditioning=conditioning)
    image = model(x, t, negative_context, negative_pooled, conditioning=conditioning)
    nothing = model(x, t, negative_context, negative_pooled, conditioning=torch.zeros_like(conditioning))
    return nothing + image_scale * (image - nothing) + scale * (full - image)


@torch.no_grad()
def sample_euler(model, start, times, context, pooled, negative_context, negative_pooled, scale, edit=()):
    """Guided Euler from `start` at times[0] down to times[-1].  Returns the latent after every step.  `edit`, the conditioning
    and the scale of its guidance, for networks that read one."""
    velocity = guided_edit_velocity if edit else guided_velocity
    x, states = start, []
    for t, s in zip(times[:-1], times[1:]):
        v = velocity(model, x, t, context, pooled, negative_context, negative_pooled, scale, *edit)
        x = x + (s.to(x.dtype) - t.to(x.dtype)) * v
        states.append(x)
    return states


@torch.no_grad()
def sample_renoise(model, start, times, context, pooled, seed, first_sample=0):
    """The student's sampler: predict x0 at each of `times`, renoise to the next.  Returns x0_hat of every step."""
    x, predictions = start, []
    for k, t in enumerate(times):
        batch_t = t.expand(len(x))
        x0_hat = predict_x0(x, model(x, batch_t, context, pooled), batch_t)
        predictions.append(x0_hat)
        if k + 1 < len(times):
            fresh = noise(x.shape, seed, 0, SAMPLER_NOISE + k, first_sample, x.dtype)
            x = interpolate(x0_hat, fresh, times[k + 1].expand(len(x)))
    return predictions
