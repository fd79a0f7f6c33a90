"""The CPU speed peer: the LADD step of the demo in PyTorch, as fast as plain PyTorch goes; prints one JSON object.

The same networks and losses as ladd.py (hinge, all taps, AdamW, clipping, EMA), without its bookkeeping: fused AdamW,
foreach EMA, shared features and one heads forward for both losses in the simultaneous mode.  Reals need no teacher
gradient, so they run without one (--teacher-batch split, measured faster); joint puts fakes and reals in one batch.
Run it on idle cores: other load slows PyTorch many times over.
"""

import argparse
import copy
import json
import resource
import statistics
import time

import torch
import torch.nn.functional as F

import flow
from heads import Heads
from mmdit import MMDiT, Config

STUDENT_TIMES = torch.tensor([1.0, 0.75, 0.5, 0.25])
STUDENT_ODDS = torch.tensor([0.7, 0.1, 0.1, 0.1])


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sizes = dict(heads=2, head_dim=64, depth=4, patch=2, channels=16, latent=8, text=4, context=64, pooled=64, head_width=64, batch=64)
    for name, default in (sizes | dict(dual=0, threads=0, iters=30, warmup=5)).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--qk-norm", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks")
    parser.add_argument("--teacher-batch", choices=["split", "joint"], default="split")
    parser.add_argument("--only", choices=["simultaneous", "alternating", "model"], help="measure one thing")
    return parser.parse_args()


class Bench:
    def __init__(self, args):
        torch.manual_seed(0)
        self.args = args
        config = Config(
            depth=args.depth, heads=args.heads, head_dim=args.head_dim, in_channels=args.channels, patch=args.patch,
            context_dim=args.context, pooled_dim=args.pooled, pos_embed_max=args.latent // args.patch,
            qk_norm=args.qk_norm, dual_attention_blocks=args.dual,
        )  # fmt: skip
        self.taps = tuple(range(args.depth))
        self.grid = (args.latent // args.patch, args.latent // args.patch)
        self.teacher = MMDiT(config).requires_grad_(False)
        self.student = copy.deepcopy(self.teacher).requires_grad_(True)
        self.heads = Heads(args.depth, config.hidden, args.pooled, args.head_width)
        self.student_parameters = list(self.student.parameters())
        self.heads_parameters = list(self.heads.parameters())
        self.ema = [p.detach().clone() for p in self.student_parameters]
        self.student_optimizer = torch.optim.AdamW(self.student_parameters, 1e-5, fused=True)
        self.heads_optimizer = torch.optim.AdamW(self.heads_parameters, 2e-5, fused=True)

        b, size = args.batch, args.latent
        self.x0 = torch.randn(b, args.channels, size, size)
        self.context = torch.randn(b, args.text, args.context)
        self.pooled = torch.randn(b, args.pooled)
        wrap = torch.compile if args.compile else lambda function: function
        self.run_student = wrap(self.student)
        self.run_teacher = wrap(lambda latent, t, context, pooled: self.teacher.features(latent, t, context, pooled, self.taps))
        self.run_heads = wrap(self.heads)

    # the pieces of a step

    def predict(self):
        t = STUDENT_TIMES[torch.multinomial(STUDENT_ODDS, self.args.batch, replacement=True)]
        x_t = flow.interpolate(self.x0, torch.randn_like(self.x0), t)
        return flow.predict_x0(x_t, self.run_student(x_t, t, self.context, self.pooled), t)

    def renoise(self, latent, t_hat):
        return flow.interpolate(latent, torch.randn_like(latent), t_hat)

    def draw_t_hat(self):
        return torch.sigmoid(1 + torch.randn(self.args.batch)).clamp(0.001, 0.999)

    def fake_and_real_logits(self, x0_hat, t_hat):
        """Logits [heads, B, N] of both groups; the graph reaches x0_hat where x0_hat has one."""
        fake, real = self.renoise(x0_hat, t_hat), self.renoise(self.x0, t_hat)
        if self.args.teacher_batch == "joint":
            t, pooled = torch.cat([t_hat, t_hat]), torch.cat([self.pooled, self.pooled])
            features = self.run_teacher(torch.cat([fake, real]), t, torch.cat([self.context, self.context]), pooled)
            return self.run_heads(features, t, pooled, self.grid).chunk(2, dim=1)
        features = self.run_teacher(fake, t_hat, self.context, self.pooled)
        with torch.no_grad():
            real_features = self.run_teacher(real, t_hat, self.context, self.pooled)
        return [self.run_heads(f, t_hat, self.pooled, self.grid) for f in (features, real_features)]

    def update_student(self, gradients):
        self.update(self.student_optimizer, self.student_parameters, gradients)
        torch._foreach_lerp_(self.ema, [p.detach() for p in self.student_parameters], 0.01)

    def update_heads(self, gradients):
        self.update(self.heads_optimizer, self.heads_parameters, gradients)

    def update(self, optimizer, parameters, gradients):
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(parameters, 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    # what is measured

    def simultaneous(self):
        t_hat = self.draw_t_hat()
        fake, real = self.fake_and_real_logits(self.predict(), t_hat)
        d_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        heads_gradients = torch.autograd.grad(d_loss, self.heads_parameters, retain_graph=True)
        student_gradients = torch.autograd.grad(-fake.mean(), self.student_parameters)
        self.update_student(student_gradients)
        self.update_heads(heads_gradients)

    def alternating(self):
        t_hat = self.draw_t_hat()
        features = self.run_teacher(self.renoise(self.predict(), t_hat), t_hat, self.context, self.pooled)
        g_loss = -self.run_heads(features, t_hat, self.pooled, self.grid).mean()
        self.update_student(torch.autograd.grad(g_loss, self.student_parameters))

        with torch.no_grad():
            x0_hat = self.predict()
        fake, real = self.fake_and_real_logits(x0_hat, self.draw_t_hat())
        d_loss = F.relu(1 - real).mean() + F.relu(1 + fake).mean()
        self.update_heads(torch.autograd.grad(d_loss, self.heads_parameters))

    def forward(self):
        with torch.no_grad():
            self.run_student(self.x0, self.fixed_t, self.context, self.pooled)

    def forward_backward(self):
        velocity = self.run_student(self.x0, self.fixed_t, self.context, self.pooled)
        torch.autograd.grad(velocity.square().mean(), self.student_parameters)

    def measure(self, function):
        self.fixed_t = torch.rand(self.args.batch)
        for _ in range(self.args.warmup):
            function()
        times = []
        for _ in range(self.args.iters):
            start = time.perf_counter()
            function()
            times.append(1000 * (time.perf_counter() - start))
        rounded = lambda value: round(value, 3)
        return {"median_ms": rounded(statistics.median(times)), "min_ms": rounded(min(times)), "max_ms": rounded(max(times))}


def main():
    args = parse()
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench(args)
    functions = {
        "simultaneous": {"simultaneous": bench.simultaneous},
        "alternating": {"alternating": bench.alternating},
        "model": {"model_forward": bench.forward, "model_forward_backward": bench.forward_backward},
    }
    chosen = {name: f for group, fs in functions.items() if args.only in (None, group) for name, f in fs.items()}
    result = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "config": vars(args),
        "student_parameters": sum(p.numel() for p in bench.student_parameters),
        "heads_parameters": sum(p.numel() for p in bench.heads_parameters),
    }
    result |= {name: bench.measure(function) for name, function in chosen.items()}
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
