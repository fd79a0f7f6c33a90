"""The speed peer: LADD steps, sampling and the model's passes in PyTorch, as fast as PyTorch goes; prints one JSON object.

    python reference/bench_step.py                                       the demo's step on the CPU
    python reference/bench_step.py --device cuda --model sd3-medium      on a GPU

The same networks and losses as ladd.py (hinge, all taps, AdamW, clipping, EMA), without its bookkeeping: fused AdamW,
foreach EMA, shared features.  Reals need no teacher gradient, so they run without one (--teacher-batch split, measured
faster); joint puts fakes and reals in one batch.  On a GPU: bf16 weights and activations with fp32 master weights, moments
and EMA; torch.compile of every block (--compile model: of whole networks, minutes of compiling for little); attention by
cuDNN or flash, whichever is faster at this shape forward and backward; sampling and forward replayed as a CUDA graph; the
peak is that of torch's allocator after the warm-up.  A compiled backward computes all gradients, wanted or not, so where
the heads are compiled the two losses get a forward of the heads each, one without and one with the features' gradient.
Run it on idle cores: other load slows PyTorch many times over.
"""

import argparse
import contextlib
import gc
import json
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import flow
from heads import Heads
from mmdit import MMDiT, Config

STUDENT_TIMES = (1.0, 0.75, 0.5, 0.25)
STUDENT_ODDS = (0.7, 0.1, 0.1, 0.1)

DEMO = dict(heads=2, head_dim=64, depth=4, patch=2, channels=16, latent=8, text=4, context=64, pooled=64, head_width=64, batch=64,
            dual=0, qk_norm=True, grid=4)  # fmt: skip
SD3 = dict(DEMO, heads=24, depth=24, latent=128, text=154, context=4096, pooled=2048, head_width=256, batch=1, qk_norm=False,
           grid=192)  # fmt: skip
MODELS = {
    "tiny": dict(DEMO, head_dim=16, depth=2, channels=4, latent=4, text=3, context=16, pooled=16, head_width=16, batch=2),
    "demo": DEMO,
    "sd3-medium": SD3,
    "sd3.5-medium": dict(SD3, qk_norm=True, dual=13, grid=384),
    "sd3.5-large": dict(SD3, heads=38, depth=38, qk_norm=True),
}
ATTENTION = {"cuDNN": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}
GROUPS = {
    "simultaneous": ["simultaneous"],
    "alternating": ["alternating"],
    "model": ["model_forward", "model_forward_backward"],
    "forward": ["model_forward"],
    "sampling": ["sampling"],
}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="demo", help="sizes; every one of them can be set by itself too")
    for name in DEMO:
        if name != "qk_norm":
            parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--qk-norm", action=argparse.BooleanOptionalAction)
    parser.add_argument("--resolution", type=int, help="image side in pixels: eight times --latent")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--iters", type=int, help="runs that are counted (default: 30, on a GPU 10)")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--compile", choices=["off", "blocks", "model"], nargs="?", const="model",
                        help="torch.compile (default: off, on a GPU blocks)")  # fmt: skip
    parser.add_argument("--attention", choices=["fastest", *ATTENTION], default="fastest", help="on a GPU (default: fastest)")
    parser.add_argument("--checkpointing", action="store_true", help="keep only the blocks' inputs for the backward")
    parser.add_argument("--teacher-batch", choices=["split", "joint"], default="split")
    parser.add_argument("--only", help=f"measure these, separated by commas: {', '.join(GROUPS)}")
    parser.add_argument("--out", help="write the object to this file too, again after everything that is measured")
    args = parser.parse_args()
    if args.resolution:
        if args.resolution % 8:
            parser.error(f"--resolution {args.resolution} is no multiple of 8")
        args.latent = args.resolution // 8
    for name, value in MODELS[args.model].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.latent % args.patch:
        parser.error(f"a latent of {args.latent} cannot be cut into patches of {args.patch}")
    args.grid = max(args.grid, args.latent // args.patch)
    cuda = args.device == "cuda"
    args.iters = args.iters or (10 if cuda else 30)
    args.compile = args.compile or ("blocks" if cuda else "off")
    unknown = set((args.only or "model").split(",")) - set(GROUPS)
    if unknown:
        parser.error(f"--only {args.only}: choose from {', '.join(GROUPS)}")
    if cuda and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU: use --device cpu")
    return args


class Checkpointed(torch.nn.Module):
    """A block whose inputs alone are kept for the backward."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, *inputs):
        return checkpoint(self.block, *inputs, use_reentrant=False)


@contextlib.contextmanager
def frozen(module):
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


class Network:
    """Weights in the compute type, and in fp32 for the optimizer where that is another type."""

    def __init__(self, module, lr, ema):
        self.module = module
        self.weights = list(module.parameters())
        half = self.weights[0].dtype != torch.float32
        self.master = [torch.nn.Parameter(w.detach().float()) for w in self.weights] if half else self.weights
        self.ema = [w.detach().clone() for w in self.master] if ema else None
        self.optimizer = torch.optim.AdamW(self.master, lr, fused=True)

    def update(self, gradients):
        """Clips, steps, averages.  Takes the gradients out of the list, so that none is kept in two types."""
        for i, master in enumerate(self.master):
            master.grad, gradients[i] = gradients[i].float(), None
        torch.nn.utils.clip_grad_norm_(self.master, 1.0, foreach=True)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            if self.master is not self.weights:
                torch._foreach_copy_(self.weights, self.master)
            if self.ema:
                torch._foreach_lerp_(self.ema, [p.detach() for p in self.master], 0.01)


class Bench:
    def __init__(self, args):
        torch.manual_seed(0)
        self.args = args
        self.dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
        self.config = Config(
            depth=args.depth, heads=args.heads, head_dim=args.head_dim, in_channels=args.channels, patch=args.patch,
            context_dim=args.context, pooled_dim=args.pooled, pos_embed_max=args.grid,
            qk_norm=args.qk_norm, dual_attention_blocks=args.dual,
        )  # fmt: skip
        self.taps = tuple(range(args.depth))
        self.grid = (args.latent // args.patch, args.latent // args.patch)
        b, size = args.batch, args.latent
        with torch.device(args.device):
            self.student_module = MMDiT(self.config).to(self.dtype)
            self.x0 = torch.randn(b, args.channels, size, size)
            self.context = torch.randn(b, args.text, args.context).to(self.dtype)
            self.pooled = torch.randn(b, args.pooled).to(self.dtype)
            self.fixed_t = torch.rand(b)
            self.student_times, self.student_odds = torch.tensor(STUDENT_TIMES), torch.tensor(STUDENT_ODDS)
        self.teacher = None
        self.run_student = self.network(self.student_module, self.student_module)

    def network(self, module, function):
        """The function as it is called: compiled, checkpointed, as asked for."""
        blocks = module.joint_blocks if isinstance(module, MMDiT) else module.heads
        if self.args.compile == "blocks":
            for block in blocks:
                block.compile(dynamic=False)
        if self.args.checkpointing and isinstance(module, MMDiT):
            for i, block in enumerate(blocks):
                blocks[i] = Checkpointed(block)
        return torch.compile(function, dynamic=False) if self.args.compile == "model" else function

    def prepare(self):
        """Teacher, heads, optimizers and averages, which only training needs."""
        if self.teacher is not None:
            return
        args = self.args
        with torch.device(args.device):
            teacher = MMDiT(self.config).to(self.dtype)
            heads = Heads(args.depth, self.config.hidden, args.pooled, args.head_width).to(self.dtype)
        with torch.no_grad():
            torch._foreach_copy_(list(teacher.parameters()), [p.detach() for p in self.student_module.parameters()])
        teacher.requires_grad_(False)
        self.heads_module = heads
        self.student, self.heads = Network(self.student_module, 1e-5, ema=True), Network(heads, 2e-5, ema=False)
        self.teacher = teacher
        features = lambda latent, t, context, pooled: self.teacher.features(latent, t, context, pooled, self.taps)
        self.run_teacher = self.network(self.teacher, features)
        self.run_heads = self.network(heads, heads)

    def release(self):
        """Gives back what a step that did not get through left behind."""
        for network in (self.student, self.heads) if self.teacher is not None else ():
            network.optimizer.zero_grad(set_to_none=True)
        gc.collect()
        torch.cuda.empty_cache()

    # the pieces of a step

    def draw_t(self):
        return self.student_times[torch.multinomial(self.student_odds, self.args.batch, replacement=True)]

    def draw_t_hat(self):
        return torch.sigmoid(1 + torch.randn(self.args.batch, device=self.args.device)).clamp(0.001, 0.999)

    def velocity(self, latent, t):
        return self.run_student(latent.to(self.dtype), t, self.context, self.pooled).float()

    def predict(self):
        t = self.draw_t()
        x_t = flow.interpolate(self.x0, torch.randn_like(self.x0), t)
        return flow.predict_x0(x_t, self.velocity(x_t, t), t)

    def renoise(self, latent, t_hat):
        return flow.interpolate(latent, torch.randn_like(latent), t_hat).to(self.dtype)

    def features(self, latent, t_hat):
        return self.run_teacher(self.renoise(latent, t_hat), t_hat, self.context, self.pooled)

    def logits(self, features, t_hat):
        return self.run_heads(features, t_hat, self.pooled, self.grid).float()

    def fake_and_real_features(self, x0_hat, t_hat):
        """Features of both groups; the graph reaches x0_hat where x0_hat has one."""
        if self.args.teacher_batch == "joint":
            latents = torch.cat([self.renoise(x0_hat, t_hat), self.renoise(self.x0, t_hat)])
            twice = [torch.cat([x, x]) for x in (t_hat, self.context, self.pooled)]
            return zip(*[f.chunk(2) for f in self.run_teacher(latents, *twice)])
        fake = self.features(x0_hat, t_hat)
        with torch.no_grad():
            return fake, self.features(self.x0, t_hat)

    def heads_gradients(self, fake, real, t_hat, keep=False):
        """Gradients of L_D, and the fake logits."""
        fake, real = self.logits(fake, t_hat), self.logits(real, t_hat)
        d_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        return list(torch.autograd.grad(d_loss, self.heads.weights, retain_graph=keep)), fake

    def student_gradients(self, fake_logits):
        return list(torch.autograd.grad(-fake_logits.mean(), self.student.weights))

    # what is measured

    def simultaneous(self):
        t_hat = self.draw_t_hat()
        fake, real = self.fake_and_real_features(self.predict(), t_hat)
        if self.args.compile == "off":
            heads_gradients, logits = self.heads_gradients(fake, real, t_hat, keep=True)
            student_gradients = self.student_gradients(logits)
        else:
            heads_gradients, _ = self.heads_gradients([f.detach() for f in fake], real, t_hat)
            with frozen(self.heads_module):
                student_gradients = self.student_gradients(self.logits(fake, t_hat))
        del fake, real
        self.student.update(student_gradients)
        self.heads.update(heads_gradients)

    def alternating(self):
        t_hat = self.draw_t_hat()
        with frozen(self.heads_module):
            logits = self.logits(self.features(self.predict(), t_hat), t_hat)
            student_gradients = self.student_gradients(logits)
        del logits
        self.student.update(student_gradients)

        t_hat = self.draw_t_hat()
        with torch.no_grad():
            fake, real = self.fake_and_real_features(self.predict(), t_hat)
        self.heads.update(self.heads_gradients(fake, real, t_hat)[0])

    @torch.no_grad()
    def model_forward(self):
        return self.velocity(self.x0, self.fixed_t)

    def model_forward_backward(self):
        torch.autograd.grad(self.velocity(self.x0, self.fixed_t).square().mean(), list(self.student_module.parameters()))

    @torch.no_grad()
    def sample(self):
        x = torch.randn_like(self.x0)
        for k in range(len(STUDENT_TIMES)):
            t = self.student_times[k].expand(len(x))
            x0_hat = flow.predict_x0(x, self.velocity(x, t), t)
            if k + 1 < len(STUDENT_TIMES):
                x = flow.interpolate(x0_hat, torch.randn_like(x), self.student_times[k + 1].expand(len(x)))
        return x0_hat

    # how

    def uploaded(self, sample):
        """Sampling with the text from the host and the latents back to it."""
        context, pooled = self.context.cpu(), self.pooled.cpu()
        if self.args.device == "cuda":
            context, pooled = context.pin_memory(), pooled.pin_memory()

        def run():
            self.context.copy_(context, non_blocking=True)
            self.pooled.copy_(pooled, non_blocking=True)
            return sample().cpu()

        return run

    def captured(self, function):
        """The function as a CUDA graph, or as it is where it cannot be captured; and which."""
        if self.args.device != "cuda":
            return function, False
        try:
            for _ in range(3):
                function()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                result = function()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            print(f"bench_step: no CUDA graph: {str(error).splitlines()[0]}", file=sys.stderr)
            torch.cuda.synchronize()
            return function, False

        def replay():
            graph.replay()
            return result

        return replay, True

    def function(self, name):
        """What is timed, and whether it is a CUDA graph."""
        if name == "sampling":
            sample, graph = self.captured(self.sample)
            return self.uploaded(sample), graph
        if name == "model_forward":
            return self.captured(self.model_forward)
        if name != "model_forward_backward":
            self.prepare()
        return getattr(self, name), False

    def measure(self, name):
        cuda = self.args.device == "cuda"
        synchronize = torch.cuda.synchronize if cuda else lambda: None
        begin = time.perf_counter()
        function, graph = self.function(name)
        for _ in range(self.args.warmup):
            function()
        synchronize()
        warm_up = time.perf_counter() - begin
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        times = []
        for _ in range(self.args.iters):
            start = time.perf_counter()
            function()
            synchronize()
            times.append(1000 * (time.perf_counter() - start))
        rounded = lambda value: round(value, 3)
        result = {"median_ms": rounded(statistics.median(times)), "min_ms": rounded(min(times)), "max_ms": rounded(max(times))}
        if cuda:
            peaks = {"peak_memory_gb": torch.cuda.max_memory_allocated(), "peak_reserved_gb": torch.cuda.max_memory_reserved()}
            result |= {key: rounded(count / 1e9) for key, count in peaks.items()}
            result |= {"graph": graph, "iters": self.args.iters, "warm_up_s": rounded(warm_up)}
        return result


def attention_times(args):
    """Milliseconds of a forward and backward of the joint attention, by kernel; the fastest first."""
    size = (args.batch, args.heads, (args.latent // args.patch) ** 2 + args.text, args.head_dim)
    q, k, v, d_out = (torch.randn(size, device="cuda", dtype=torch.bfloat16) for _ in range(4))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    times = {}
    for name, backend in ATTENTION.items():
        try:
            with sdpa_kernel(backend):
                ms = []
                for _ in range(8):
                    torch.cuda.synchronize()
                    start = time.perf_counter()
                    torch.autograd.grad(F.scaled_dot_product_attention(q, k, v), (q, k, v), d_out)
                    torch.cuda.synchronize()
                    ms.append(1000 * (time.perf_counter() - start))
            times[name] = round(statistics.median(ms[3:]), 4)
        except RuntimeError as error:
            print(f"bench_step: no attention by {name}: {str(error).splitlines()[0]}", file=sys.stderr)
    return dict(sorted(times.items(), key=lambda item: item[1]))


@contextlib.contextmanager
def chosen_attention(args, result):
    """On a GPU: scaled_dot_product_attention by what was asked for, or by whatever is fastest at this shape."""
    if args.device != "cuda":
        yield
        return
    names = [args.attention]
    if args.attention == "fastest":
        result["attention_ms"] = attention_times(args)
        names = list(result["attention_ms"])
    with sdpa_kernel([ATTENTION[name] for name in names] + [SDPBackend.MATH], set_priority=True):
        yield


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    torch._dynamo.config.recompile_limit = 64  # a block is compiled once for each way it is used
    torch.backends.cudnn.benchmark = True
    cuda = args.device == "cuda"
    result = {"torch": torch.__version__, "threads": torch.get_num_threads(), "config": vars(args)}
    if cuda:
        result |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}

    def keep():
        result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
        if args.out:
            with open(args.out, "w") as file:
                file.write(json.dumps(result, indent=1) + "\n")

    default = ["simultaneous", "alternating", "model"]
    names = [name for group in (args.only.split(",") if args.only else default) for name in GROUPS[group]]
    with chosen_attention(args, result):
        bench = Bench(args)
        result["student_parameters"] = sum(p.numel() for p in bench.student_module.parameters())
        for name in names:
            try:
                result[name] = bench.measure(name)
            except torch.cuda.OutOfMemoryError:
                result[name] = {"out_of_memory": True}
            except RuntimeError as error:
                result[name] = {"failed": str(error).splitlines()[0]}
            if cuda and "median_ms" not in result[name]:
                bench.release()  # outside of the handlers, whose tracebacks hold the activations
            keep()
    if bench.teacher is not None:
        result["heads_parameters"] = sum(p.numel() for p in bench.heads_module.parameters())
    keep()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
