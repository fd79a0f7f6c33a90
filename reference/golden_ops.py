"""Golden cases of the single operations: one function per operation, forward and backward.

Every function yields finished cases.  Upstream gradients are the inputs named d_*; `grads` gives the gradients
of sum(output * upstream).  Shapes are small and unfriendly: no multiples of a tile, several batch items.
"""

import numpy as np
import torch
import torch.nn.functional as F

import flow
import heads
import ladd
import mmdit
import philox
from golden import Case

EDGE = 2**34  # elements from here on live in blocks whose counter needs block_hi


def philox_words(dtype):
    seeds = [0, 1, 0x0123456789ABCDEF, 42, 42, 7, 7, 2**64 - 1]
    steps = [0, 0, 3, 100_000, 100_000, 1, 1, 2**32 - 1]
    streams = [0, 1, 4, 48, 48, 2, 2, 2**32 - 1]
    firsts = [0, 0, 0, 6, 4097, EDGE - 10, 5 * EDGE + 3, EDGE * 1000 + 1]
    case = Case("philox", "philox", 0, dtype)
    case.given("seed", seeds, np.uint64)
    case.given("step", steps, np.uint32)
    case.given("stream", streams, np.uint32)
    case.given("first", firsts, np.uint64)
    rows = list(zip(seeds, steps, streams, firsts))
    for name, draw in (("words", philox.words), ("uniforms", philox.uniforms), ("normals", philox.normals)):
        case.out(name, np.stack([draw(*row, 64) for row in rows]))
    yield case


DISTRIBUTIONS = {
    "discrete": {
        "kind": "discrete", "values": [1.0, 0.75, 0.5, 0.25], "probs": [0.7, 0.1, 0.1, 0.1],
        "warmup_probs": [0.0, 0.0, 0.5, 0.5], "warmup_steps": 500,
    },
    "logit_normal": {"kind": "logit_normal", "mean": 1.0, "std": 1.0},
    "logit_normal_wide": {"kind": "logit_normal", "mean": -0.5, "std": 4.0},  # reaches both clamps
    "uniform": {"kind": "uniform"},
    "shifted": {"kind": "shifted", "shift": 3.0},
}


def timesteps(dtype):
    steps, batch, first_sample = [0, 499, 500, 501], 64, 6
    for name, distribution in DISTRIBUTIONS.items():
        config = dict(distribution=distribution, stream=flow.STUDENT_T, batch=batch, first_sample=first_sample)
        case = Case(f"timesteps_{name}", "timesteps", 11, dtype, **config)
        case.given("step", steps, np.uint32)
        drawn = [flow.timesteps(distribution, batch, case.seed, step, flow.STUDENT_T, first_sample) for step in steps]
        case.out("t", torch.stack(drawn))
        yield case


def linear(dtype):
    for epilogue in ("none", "gelu"):
        case = Case("linear" if epilogue == "none" else "linear_gelu", "linear", 21, dtype, epilogue=epilogue)
        rows, inputs, outputs = 75, 40, 56
        x = case.normal("x", rows, inputs)
        weight = case.normal("weight", outputs, inputs, scale=0.2)
        bias = case.normal("bias", outputs, scale=0.5)
        d_y = case.normal("d_y", rows, outputs)
        pre = F.linear(x, weight, bias)
        y = F.gelu(pre, approximate="tanh") if epilogue == "gelu" else pre
        case.outs(pre=pre, y=y)
        case.grads([(y, d_y)], {"x": x, "weight": weight, "bias": bias})
        yield case


def e4m3_rows(x):
    """float32 [rows, width] -> e4m3 codes uint8 and float32 scales, by PyTorch's own rounding."""
    largest = x.abs().amax(1, keepdim=True)
    zero = largest == 0
    factor = torch.where(zero, 0, torch.full_like(largest, 448) / largest)  # 448 / largest would round twice, by a reciprocal
    codes = (x * factor).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8)
    return codes, torch.where(zero, 1, largest / 448)[:, 0]


def e4m3_values(codes, scales):
    return codes.view(torch.float8_e4m3fn).double() * scales.double()[:, None]


def linear_fp8(dtype):
    rows, inputs, outputs = 11, 48, 32
    case = Case("linear_fp8", "linear_fp8", 24, dtype)
    normal = np.random.default_rng(case.seed).standard_normal
    # What bf16 represents, so that every device quantises the same numbers; from tiny to large, and a row of zeros.
    x = torch.from_numpy(normal((rows, inputs)).astype(np.float32)) * 10.0 ** torch.arange(-5, rows - 5)[:, None]
    x[3] = 0
    x, weight, bias = (t.bfloat16().float() for t in (x, 0.2 * torch.from_numpy(normal((outputs, inputs))), torch.from_numpy(normal(outputs))))
    for name, value in (("x", x), ("weight", weight), ("bias", bias)):
        case.given(name, value.numpy())
    pairs = [e4m3_rows(x), e4m3_rows(weight)]
    for name, (codes, scales) in zip(("x", "weight"), pairs):
        case.outs(**{f"{name}_codes": codes, f"{name}_scales": scales})
    product = e4m3_values(*pairs[0]) @ e4m3_values(*pairs[1]).T + bias.double()
    case.out("y", product)
    yield case


def quantize_rows(dtype):
    """Rows of all magnitudes; and what lies on, beside and between the codes of a row whose scale is 1."""
    numbers = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    numbers = numbers[numbers.isfinite()]
    positive = numbers[numbers >= 0].unique()
    middles = (positive[1:] + positive[:-1]) / 2
    # bf16 has four more bits of fraction than e4m3: its neighbours of a middle lie between the codes too.
    words = middles.bfloat16().view(torch.int16)
    beside = torch.cat([(words - 1).view(torch.bfloat16), (words + 1).view(torch.bfloat16)]).float()
    exact = torch.cat([numbers, middles, -middles, beside, -beside])
    width = -(-exact.numel() // 16) * 16
    exact = F.pad(exact, (0, width - exact.numel()))
    normal = torch.from_numpy(np.random.default_rng(25).standard_normal((6, width)).astype(np.float32))
    spread = normal * 10.0 ** torch.tensor([-20.0, -3, 0, 1, 4, 20])[:, None]
    x = torch.cat([exact[None], spread, torch.zeros(1, width)]).bfloat16().float()
    assert x[0].equal(exact)
    case = Case("quantize_rows", "quantize_rows", 25, dtype, gelu=False)
    case.given("x", x.numpy())
    codes, scales = e4m3_rows(x)
    case.outs(codes=codes, scales=scales)
    yield case
    case = Case("quantize_rows_gelu", "quantize_rows", 26, dtype, gelu=True)
    x = x[1:, :80]
    case.given("x", x.numpy())
    gelu = F.gelu(x.double(), approximate="tanh")
    # A device whose activations are bf16 rounds GELU to it first.
    case.outs(values=e4m3_values(*e4m3_rows(gelu.float())), values_bf16=e4m3_values(*e4m3_rows(gelu.bfloat16().float())))
    yield case


def silu(dtype):
    case = Case("silu", "silu", 22, dtype)
    x = case.normal("x", 3, 67, scale=3.0)
    d_y = case.normal("d_y", 3, 67)
    y = F.silu(x)
    case.outs(y=y)
    case.grads([(y, d_y)], {"x": x})
    yield case


def layer_norm(dtype):
    case = Case("layer_norm", "layer_norm", 23, dtype, eps=mmdit.EPS)
    x = case.normal("x", 21, 36, scale=2.0, offset=0.5)
    d_y = case.normal("d_y", 21, 36)
    y = mmdit.layer_norm(x)
    case.outs(y=y)
    case.grads([(y, d_y)], {"x": x})
    yield case


# (B, H, S, D, N): batch, heads, joint sequence, head dim, image tokens
ATTENTION_WHOLE = [(1, 2, 1, 64, 1), (3, 2, 1, 64, 1), (1, 1, 63, 64, 50)]
ATTENTION_ROWS = [
    (1, 2, 64, 64, 48), (1, 2, 65, 64, 64), (1, 2, 127, 64, 100), (1, 2, 129, 64, 65),
    (3, 2, 63, 64, 40), (3, 1, 64, 64, 64), (3, 2, 65, 64, 33), (3, 1, 127, 64, 127), (3, 1, 129, 64, 128),
    (1, 2, 65, 128, 48), (2, 1, 129, 128, 100),
    (1, 1, 1178, 64, 1024), (1, 1, 1357, 64, 1024), (1, 1, 4250, 64, 4096), (1, 1, 4429, 64, 4096),
]  # fmt: skip


def stored_rows(s, n, count):
    """Row indices to keep: an even stride, both ends, both sides of the image/text split."""
    chosen = set(np.linspace(0, s - 1, count).astype(int).tolist()) | {0, n - 1, min(n, s - 1), s - 1}
    return np.array(sorted(chosen), np.int32)


def attention_case(dtype, shape, row_count):
    b, h, s, d, n = shape
    case = Case(f"attention_b{b}_h{h}_s{s}_d{d}", "attention", 31, dtype, B=b, H=h, S=s, D=d, N=n, L=s - n, scale=d**-0.5)
    q, k, v = (case.normal(name, b, h, s, d, scale=scale) for name, scale in (("q", 2.0), ("k", 1.0), ("v", 1.0)))
    d_x = case.normal("d_out_x", b, n, h * d)
    d_c = case.normal("d_out_c", b, s - n, h * d)

    scores = q @ k.transpose(-1, -2) * d**-0.5  # [B, H, S, S]
    lse = torch.logsumexp(scores, dim=-1)
    joined = ((scores - lse[..., None]).exp() @ v).transpose(1, 2).flatten(2)  # [B, S, H D]
    dq, dk, dv = torch.autograd.grad(joined, [q, k, v], torch.cat([d_x, d_c], dim=1))

    case.outs(lse=lse)
    if row_count is None:
        case.outs(out_x=joined[:, :n], out_c=joined[:, n:])
        for name, gradient in (("q", dq), ("k", dk), ("v", dv)):
            case.tensors[f"grad.{name}"] = gradient.detach().float().numpy()
        return case
    rows = case.given("rows", stored_rows(s, n, row_count), np.int32)
    index = torch.from_numpy(rows).long()
    case.out("out_rows", joined[:, index])
    for name, gradient in (("q", dq), ("k", dk), ("v", dv)):
        case.tensors[f"grad.{name}_rows"] = gradient[:, :, index].float().numpy()
    return case


def attention(dtype):
    for shape in ATTENTION_WHOLE:
        yield attention_case(dtype, shape, None)
    for shape in ATTENTION_ROWS:
        yield attention_case(dtype, shape, 24 if shape[2] > 1000 else 10)


def rms_norm(x, weight):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + mmdit.EPS) * weight


def split_qkv(qkv, heads):
    """[B, N, 3h] -> q, k, v [B, H, N, D]."""
    return qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)


def qk_norm(dtype):
    """One stream (as attn2) or two (joint: image tokens first), with RMSNorm of q and k or without."""
    b, h, d, n_x, n_c = 2, 2, 64, 5, 2
    for streams in (1, 2):
        for normalised in (True, False):
            lengths = {"x": n_x, "c": n_c} if streams == 2 else {"x": n_x}
            name = ("qk_norm" if normalised else "qk_plain") + ("_joint" if streams == 2 else "")
            case = Case(name, "qk_norm", 41, dtype, B=b, H=h, D=d, N=n_x, L=lengths.get("c", 0), qk_norm=normalised, eps=mmdit.EPS)
            inputs, parts = {}, []
            for stream, n in lengths.items():
                qkv = inputs[f"qkv_{stream}"] = case.normal(f"qkv_{stream}", b, n, 3 * h * d)
                q, k, v = split_qkv(qkv, h)
                if normalised:
                    ln_q = inputs[f"ln_q_{stream}"] = case.normal(f"ln_q_{stream}", d, scale=0.3, offset=1.0)
                    ln_k = inputs[f"ln_k_{stream}"] = case.normal(f"ln_k_{stream}", d, scale=0.3, offset=1.0)
                    q, k = rms_norm(q, ln_q), rms_norm(k, ln_k)
                parts.append((q, k, v))
            joint = [torch.cat(part, dim=2) for part in zip(*parts)]  # each [B, H, S, D]
            upstream = [case.normal(f"d_{n}", *joint[0].shape) for n in "qkv"]
            case.outs(**dict(zip("qkv", joint)))
            case.grads(list(zip(joint, upstream)), inputs)
            yield case


# (hidden, gated residuals, modulated outputs)
ADALN = [(36, 0, 1), (36, 1, 1), (36, 1, 2), (36, 2, 1), (128, 1, 1), (128, 0, 2), (128, 1, 0), (192, 2, 1)]


def adaln(dtype):
    for hidden, residuals, outputs in ADALN:
        b, n = 2, 9
        case = Case(
            f"adaln_h{hidden}_r{residuals}_m{outputs}", "adaln", 42, dtype,
            B=b, N=n, hidden=hidden, residuals=residuals, outputs=outputs, eps=mmdit.EPS,
        )  # fmt: skip
        x = case.normal("x", b, n, hidden, scale=2.0, offset=0.3)
        inputs, x_out = {"x": x}, x
        for i in range(1, residuals + 1):
            suffix = "" if i == 1 else str(i)
            y = inputs[f"y{suffix}"] = case.normal(f"y{suffix}", b, n, hidden)
            gate = inputs[f"gate{suffix}"] = case.normal(f"gate{suffix}", b, hidden)
            x_out = x_out + gate[:, None] * y
        pairs = []
        if residuals:
            case.outs(x_out=x_out)
            pairs.append((x_out, case.normal("d_x_out", b, n, hidden)))
        for i in range(1, outputs + 1):
            suffix = "" if i == 1 else str(i)
            shift = inputs[f"shift{suffix}"] = case.normal(f"shift{suffix}", b, hidden)
            scale = inputs[f"scale{suffix}"] = case.normal(f"scale{suffix}", b, hidden, scale=0.5)
            out = mmdit.modulate(x_out, shift, scale)
            case.out(f"out{suffix}", out)
            pairs.append((out, case.normal(f"d_out{suffix}", b, n, hidden)))
        case.grads(pairs, inputs)
        yield case


def flow_noise(dtype):
    shape, step, first_sample = (3, 4, 3, 5), 9, 6
    case = Case("flow_noise", "flow_noise", 51, dtype, shape=shape, step=step, stream=flow.STUDENT_NOISE, first_sample=first_sample)
    x0 = case.normal("x0", *shape)
    t = case.given("t", [1.0, 0.75, 0.0625])
    eps = flow.noise(shape, case.seed, step, flow.STUDENT_NOISE, first_sample, dtype)
    case.outs(noise=eps, x_t=flow.interpolate(x0, eps, t), velocity=eps - x0)
    yield case


def predict_x0_renoise(dtype):
    b, c, patch, gh, step, first_sample = 3, 4, 2, 3, 9, 6
    for weight, gw in ((0.0, 5), (0.5, 6)):
        latent, tokens = (b, c, gh * patch, gw * patch), (b, gh * gw, c * patch**2)
        case = Case(
            "predict_x0_renoise" if weight == 0 else "predict_x0_renoise_distill", "predict_x0_renoise", 52, dtype,
            B=b, C=c, patch=patch, gh=gh, gw=gw, step=step, stream=flow.FAKE_NOISE, first_sample=first_sample,
            distill_weight=weight,
        )  # fmt: skip
        x_t, velocity, x0 = case.normal("x_t", *latent), case.normal("velocity", *tokens), case.normal("x0", *latent)
        t = case.given("t", [1.0, 0.75, 0.25])
        t_hat = case.given("t_hat", [0.9, 0.5, 0.125])
        d_renoised = case.normal("d_renoised", *tokens, scale=0.1)
        eps = flow.noise(latent, case.seed, step, flow.FAKE_NOISE, first_sample, dtype)
        x0_hat = flow.predict_x0(x_t, mmdit.unpatchify(velocity, patch, gh, gw), t)
        renoised = mmdit.patchify(flow.interpolate(x0_hat, eps, t_hat), patch)
        distillation = (x0_hat - x0).square().mean()
        case.outs(x0_hat=x0_hat, renoised=renoised, distillation_loss=distillation)
        upstream = torch.tensor(weight, dtype=dtype)
        case.grads([(renoised, d_renoised), (distillation, upstream)], {"velocity": velocity})
        yield case


GROUP_CONFIGS = {"2": (0.0, 0.0), "3_mismatch": (0.5, 0.0), "3_perturbed": (0.0, 0.7), "4": (0.5, 0.7)}


def hinge(dtype):
    count, batch, positions = 3, 2, 10
    for loss in ("hinge", "non_saturating"):
        for name, (mismatch, r1) in GROUP_CONFIGS.items():
            config = ladd.StepConfig(taps=(), loss=loss, mismatch_weight=mismatch, r1_weight=r1)
            case = Case(
                f"{loss}_{name}", "hinge", 61, dtype,
                loss=loss, mismatch_weight=mismatch, r1_weight=r1, groups=config.groups, heads=count, B=batch, positions=positions,
            )  # fmt: skip
            logits = case.normal("logits", count, len(config.groups), batch, positions, scale=1.5)
            d_per_head = ladd.discriminator_loss(logits, config)
            g_per_head = ladd.generator_loss(logits[:, ladd.FAKE], config)
            case.outs(d_loss=d_per_head.mean(), d_loss_per_head=d_per_head, g_loss=g_per_head.mean(), g_loss_per_head=g_per_head)
            case.out("statistics", ladd.head_statistics(logits))
            case.tensors["grad.d.logits"] = torch.autograd.grad(d_per_head.mean(), logits)[0].float().numpy()
            g = torch.autograd.grad(g_per_head.mean(), logits)[0]
            case.tensors["grad.g.fake_logits"] = g[:, ladd.FAKE].float().numpy()
            yield case


def conv3x3(dtype):
    for b, gh, gw, cin, cout in ((2, 5, 7, 16, 16), (1, 1, 3, 8, 8), (2, 4, 4, 64, 64)):
        case = Case(f"conv3x3_w{cout}", "conv3x3", 71, dtype, B=b, gh=gh, gw=gw, cin=cin, cout=cout)
        x = case.normal("x", b, gh, gw, cin)
        weight = case.normal("weight", cout, 3, 3, cin, scale=(9 * cin) ** -0.5)
        bias = case.normal("bias", cout)
        d_y = case.normal("d_y", b, gh, gw, cout)
        y = heads.conv3x3(x, weight, bias)
        case.outs(y=y)
        gradients = torch.autograd.grad(y, [x, weight, bias], d_y)
        for name, gradient in zip(("x", "weight", "bias"), gradients):
            case.sampled(f"grad.{name}", gradient) if cout == 64 else case.tensors.update({f"grad.{name}": gradient.float().numpy()})
        yield case


def leaky_relu(dtype):
    for residual in (False, True):
        case = Case("leaky_relu_residual" if residual else "leaky_relu", "leaky_relu", 72, dtype, slope=heads.SLOPE, residual=residual)
        x = case.normal("x", 13, 11)
        inputs = {"x": x}
        y = heads.lrelu(x)
        if residual:
            inputs["residual"] = case.normal("residual", 13, 11)
            y = inputs["residual"] + y
        case.outs(y=y)
        case.grads([(y, case.normal("d_y", 13, 11))], inputs)
        yield case


def head_logits(dtype):
    b, n, w = 3, 10, 24
    case = Case("head_logits", "head_logits", 73, dtype, B=b, N=n, w=w, slope=heads.SLOPE)
    h3 = case.normal("h3", b, n, w)
    weight = case.normal("weight", 1, w, scale=0.3)
    bias = case.normal("bias", 1)
    projection = case.normal("projection", b, w)
    d_logits = case.normal("d_logits", b, n)
    logits = heads.head_logits(h3, weight, bias, projection)
    case.outs(logits=logits)
    case.grads([(logits, d_logits)], {"h3": h3, "weight": weight, "bias": bias, "projection": projection})
    yield case


def patches(dtype):
    b, c, patch, gh, gw = 2, 4, 2, 3, 5
    shape = (b, c, gh * patch, gw * patch)
    case = Case("patchify", "patchify", 81, dtype, B=b, C=c, patch=patch, gh=gh, gw=gw)
    latent = case.normal("latent", *shape)
    d_tokens = case.normal("d_tokens", b, gh * gw, c * patch**2)
    tokens = mmdit.patchify(latent, patch)
    case.outs(tokens=tokens)
    case.grads([(tokens, d_tokens)], {"latent": latent})
    yield case

    case = Case("unpatchify", "unpatchify", 82, dtype, B=b, C=c, patch=patch, gh=gh, gw=gw)
    tokens = case.normal("tokens", b, gh * gw, c * patch**2)
    d_latent = case.normal("d_latent", *shape)
    latent = mmdit.unpatchify(tokens, patch, gh, gw)
    case.outs(latent=latent)
    case.grads([(latent, d_latent)], {"tokens": tokens})
    yield case


def pos_embed(dtype):
    for size, gh, gw in ((6, 3, 4), (7, 7, 2), (5, 5, 5)):
        case = Case(f"pos_embed_{size}_{gh}x{gw}", "pos_embed", 83, dtype, pos_embed_max=size, gh=gh, gw=gw, hidden=12)
        table = case.normal("pos_embed", 1, size * size, 12, scale=0.5)
        case.outs(cropped=mmdit.crop(table, gh, gw)[0])
        yield case


def timestep_embedding(dtype):
    case = Case("timestep_embedding", "timestep_embedding", 84, dtype, width=mmdit.SINUSOID)
    t = case.given("t", [0.0, 0.001, 0.0625, 0.25, 0.3333, 0.5, 0.7311, 0.75, 0.9, 0.999, 1.0])
    case.outs(embedding=mmdit.sinusoid(t))
    yield case


def adamw(dtype):
    n = 300
    for name, max_norm, decay in (("adamw_clipped", 1.0, 0.01), ("adamw_unclipped", 1e4, 0.0)):
        options = dict(lr=3e-3, beta1=0.9, beta2=0.99, eps=1e-8, weight_decay=decay)
        case = Case(name, "adamw", 91, dtype, **options, max_norm=max_norm, ema_decay=0.99, steps=3)
        start = case.normal("param", n)
        gradients = [case.normal(f"gradient{i}", n, scale=scale) for i, scale in enumerate((1.0, 0.01, 0.3))]
        parameter = torch.nn.Parameter(start.detach().clone())
        average = parameter.detach().clone()
        optimizer = torch.optim.AdamW([parameter], options["lr"], (0.9, 0.99), options["eps"], decay)
        for i, gradient in enumerate(gradients):
            parameter.grad = gradient.detach().clone()
            case.out(f"norm{i}", torch.nn.utils.clip_grad_norm_([parameter], max_norm))
            optimizer.step()
            rate = min(0.99, (2 + i) / (11 + i))  # d = (1 + n) / (10 + n) with n = i + 1 updates
            average += (1 - rate) * (parameter.detach() - average)
            state = optimizer.state[parameter]
            for tensor_name, tensor in (("param", parameter), ("m", state["exp_avg"]), ("v", state["exp_avg_sq"]), ("ema", average)):
                case.out(f"{tensor_name}{i}", tensor.detach().clone())
        yield case


def reductions(dtype):
    case = Case("global_norm", "global_norm", 92, dtype)
    x = case.normal("x", 100_003, scale=0.01)
    case.outs(norm=x.norm())
    yield case

    case = Case("mse", "mse", 93, dtype)
    a, b = case.normal("prediction", 3, 4, 5, 7), case.normal("target", 3, 4, 5, 7)
    loss = (a - b).square().mean()
    case.outs(loss=loss)
    case.grads([(loss, torch.ones_like(loss))], {"prediction": a})
    yield case


def sampler_steps(dtype):
    shape = (2, 4, 3, 5)
    case = Case("euler_cfg", "euler_cfg", 94, dtype, shape=shape, t=0.75, s=0.5, scale=3.5)
    x, v, v_negative = (case.normal(name, *shape) for name in ("x", "velocity", "velocity_negative"))
    guided = v_negative + 3.5 * (v - v_negative)
    case.outs(velocity=guided, x=x + (0.5 - 0.75) * guided)
    yield case


ALL = [
    philox_words, timesteps, linear, linear_fp8, quantize_rows, silu, layer_norm, attention, qk_norm, adaln, flow_noise, predict_x0_renoise, hinge,
    conv3x3, leaky_relu, head_logits, patches, pos_embed, timestep_embedding, adamw, reductions, sampler_steps,
]  # fmt: skip
