"""MMDiT, the transformer of Stable Diffusion 3 and 3.5, with the parameter names of the original single-file checkpoints.

velocity = MMDiT(x_t, t, context, pooled), with x_t = (1 - t) x0 + t eps and velocity = eps - x0 (arXiv 2403.03206).
Written to be read beside the paper: no dropout, no mask, no fused projections beyond qkv.  Taps are the image
residual stream after a whole block; `features` stops after the last block asked for, as LADD's teacher does.
Shapes: B batch, N image tokens, L text tokens, h hidden, H heads, D head_dim.
"""

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import nn

EPS = 1e-6
SINUSOID = 256


@dataclass(frozen=True)
class Config:
    depth: int
    heads: int
    head_dim: int
    in_channels: int
    patch: int
    context_dim: int
    pooled_dim: int
    pos_embed_max: int  # G: the stored positional grid is G x G
    qk_norm: bool = False
    dual_attention_blocks: int = 0  # how many leading blocks have the image-only attn2
    conditioning_channels: int = 0  # read beside the noisy latent: a source, or a masked latent and its mask

    @property
    def hidden(self):
        return self.heads * self.head_dim

    def described(self):
        """As a dict; a network without conditioning does not mention it."""
        return {key: value for key, value in asdict(self).items() if key != "conditioning_channels" or value}


def sinusoid(t):
    """[B] -> [B, 256]: cosines, then sines, of 1000 t at 128 frequencies from 1 down to almost 1/10000."""
    half = SINUSOID // 2
    frequency = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64, device=t.device) / half)
    angle = 1000 * t.double()[:, None] * frequency  # float64: at 1000 rad float32 has no fifth digit
    return torch.cat([angle.cos(), angle.sin()], dim=-1)


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=EPS)


def modulate(x, shift, scale):
    """LayerNorm without affine, then scale and shift per batch item.  x [B, N, h], shift and scale [B, h]."""
    return torch.addcmul(shift[:, None], layer_norm(x), 1 + scale[:, None])


class RMSNorm(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight, EPS)  # x / sqrt(mean x^2 + EPS) * weight


class SelfAttention(nn.Module):
    """One stream's projections; the attention itself runs over one or two streams, see `attend`."""

    def __init__(self, config, pre_only=False):
        super().__init__()
        h = config.hidden
        self.heads = config.heads
        self.qkv = nn.Linear(h, 3 * h)
        self.ln_q = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.ln_k = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        if not pre_only:
            self.proj = nn.Linear(h, h)

    def split(self, x):
        """[B, N, h] -> q, k, v, each [B, H, N, D]."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [B, N, 3, H, D]
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return self.ln_q(q), self.ln_k(k), v


def attend(q, k, v):
    """softmax(q k^T / sqrt(D)) v, heads joined: [B, H, S, D] -> [B, S, H D]."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    def __init__(self, h):
        super().__init__()
        self.fc1 = nn.Linear(h, 4 * h)
        self.fc2 = nn.Linear(4 * h, h)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class StreamBlock(nn.Module):
    """The image half or the text half of a joint block."""

    def __init__(self, config, dual=False, pre_only=False):
        super().__init__()
        h = config.hidden
        self.chunks = 2 if pre_only else 9 if dual else 6
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(h, self.chunks * h))
        self.attn = SelfAttention(config, pre_only)
        if dual:
            self.attn2 = SelfAttention(config)
        if not pre_only:
            self.mlp = Mlp(h)

    def modulation(self, conditioning):
        return self.adaLN_modulation(conditioning).chunk(self.chunks, dim=-1)  # each [B, h]


class JointBlock(nn.Module):
    def __init__(self, config, dual, last):
        super().__init__()
        self.dual, self.last = dual, last
        self.context_block = StreamBlock(config, pre_only=last)
        self.x_block = StreamBlock(config, dual=dual)

    def forward(self, x, context, conditioning):
        """x [B, N, h], context [B, L, h] -> the same; the last block returns no context."""
        image, text = self.x_block, self.context_block
        n = x.shape[1]
        m = image.modulation(conditioning)
        c = text.modulation(conditioning)

        image_qkv = image.attn.split(modulate(x, m[0], m[1]))
        text_qkv = text.attn.split(modulate(context, c[0], c[1]))
        joint = attend(*(torch.cat(pair, dim=2) for pair in zip(image_qkv, text_qkv)))  # [B, N + L, h]

        attention = m[2][:, None] * image.attn.proj(joint[:, :n])
        if self.dual:
            second = attend(*image.attn2.split(modulate(x, m[6], m[7])))
            attention = attention + m[8][:, None] * image.attn2.proj(second)
        x = x + attention
        x = x + m[5][:, None] * image.mlp(modulate(x, m[3], m[4]))
        if self.last:
            return x, None

        context = context + c[2][:, None] * text.attn.proj(joint[:, n:])
        context = context + c[5][:, None] * text.mlp(modulate(context, c[3], c[4]))
        return x, context


class Embedder(nn.Module):
    """Linear, SiLU, Linear, under the names mlp.0 and mlp.2."""

    def __init__(self, inputs, h):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(inputs, h), nn.SiLU(), nn.Linear(h, h))

    def forward(self, x):
        return self.mlp(x)


class PatchEmbed(nn.Module):
    """W x + b, or W [x; c] + b as W_x x + W_c c + b: a convolution of [x; c] is the sum of one of x and one of c."""

    def __init__(self, config):
        super().__init__()
        self.proj = nn.Conv2d(config.in_channels, config.hidden, config.patch, stride=config.patch)
        if config.conditioning_channels:
            self.conditioning = nn.Conv2d(config.conditioning_channels, config.hidden, config.patch, stride=config.patch, bias=False)

    def forward(self, latent, conditioning=None):
        tokens = self.proj(latent)
        if conditioning is not None:
            tokens = tokens + self.conditioning(conditioning)
        return tokens.flatten(2).transpose(1, 2)  # [B, N, h], rows of the grid first


class FinalLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        h = config.hidden
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(h, 2 * h))
        self.linear = nn.Linear(h, config.patch**2 * config.in_channels)

    def forward(self, x, conditioning):
        shift, scale = self.adaLN_modulation(conditioning).chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))  # [B, N, p p C]


def crop(pos_embed, grid_h, grid_w):
    """The centre of a stored [1, G G, h] grid, [1, grid_h grid_w, h]."""
    size = math.isqrt(pos_embed.shape[1])
    top, left = (size - grid_h) // 2, (size - grid_w) // 2
    square = pos_embed.unflatten(1, (size, size))
    return square[:, top : top + grid_h, left : left + grid_w].flatten(1, 2)


def patchify(latent, patch):
    """[B, C, Hl, Wl] -> [B, N, C p q]: the row a patch convolution multiplies, channel slowest."""
    b, c, hl, wl = latent.shape
    tiles = latent.reshape(b, c, hl // patch, patch, wl // patch, patch)
    return tiles.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * patch * patch)


def unpatchify(tokens, patch, grid_h, grid_w):
    """[B, N, p q C], channel fastest -> [B, C, Hl, Wl]."""
    tiles = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (grid_h, grid_w))  # [B, gh, gw, p, q, C]
    return tiles.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, grid_h * patch, grid_w * patch)


class MMDiT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        h = config.hidden
        self.x_embedder = PatchEmbed(config)
        self.t_embedder = Embedder(SINUSOID, h)
        self.y_embedder = Embedder(config.pooled_dim, h)
        self.context_embedder = nn.Linear(config.context_dim, h)
        self.register_buffer("pos_embed", torch.zeros(1, config.pos_embed_max**2, h))
        self.joint_blocks = nn.ModuleList(
            JointBlock(config, dual=i < config.dual_attention_blocks, last=i == config.depth - 1) for i in range(config.depth)
        )
        self.final_layer = FinalLayer(config)

    def grid(self, latent):
        return latent.shape[2] // self.config.patch, latent.shape[3] // self.config.patch

    def run_blocks(self, latent, t, context, pooled, taps, depth, conditioning):
        """The first `depth` blocks: image tokens, conditioning before its SiLU, and the tapped features."""
        x = self.x_embedder(latent, conditioning) + crop(self.pos_embed, *self.grid(latent))  # [B, N, h]
        conditioning = self.t_embedder(sinusoid(t).to(x.dtype)) + self.y_embedder(pooled)  # [B, h]
        context = self.context_embedder(context)  # [B, L, h]
        tapped = {}
        for i, block in enumerate(self.joint_blocks[:depth]):
            x, context = block(x, context, conditioning)
            tapped[i] = x
        return x, conditioning, [tapped[i] for i in taps]

    def features(self, latent, t, context, pooled, taps, conditioning=None):
        """Image tokens after the blocks in `taps`, each [B, N, h]; nothing is computed behind the last of them."""
        _, _, tapped = self.run_blocks(latent, t, context, pooled, taps, max(taps) + 1, conditioning)
        return tapped

    def forward(self, latent, t, context, pooled, taps=(), conditioning=None):
        """latent [B, C, Hl, Wl], t [B], context [B, L, Cd], pooled [B, P], conditioning [B, K, Hl, Wl] where the network
        reads one -> velocity, or (velocity, tapped features)."""
        x, conditioning, tapped = self.run_blocks(latent, t, context, pooled, taps, len(self.joint_blocks), conditioning)
        velocity = unpatchify(self.final_layer(x, conditioning), self.config.patch, *self.grid(latent))
        return (velocity, tapped) if taps else velocity
