"""The GPU speed peer: PyTorch's best for every operation and shape that `cargo bench --bench kernels` measures.

    python reference/bench_kernels.py --json FILE [FILTER] [--shape TEXT]     on a GPU
    python reference/bench_kernels.py --device cpu --tiny                     each case once, to see that it runs

Operations and shapes bear the names of benches/kernels/.  Attention is scaled_dot_product_attention by cuDNN and by
flash, both measured, the faster one counts; products are cuBLAS; convolutions are cuDNN, channels last, with its own
search for algorithms; everything else is written plainly and compiled by torch.compile (max-autotune without graphs).
A backward is the compiled or library backward alone, its forward run before.

The rules are those of benches/kernels/measure.rs: operands rotated over at least 192 MiB (at most 64 copies), random,
at least 2 ms of runs queued back to back per sample in a CUDA graph, median of 31 samples, 1 s of rest before each
case; times are CUDA events.  Where a function cannot be captured in a graph it is queued plainly, and `graph` says so.
"""

import argparse
import datetime
import json
import math
import statistics
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

ROTATED = 3 * (64 << 20)
MOST_COPIES = 64
SAMPLE_MS = 2.0
SAMPLES = 31

MODELS = {"sd3-medium": 24, "sd3.5-large": 38}
PICTURES = {"512x512": (32, 32), "1024x1024": (64, 64), "768x1344": (48, 84)}
BATCHES = (1, 4, 16)
TEXT, WIDTH, HEAD_DIM, CHANNELS, PATCH, POOLED, FREQUENCIES = 154, 256, 64, 16, 2, 64, 256


class Shape:
    """Sizes of one case; `device` is where its operands live."""

    def __init__(self, heads, grid, batch, text, width, device, head_dim=HEAD_DIM):
        self.heads, self.grid, self.batch, self.text, self.width, self.device = heads, grid, batch, text, width, device
        self.head_dim, self.hidden = head_dim, heads * head_dim
        self.image = grid[0] * grid[1]
        self.rows = batch * self.image
        self.latent = (batch, CHANNELS, PATCH * grid[0], PATCH * grid[1])

    def data(self, *size):
        return torch.randn(size, device=self.device, dtype=torch.bfloat16)

    def stat(self, *size):
        return torch.randn(size, device=self.device)

    def times(self):
        return torch.rand(self.batch, device=self.device).view(-1, 1, 1, 1)


BACKEND = {"mode": "max-autotune-no-cudagraphs"}


def compiled(function):
    """Compiles for the shapes at hand; copies of the same function share what was compiled."""
    return torch.compile(function, dynamic=False, **BACKEND)


def backward_of(function, inputs, upstream):
    """The compiled backward alone: gradients of `inputs`, for outputs that are kept."""
    inputs = [x.requires_grad_() for x in inputs]
    outputs = compiled(function)(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return lambda: torch.autograd.grad(outputs, inputs, upstream, retain_graph=True)


# ---- operations: each takes a shape and returns {how: run} for one copy of operands ---------------------------------


def linear(s):
    x, w, b = s.data(s.rows, s.hidden), s.data(4 * s.hidden, s.hidden), s.data(4 * s.hidden)
    return {"cuBLAS": lambda: F.linear(x, w, b)}


def linear_gelu(s):
    x, w, b = s.data(s.rows, s.hidden), s.data(4 * s.hidden, s.hidden), s.data(4 * s.hidden)

    def function(x, w, b):
        pre = F.linear(x, w, b)
        return pre, F.gelu(pre, approximate="tanh")

    run = compiled(function)
    return {"compile": lambda: run(x, w, b)}


def linear_backward_input(s):
    dy, w = s.data(s.rows, 4 * s.hidden), s.data(4 * s.hidden, s.hidden)
    return {"cuBLAS": lambda: dy @ w}


def linear_backward_input_gelu(s):
    dy, w, pre = s.data(s.rows, s.hidden), s.data(s.hidden, 4 * s.hidden), s.data(s.rows, 4 * s.hidden)
    run = compiled(lambda dy, w, pre: torch.ops.aten.gelu_backward(dy @ w, pre, approximate="tanh"))
    return {"compile": lambda: run(dy, w, pre)}


def linear_backward_weight(s):
    x, dy = s.data(s.rows, s.hidden), s.data(s.rows, 4 * s.hidden)
    dw, db = s.stat(4 * s.hidden, s.hidden), s.stat(4 * s.hidden)

    def function(dw, db, x, dy):
        dw.add_(dy.t() @ x)
        db.add_(dy.sum(0, dtype=torch.float32))

    run = compiled(function)
    return {"compile": lambda: run(dw, db, x, dy)}


def silu(s):
    x = s.data(s.rows, s.width)
    run = compiled(F.silu)
    return {"compile": lambda: run(x)}


def silu_backward(s):
    x, dy = s.data(s.rows, s.width), s.data(s.rows, s.width)
    run = compiled(torch.ops.aten.silu_backward)
    return {"compile": lambda: run(dy, x)}


def leaky_relu(s):
    x, residual = s.data(s.rows, s.width), s.data(s.rows, s.width)
    run = compiled(lambda x, residual: F.leaky_relu(x, 0.2) + residual)
    return {"compile": lambda: run(x, residual)}


def leaky_relu_backward(s):
    x, dy = s.data(s.rows, s.width), s.data(s.rows, s.width)
    run = compiled(lambda x, dy: torch.where(x > 0, dy, 0.2 * dy))
    return {"compile": lambda: run(x, dy)}


def sdpa_backends(s):
    if s.device == "cpu":
        return {"math": SDPBackend.MATH}
    return {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


def attention(s):
    q, k, v = (s.data(s.batch, s.heads, s.image + s.text, s.head_dim) for _ in range(3))

    def by(backend):
        def run():
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v)

        return run

    return {name: by(backend) for name, backend in sdpa_backends(s).items()}


def attention_backward(s):
    size = (s.batch, s.heads, s.image + s.text, s.head_dim)
    q, k, v = (s.data(*size).requires_grad_() for _ in range(3))
    d_out = s.data(*size)

    def by(backend):
        with sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v)
        return lambda: torch.autograd.grad(out, (q, k, v), d_out, retain_graph=True)

    return {name: by(backend) for name, backend in sdpa_backends(s).items()}


def split_and_norm(qkv, q_weight, k_weight):
    """qkv [B, N, 3, H, D] -> q, k, v [B, H, N, D]."""
    q, k, v = (x.transpose(1, 2) for x in qkv.unbind(2))
    norm = lambda x, weight: F.rms_norm(x, (HEAD_DIM,), weight, 1e-6)
    return norm(q, q_weight).contiguous(), norm(k, k_weight).contiguous(), v.contiguous()


def qk_norm_operands(s):
    return s.data(s.batch, s.image, 3, s.heads, HEAD_DIM), s.data(HEAD_DIM), s.data(HEAD_DIM)


def qk_norm(s):
    operands = qk_norm_operands(s)
    run = compiled(split_and_norm)
    return {"compile": lambda: run(*operands)}


def qk_norm_backward(s):
    upstream = tuple(s.data(s.batch, s.heads, s.image, HEAD_DIM) for _ in range(3))
    return {"compile": backward_of(split_and_norm, qk_norm_operands(s), upstream)}


def gate_norm_modulate(x, y, table):
    """x, y [B, N, h], table [B, 3h] -> x + gate y, and its LayerNorm, modulated."""
    gate, shift, scale = table[:, None].chunk(3, -1)
    x = x + gate * y
    return x, F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def adaln_operands(s):
    return s.data(s.batch, s.image, s.hidden), s.data(s.batch, s.image, s.hidden), s.data(s.batch, 3 * s.hidden)


def adaln(s):
    operands = adaln_operands(s)
    run = compiled(gate_norm_modulate)
    return {"compile": lambda: run(*operands)}


def adaln_backward(s):
    upstream = tuple(s.data(s.batch, s.image, s.hidden) for _ in range(2))
    return {"compile": backward_of(gate_norm_modulate, adaln_operands(s), upstream)}


def patch(latent):
    b, c, h, w = latent.shape
    tokens = latent.view(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 3, 5, 1)
    return tokens.reshape(b, -1, c * PATCH * PATCH).to(torch.bfloat16)


def patch_first(latent):
    b, c, h, w = latent.shape
    tokens = latent.view(b, c, h // PATCH, PATCH, w // PATCH, PATCH).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(b, -1, c * PATCH * PATCH).to(torch.bfloat16)


def patchify(s):
    latent = s.stat(*s.latent)
    run = compiled(patch)
    return {"compile": lambda: run(latent)}


def unpatchify(s):
    tokens = velocity_tokens(s)
    run = compiled(lambda tokens: tokens.permute(0, 5, 1, 3, 2, 4).reshape(s.latent).float())
    return {"compile": lambda: run(tokens)}


def pos_embed(s):
    side = max(s.grid) + 2
    pos, x = s.data(side, side, s.hidden), s.data(s.batch, *s.grid, s.hidden)
    top, left = (side - s.grid[0]) // 2, (side - s.grid[1]) // 2
    run = compiled(lambda pos, x: x.add_(pos[top : top + s.grid[0], left : left + s.grid[1]]))
    return {"compile": lambda: run(pos, x)}


def timestep_embedding(s):
    t, pooled = torch.rand(s.batch, device=s.device), s.data(s.batch, POOLED)

    def function(t, pooled):
        half = FREQUENCIES // 2
        frequencies = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000) / half))
        angles = 1000 * t[:, None] * frequencies
        return torch.cat([angles.cos().to(pooled.dtype), angles.sin().to(pooled.dtype), pooled], -1)

    run = compiled(function)
    return {"compile": lambda: run(t, pooled)}


def timesteps(s):
    run = compiled(lambda: torch.sigmoid(1 + torch.randn(s.batch, device=s.device)))
    return {"compile": run}


def normal(s):
    run = compiled(lambda: torch.randn(s.latent, device=s.device))
    return {"compile": run}


def flow_noise(s):
    x0, t = s.stat(*s.latent), s.times()

    def function(x0, t):
        x0 = x0 + 0.1 * torch.randn_like(x0)
        noise = torch.randn_like(x0)
        return (1 - t) * x0 + t * noise, noise - x0

    run = compiled(function)
    return {"compile": lambda: run(x0, t)}


def velocity_tokens(s):
    return s.data(s.batch, s.grid[0], s.grid[1], PATCH, PATCH, CHANNELS)


def predict_x0_renoise(s):
    x_t, velocity, t, t_hat = s.stat(*s.latent), velocity_tokens(s), s.times(), s.times()

    def function(x_t, velocity, t, t_hat):
        x0 = x_t - t * velocity.permute(0, 5, 1, 3, 2, 4).reshape(s.latent).float()
        return x0, patch_first((1 - t_hat) * x0 + t_hat * torch.randn_like(x0))

    run = compiled(function)
    return {"compile": lambda: run(x_t, velocity, t, t_hat)}


def predict_x0_renoise_backward(s):
    d_renoised, d_x0, t, t_hat = s.data(s.batch, *s.grid, CHANNELS, PATCH, PATCH), s.stat(*s.latent), s.times(), s.times()

    def function(d_renoised, d_x0, t, t_hat):
        d_renoised = d_renoised.permute(0, 3, 1, 4, 2, 5).reshape(s.latent).float()
        return patch(-t * ((1 - t_hat) * d_renoised + d_x0))

    run = compiled(function)
    return {"compile": lambda: run(d_renoised, d_x0, t, t_hat)}


def euler_cfg(s):
    x, velocity, unconditional = (s.stat(*s.latent) for _ in range(3))
    run = compiled(lambda x, v, u: x.add_(u + 3.0 * (v - u), alpha=-0.25))
    return {"compile": lambda: run(x, velocity, unconditional)}


def mse(s):
    a, b = s.stat(*s.latent), s.stat(*s.latent)
    run = compiled(lambda a, b: ((a - b).square().mean(), (a - b) * (2 / a.numel())))
    return {"compile": lambda: run(a, b)}


def hinge(s):
    logits = s.stat(4, 4, s.batch, s.image)

    def function(logits):
        """Non-saturating losses of 4 heads and 4 groups with mismatched samples and the R1 penalty; gradients, statistics."""
        fake, real, mismatch, perturbed = logits.unbind(1)
        n = fake[0].numel()
        slope = real - perturbed
        losses = F.softplus(fake) + F.softplus(-real) + 0.5 * F.softplus(mismatch) + 0.1 * slope.square()
        d_real = (-torch.sigmoid(-real) + 0.2 * slope) / n
        d_d = torch.stack([torch.sigmoid(fake) / n, d_real, 0.5 * torch.sigmoid(mismatch) / n, -0.2 * slope / n], 1)
        statistics_ = [losses, F.softplus(-fake), real, fake, real > 0, fake < 0, slope.square()]
        return d_d, -torch.sigmoid(-fake) / n, torch.stack([x.float().mean((1, 2)) for x in statistics_], -1)

    run = compiled(function)
    return {"compile": lambda: run(logits)}


def conv_operands(s):
    image = lambda: s.data(s.batch, *s.grid, s.width).permute(0, 3, 1, 2)  # channels last
    weight = s.data(s.width, 3, 3, s.width).permute(0, 3, 1, 2)
    return image(), image(), weight, s.data(s.width)


def conv3x3(s):
    x, _, weight, bias = conv_operands(s)
    return {"cuDNN": lambda: F.conv2d(x, weight, bias, padding=1)}


def conv_backward(x, dy, weight, mask):
    sizes = [weight.shape[0]]
    return torch.ops.aten.convolution_backward(dy, x, weight, sizes, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask)


def conv3x3_backward_input(s):
    x, dy, weight, _ = conv_operands(s)
    return {"cuDNN": lambda: conv_backward(x, dy, weight, [True, False, False])}


def conv3x3_backward_weight(s):
    x, dy, weight, _ = conv_operands(s)
    dw, db = s.stat(*weight.shape), s.stat(s.width)

    def run():
        _, w, b = conv_backward(x, dy, weight, [False, True, True])
        torch._foreach_add_([dw, db], [w.float(), b.float()])

    return {"cuDNN": run}


def logit(h, cm, weight, bias):
    return (F.leaky_relu(h, 0.2).float() @ weight.float() + bias.float()) + (h.float() * cm[:, None].float()).mean(-1)


def logit_operands(s):
    return s.data(s.batch, s.image, s.width), s.data(s.batch, s.width), s.data(s.width), s.data(1)


def head_logits(s):
    operands = logit_operands(s)
    run = compiled(logit)
    return {"compile": lambda: run(*operands)}


def head_logits_backward(s):
    return {"compile": backward_of(logit, logit_operands(s), (s.stat(s.batch, s.image),))}


def global_norm(s):
    grads = s.stat(12 * s.hidden * s.hidden)
    return {"eager": lambda: torch.linalg.vector_norm(grads)}


def adamw(s):
    n = 12 * s.hidden * s.hidden
    parameter = torch.nn.Parameter(s.stat(n))
    parameter.grad = s.stat(n)
    ema, copy = s.stat(n), s.data(n)
    capturable = s.device == "cuda"
    optimizer = torch.optim.AdamW([parameter], 1e-5, (0.9, 0.99), weight_decay=0.01, fused=True, capturable=capturable)

    @compiled
    def average(ema, copy, master):
        ema.lerp_(master, 0.01)
        copy.copy_(master)

    def run():
        with torch.no_grad():
            parameter.grad.mul_(0.5)  # clipping
            optimizer.step()
            average(ema, copy, parameter.detach())

    return {"fused + compile": run}


PARAMETERS = [global_norm, adamw]
BY_MODEL = [linear, linear_gelu, linear_backward_input, linear_backward_input_gelu, linear_backward_weight, attention,
            attention_backward, qk_norm, qk_norm_backward, adaln, adaln_backward, pos_embed]  # fmt: skip
BY_PICTURE = [silu, silu_backward, leaky_relu, leaky_relu_backward, patchify, unpatchify, timestep_embedding, timesteps,
              normal, flow_noise, predict_x0_renoise, predict_x0_renoise_backward, euler_cfg, mse, hinge, conv3x3,
              conv3x3_backward_input, conv3x3_backward_weight, head_logits, head_logits_backward]  # fmt: skip


# ---- measuring ------------------------------------------------------------------------------------------------------


def goals(args):
    """The attention of benches/kernels/goals.rs: batch, side of the token grid, text tokens, head_dim."""
    for batch, side, text, head_dim in [(4, 64, 154, 64), (1, 64, 154, 64), (1, 32, 154, 64), (1, 32, 333, 64), (4, 64, 154, 128)]:
        name = f"B={batch} S={side * side + text} D={head_dim}"
        for function in (attention, attention_backward):
            if args.filter in function.__name__ and args.shape in name:
                size = (1, (2, 3), 1, 5) if args.tiny else (1536 // head_dim, (side, side), batch, text)
                yield function, name, Shape(*size, WIDTH, args.device, head_dim)


def cases(args):
    """(operation, name of the shape, shape), in the order of benches/kernels/shapes.rs."""
    if args.goals:
        yield from goals(args)
        return
    for m, (model, heads) in enumerate(MODELS.items()):
        for p, (picture, grid) in enumerate(PICTURES.items()):
            for b, batch in enumerate(BATCHES):
                if args.tiny:
                    shape = Shape(1 + m, (2 + p, 3), 1 + b, 5, 24, args.device)
                else:
                    shape = Shape(heads, grid, batch, TEXT, WIDTH, args.device)
                named = [(f, f"{model} {picture} B={batch}") for f in BY_MODEL]
                named += [(f, f"{picture} B={batch}") for f in BY_PICTURE] if m == 0 else []
                named += [(f, model) for f in PARAMETERS] if p == b == 0 else []
                for function, name in named:
                    if args.filter in function.__name__ and args.shape in name:
                        yield function, name, shape


def timed(run):
    """Milliseconds of run() on the GPU."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def captured(run):
    """run() as a CUDA graph; None where it cannot be captured."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:
        torch.cuda.synchronize()
        return None
    return graph.replay


def copies_of(function, shape):
    """Enough copies of the operands to rotate over: a list of {how: run}."""
    before = torch.cuda.memory_allocated()
    copies = [function(shape)]
    bytes_ = max(torch.cuda.memory_allocated() - before, 1)
    wanted = min(max(math.ceil(ROTATED / bytes_), 1), MOST_COPIES)
    return copies + [function(shape) for _ in range(wanted - 1)]


def measure(runs, rest):
    """Microseconds of one run: runs are the copies of one way to do an operation."""
    def rounds(count):
        def all_runs():
            for _ in range(count):
                for run in runs:
                    run()
        return all_runs

    for _ in range(3):
        rounds(1)()
    one = timed(rounds(1))
    count = max(math.ceil(SAMPLE_MS / max(one, 1e-3)), 1)
    graph = captured(rounds(count))
    sample = graph or rounds(count)
    sample()
    time.sleep(rest)
    sample()
    times = [1000 * timed(sample) / (count * len(runs)) for _ in range(SAMPLES)]
    return {"median_us": statistics.median(times), "min_us": min(times), "max_us": max(times), "samples": SAMPLES,
            "runs_per_sample": count * len(runs), "copies": len(runs), "graph": graph is not None}  # fmt: skip


def best(function, shape, rest):
    """The fastest way, and all of them."""
    copies = copies_of(function, shape)
    ways = {}
    for how in copies[0]:
        try:
            ways[how] = measure([copy[how] for copy in copies], rest)
        except RuntimeError as error:
            ways[how] = {"error": str(error).splitlines()[0]}
    done = {how: way for how, way in ways.items() if "median_us" in way}
    if not done:
        return {"ways": ways}
    how = min(done, key=lambda how: done[how]["median_us"])
    return {**done[how], "how": how, "ways": {how: way.get("median_us", way.get("error")) for how, way in ways.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("filter", nargs="?", default="", help="keep operations whose name contains this")
    parser.add_argument("--shape", default="", help="keep shapes whose name contains this")
    parser.add_argument("--goals", action="store_true", help="attention at the shapes of docs/performance-goals.md, with shorter rests")
    parser.add_argument("--json", help="write the results to this file")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true", help="small shapes")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("bench_kernels: nothing was measured, PyTorch finds no GPU")
        return
    if args.device == "cpu":
        # Traces everything as on the GPU, without generating code for the CPU.
        BACKEND.clear()
        BACKEND["backend"] = "aot_eager"
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    cuda = args.device == "cuda"
    results = []
    report = {
        "gpu": torch.cuda.get_device_name() if cuda else None,
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version() if cuda else None},
        "rules": " ".join(__doc__.split("The rules are")[1].split()),
        "results": results,
    }
    for function, name, shape in cases(args):
        entry = {"operation": function.__name__, "shape": name}
        if not cuda:
            # Only to see that it runs: a time on the CPU says nothing.
            for run in function(shape).values():
                run()
        else:
            entry |= best(function, shape, 0.25 if args.goals else 1)
            torch.cuda.empty_cache()
        torch.compiler.reset()
        results.append(entry)
        print(f"bench_kernels: {function.__name__} at {name}: {entry.get('median_us', '-')} us", flush=True)
        if args.json:  # a run that is cut short leaves what it has
            with open(args.json, "w") as file:
                json.dump(report, file, indent=1)
                file.write("\n")


if __name__ == "__main__":
    main()
