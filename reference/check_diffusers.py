"""Checks mmdit.py against diffusers' SD3Transformer2DModel: random tiny models of every family member, several sizes.

Converts diffusers' state dict to our names, then compares outputs and input gradients (latent, context, pooled) in
float64 (relative L2 <= 1e-10) and float32 (<= 1e-5).  diffusers computes two things in float32 whatever the dtype: the
timestep sinusoid, whose angles of up to 1000 rad lose five digits there, and the mean square of RMSNorm.  The
sinusoid is therefore compared on its own and replaced by its float64 formula in every row, RMSNorm in the float64
rows only.  Prints a table; exit code 1 if any row fails.
"""

import sys

import torch
from diffusers import SD3Transformer2DModel
from diffusers.models.normalization import RMSNorm

from mmdit import MMDiT, Config, sinusoid

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
CONTEXT_DIM, POOLED_DIM, CHANNELS, PATCH, POSITIONS = 20, 12, 4, 2, 12
FAMILY = {
    "SD3-medium": dict(num_layers=3, num_attention_heads=3, attention_head_dim=32, qk_norm=None, dual_attention_layers=()),
    "SD3.5-medium": dict(num_layers=4, num_attention_heads=2, attention_head_dim=64, qk_norm="rms_norm", dual_attention_layers=(0, 1)),
    "SD3.5-large": dict(num_layers=3, num_attention_heads=2, attention_head_dim=64, qk_norm="rms_norm", dual_attention_layers=()),
    "editing": dict(num_layers=3, num_attention_heads=3, attention_head_dim=32, qk_norm=None, dual_attention_layers=()),
    "inpainting": dict(num_layers=2, num_attention_heads=2, attention_head_dim=64, qk_norm="rms_norm", dual_attention_layers=()),
}
CONDITIONING = {"editing": CHANNELS, "inpainting": CHANNELS + 1}  # channels behind the latent's; diffusers reads both as one
SIZES = [(8, 8), (6, 16), (14, 4), (24, 24)]  # latent heights and widths; the grid holds 24 x 24


def swap_halves(tensor):
    """diffusers stores (scale, shift) where the original files store (shift, scale)."""
    return torch.cat(tensor.chunk(2)[::-1])


def image_names(ours, theirs):
    """{our prefix: the diffusers prefixes stacked into it} of one image stream."""
    return {
        f"{ours}.adaLN_modulation.1": [f"{theirs}.norm1.linear"],
        f"{ours}.attn.qkv": [f"{theirs}.attn.to_{x}" for x in "qkv"],
        f"{ours}.attn.ln_q": [f"{theirs}.attn.norm_q"],
        f"{ours}.attn.ln_k": [f"{theirs}.attn.norm_k"],
        f"{ours}.attn.proj": [f"{theirs}.attn.to_out.0"],
        f"{ours}.attn2.qkv": [f"{theirs}.attn2.to_{x}" for x in "qkv"],
        f"{ours}.attn2.ln_q": [f"{theirs}.attn2.norm_q"],
        f"{ours}.attn2.ln_k": [f"{theirs}.attn2.norm_k"],
        f"{ours}.attn2.proj": [f"{theirs}.attn2.to_out.0"],
        f"{ours}.mlp.fc1": [f"{theirs}.ff.net.0.proj"],
        f"{ours}.mlp.fc2": [f"{theirs}.ff.net.2"],
    }


def context_names(ours, theirs):
    return {
        f"{ours}.adaLN_modulation.1": [f"{theirs}.norm1_context.linear"],
        f"{ours}.attn.qkv": [f"{theirs}.attn.add_{x}_proj" for x in "qkv"],
        f"{ours}.attn.ln_q": [f"{theirs}.attn.norm_added_q"],
        f"{ours}.attn.ln_k": [f"{theirs}.attn.norm_added_k"],
        f"{ours}.attn.proj": [f"{theirs}.attn.to_add_out"],
        f"{ours}.mlp.fc1": [f"{theirs}.ff_context.net.0.proj"],
        f"{ours}.mlp.fc2": [f"{theirs}.ff_context.net.2"],
    }


def name_map(depth):
    names = {
        "x_embedder.proj": ["pos_embed.proj"],
        "t_embedder.mlp.0": ["time_text_embed.timestep_embedder.linear_1"],
        "t_embedder.mlp.2": ["time_text_embed.timestep_embedder.linear_2"],
        "y_embedder.mlp.0": ["time_text_embed.text_embedder.linear_1"],
        "y_embedder.mlp.2": ["time_text_embed.text_embedder.linear_2"],
        "context_embedder": ["context_embedder"],
        "final_layer.adaLN_modulation.1": ["norm_out.linear"],
        "final_layer.linear": ["proj_out"],
    }
    for i in range(depth):
        names |= image_names(f"joint_blocks.{i}.x_block", f"transformer_blocks.{i}")
        names |= context_names(f"joint_blocks.{i}.context_block", f"transformer_blocks.{i}")
    return names


def convert(theirs, depth):
    """diffusers' state dict in the names of mmdit.py.  Every tensor of it must find its place."""
    swapped = ["norm_out.linear", f"transformer_blocks.{depth - 1}.norm1_context.linear"]
    remaining = dict(theirs)
    ours = {"pos_embed": remaining.pop("pos_embed.pos_embed")}
    for our_prefix, sources in name_map(depth).items():
        for part in ("weight", "bias"):
            if f"{sources[0]}.{part}" not in remaining:  # a part this family member, or this block, does not have
                continue
            tensor = torch.cat([remaining.pop(f"{source}.{part}") for source in sources])
            ours[f"{our_prefix}.{part}"] = swap_halves(tensor) if sources[0] in swapped else tensor
    assert not remaining, f"tensors without a place: {sorted(remaining)}"
    embedder = ours["x_embedder.proj.weight"]
    if embedder.shape[1] > CHANNELS:
        ours["x_embedder.proj.weight"], ours["x_embedder.conditioning.weight"] = embedder[:, :CHANNELS], embedder[:, CHANNELS:]
    return ours


def pair(shape, conditioning, dtype, seed):
    """A random diffusers model and ours with the same weights."""
    torch.manual_seed(seed)
    theirs = SD3Transformer2DModel(
        sample_size=16, patch_size=PATCH, in_channels=CHANNELS + conditioning, out_channels=CHANNELS, joint_attention_dim=CONTEXT_DIM,
        pooled_projection_dim=POOLED_DIM, pos_embed_max_size=POSITIONS,
        caption_projection_dim=shape["num_attention_heads"] * shape["attention_head_dim"], **shape,
    ).to(dtype)
    with torch.no_grad():  # biases and norm weights too, so that no parameter is trivially right
        for parameter in theirs.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    config = Config(
        depth=shape["num_layers"], heads=shape["num_attention_heads"], head_dim=shape["attention_head_dim"],
        in_channels=CHANNELS, patch=PATCH, context_dim=CONTEXT_DIM, pooled_dim=POOLED_DIM, pos_embed_max=POSITIONS,
        qk_norm=shape["qk_norm"] is not None, dual_attention_blocks=len(shape["dual_attention_layers"]), conditioning_channels=conditioning,
    )
    ours = MMDiT(config).to(dtype)
    ours.load_state_dict(convert(theirs.state_dict(), config.depth), strict=True)
    return theirs, ours


def use_float64_sinusoid(model):
    embedder = model.time_text_embed
    embedder.time_proj.forward = lambda timestep: sinusoid(timestep / 1000)


def use_float64_rms_norm(model):
    def forward(self, x):
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight

    for module in model.modules():
        if isinstance(module, RMSNorm):
            module.forward = forward.__get__(module)


def sinusoid_error(model):
    """diffusers' own float32 sinusoid against float64, relative L2."""
    t = torch.rand(64)
    return relative_error(model.time_text_embed.time_proj(1000 * t).double(), sinusoid(t))


def relative_error(value, reference):
    return ((value - reference).norm() / reference.norm()).item()


def compare(theirs, ours, size, dtype):
    """Relative L2 errors of the output and of the gradients of latent, context and pooled."""
    batch = 2
    inputs = [torch.randn(batch, CHANNELS, *size), torch.randn(batch, 7, CONTEXT_DIM), torch.randn(batch, POOLED_DIM)]
    inputs = [x.to(dtype).requires_grad_() for x in inputs]
    t = torch.tensor([0.25, 0.875], dtype=dtype)  # 1000 t is exact
    latent, context, pooled = inputs
    conditioning = torch.randn(batch, ours.config.conditioning_channels, *size, dtype=dtype)
    expected = theirs(torch.cat([latent, conditioning], dim=1), context, pooled, 1000 * t, return_dict=False)[0]
    got = ours(latent, t, context, pooled, conditioning=conditioning if conditioning.shape[1] else None)
    upstream = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(expected, inputs, upstream)
    got_gradients = torch.autograd.grad(got, inputs, upstream)
    return [relative_error(got, expected)] + [relative_error(g, e) for g, e in zip(got_gradients, expected_gradients)]


def main():
    torch.set_num_threads(1)
    failed, sinusoid_errors = False, []
    print(f"{'model':14} {'dtype':8} {'latent':8} {'output':>10} {'d latent':>10} {'d context':>10} {'d pooled':>10}")
    for dtype, tolerance in TOLERANCE.items():
        for seed, (name, shape) in enumerate(FAMILY.items()):
            theirs, ours = pair(shape, CONDITIONING.get(name, 0), dtype, seed)
            sinusoid_errors.append(sinusoid_error(theirs))
            use_float64_sinusoid(theirs)
            if dtype == torch.float64:
                use_float64_rms_norm(theirs)
            for size in SIZES:
                errors = compare(theirs, ours, size, dtype)
                bad = not all(error <= tolerance for error in errors)  # a NaN fails too
                failed |= bad
                row = " ".join(f"{error:10.2e}" for error in errors)
                print(f"{name:14} {str(dtype)[6:]:8} {size[0]:>3}x{size[1]:<4} {row}{'  FAILED' if bad else ''}")

    worst = max(sinusoid_errors)
    print(f"timestep sinusoid of diffusers, float32, against float64: {worst:.2e}")
    failed |= not worst <= 1e-4
    print("FAILED" if failed else "all rows within tolerance")
    sys.exit(failed)


if __name__ == "__main__":
    main()
