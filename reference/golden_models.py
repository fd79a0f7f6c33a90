"""Golden cases of blocks, whole models, discriminator heads and the demo's classifier.

Parameters come from golden.fill_parameters and are never stored; gradients of large parameters are sampled.
Backward passes are named after what is upstream: `velocity` (d_velocity), `taps` (d_tap{i} of every block, velocity not
computed) and `early` (the same without the last block: what the teacher of LADD runs).
"""

from pathlib import Path

import torch
from safetensors.torch import load_file

import flow
from golden import Case, fill_parameters
from heads import Heads
from mmdit import MMDiT, Config
from train_classifier import classify

TINY = dict(in_channels=4, patch=2, context_dim=20, pooled_dim=12, pos_embed_max=8)
BLOCKS = {
    "block_sd3": Config(depth=2, heads=1, head_dim=64, **TINY),
    "block_sd35": Config(depth=2, heads=1, head_dim=64, qk_norm=True, **TINY),
    "block_dual": Config(depth=2, heads=1, head_dim=64, qk_norm=True, dual_attention_blocks=1, **TINY),
    "block_last": Config(depth=1, heads=1, head_dim=64, **TINY),
    "block_head_dim_32": Config(depth=2, heads=2, head_dim=32, qk_norm=True, **TINY),
    "block_edit": Config(depth=1, heads=1, head_dim=64, qk_norm=True, conditioning_channels=4, **TINY),
    "block_inpaint": Config(depth=2, heads=1, head_dim=64, conditioning_channels=5, **TINY),
}
MODELS = {
    "model_sd3": Config(depth=3, heads=1, head_dim=64, **TINY),
    "model_sd35_medium": Config(depth=3, heads=2, head_dim=64, qk_norm=True, dual_attention_blocks=2, **TINY),
    "model_sd35_large": Config(depth=3, heads=3, head_dim=64, qk_norm=True, **TINY),
}
BATCH, TEXT = 2, 5
LATENT = (6, 10)  # latent height and width: a 3 x 5 token grid


def model_inputs(case, config):
    inputs = {
        "latent": case.normal("latent", BATCH, config.in_channels, *LATENT),
        "t": case.given("t", [0.75, 0.3]),
        "context": case.normal("context", BATCH, TEXT, config.context_dim),
        "pooled": case.normal("pooled", BATCH, config.pooled_dim),
    }
    if config.conditioning_channels:
        inputs["conditioning"] = case.normal("conditioning", BATCH, config.conditioning_channels, *LATENT)
    return inputs


def backward(case, prefix, model, latent, pairs):
    """Stores grad.{prefix}.latent and grad.{prefix}.param.{name}; parameters that are not reached are left out."""
    parameters = dict(model.named_parameters())
    outputs, upstream = zip(*pairs)
    gradients = torch.autograd.grad(outputs, [latent, *parameters.values()], upstream, retain_graph=True, allow_unused=True)
    case.sampled(f"grad.{prefix}.latent", gradients[0])
    for name, gradient in zip(parameters, gradients[1:]):
        if gradient is not None:
            case.sampled(f"grad.{prefix}.param.{name}", gradient)


def start_model(name, config, seed, dtype):
    case = Case(name, "model", seed, dtype, **config.described(), param_seed=seed)
    model = fill_parameters(MMDiT(config), seed).to(dtype)
    inputs = model_inputs(case, config)
    tokens = LATENT[0] * LATENT[1] // config.patch**2
    d_velocity = case.normal("d_velocity", *inputs["latent"].shape)
    d_taps = [case.normal(f"d_tap{i}", BATCH, tokens, config.hidden) for i in range(config.depth)]
    velocity, taps = model(**inputs, taps=range(config.depth))
    case.out("velocity", velocity)
    for i, tap in enumerate(taps):
        case.sampled(f"out.tap{i}", tap)
    return case, model, inputs, (velocity, d_velocity), list(zip(taps, d_taps))


def blocks(dtype):
    """Tiny models of one or two blocks; one backward pass with velocity and taps upstream together."""
    for seed, (name, config) in enumerate(BLOCKS.items(), 101):
        case, model, inputs, velocity, taps = start_model(name, config, seed, dtype)
        backward(case, "all", model, inputs["latent"], [velocity, *taps])
        yield case


def models(dtype):
    for seed, (name, config) in enumerate(MODELS.items(), 111):
        case, model, inputs, velocity, taps = start_model(name, config, seed, dtype)
        backward(case, "velocity", model, inputs["latent"], [velocity])
        backward(case, "taps", model, inputs["latent"], taps)
        early = model.features(**inputs, taps=range(config.depth - 1))
        pairs = [(feature, upstream) for feature, (_, upstream) in zip(early, taps)]
        outputs, upstream = zip(*pairs)
        case.sampled("grad.early.latent", torch.autograd.grad(outputs, inputs["latent"], upstream)[0])
        yield case


def discriminator_heads(dtype):
    taps, batch, hidden, pooled_dim, width, grid = 2, 3, 64, 12, 64, (3, 5)
    case = Case(
        "heads", "heads", 121, dtype,
        taps=taps, B=batch, hidden=hidden, pooled_dim=pooled_dim, width=width, gh=grid[0], gw=grid[1], param_seed=121,
    )  # fmt: skip
    network = fill_parameters(Heads(taps, hidden, pooled_dim, width), 121).to(dtype)
    features = [case.normal(f"features{i}", batch, grid[0] * grid[1], hidden, scale=2.0, offset=0.3) for i in range(taps)]
    t_hat = case.given("t_hat", [0.9, 0.5, 0.125])
    pooled = case.normal("pooled", batch, pooled_dim)
    logits = network(features, t_hat, pooled, grid)
    d_logits = case.normal("d_logits", *logits.shape)
    case.out("logits", logits)
    parameters = dict(network.named_parameters())
    gradients = torch.autograd.grad(logits, [*features, *parameters.values()], d_logits)
    for name, gradient in zip([*(f"features{i}" for i in range(taps)), *(f"param.{n}" for n in parameters)], gradients):
        case.sampled(f"grad.{name}", gradient)
    yield case


def samplers(dtype):
    seed, steps = 131, 4
    for name in ("sampler_euler", "sampler_renoise", "sampler_edit"):
        config = BLOCKS["block_edit" if name == "sampler_edit" else "block_sd35"]
        op = "sampler_renoise" if name == "sampler_renoise" else "sampler_euler"
        case = Case(name, op, seed, dtype, **config.described(), param_seed=seed, steps=steps, noise_seed=77, first_sample=3)
        model = fill_parameters(MMDiT(config), seed).to(dtype)
        context = case.normal("context", BATCH, TEXT, config.context_dim)
        pooled = case.normal("pooled", BATCH, config.pooled_dim)
        start = flow.noise((BATCH, config.in_channels, *LATENT), 77, 0, flow.START_NOISE, 3, dtype)
        case.out("start", start)
        if op == "sampler_euler":
            case.case["config"] |= {"shift": 3.0, "guidance": 2.5}
            edit = ()
            if name == "sampler_edit":
                case.case["config"] |= {"image_guidance": 1.5}
                edit = case.normal("conditioning", BATCH, config.conditioning_channels, *LATENT), 1.5
            negative = case.normal("negative_context", BATCH, TEXT, config.context_dim), case.normal("negative_pooled", BATCH, config.pooled_dim)
            times = flow.schedule(steps, 3.0)
            states = flow.sample_euler(model, start, times, context, pooled, *negative, 2.5, edit)
        else:
            times = torch.tensor([1.0, 0.75, 0.5, 0.25])
            states = flow.sample_renoise(model, start, times, context, pooled, 77, 3)
        case.out("times", times)
        for i, state in enumerate(states):
            case.out(f"step{i}", state)
        yield case


def classifier(dtype):
    folder = Path(__file__).parent.parent / "src/data/demo"
    tensors = load_file(folder / "classifier.safetensors")
    test = load_file(folder / "test_images.safetensors")
    rows = [0, 27, 55, 99]
    case = Case("classifier", "classifier", 0, dtype, rows=rows)
    images = test["images"][rows]
    case.given("images", images.numpy(), "uint8")
    case.given("labels", test["labels"][rows].numpy(), "uint8")
    pixels = torch.nn.functional.pad(images, (2, 2, 2, 2))[:, None].to(dtype) / 127.5 - 1
    logits, features = classify(tensors, pixels)
    case.outs(logits=logits, features=features)
    yield case


ALL = [blocks, models, discriminator_heads, samplers, classifier]
