"""Discriminator heads: one small convolutional network per tapped block, on the token grid of the frozen teacher.

Each head scores every token position from LayerNorm of its block's features, conditioned on the renoising time and the
pooled text by a projection term: logit = w . lrelu(h3) + b + mean_c h3 c(t_hat, pooled).  Convolutions are
written channel last, weights (cout, ky, kx, cin), as the kernels store them.  Shapes: w head width, N = gh gw.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mmdit import SINUSOID, layer_norm, sinusoid

SLOPE = 0.2


def lrelu(x):
    return F.leaky_relu(x, SLOPE)


def conv3x3(x, weight, bias):
    """Zero-padded 3x3 convolution.  x [B, gh, gw, cin], weight [cout, 3, 3, cin] -> [B, gh, gw, cout]."""
    y = F.conv2d(x.permute(0, 3, 1, 2), weight.permute(0, 3, 1, 2), bias, padding=1)
    return y.permute(0, 2, 3, 1)


def head_logits(h3, weight, bias, projection):
    """h3 [B, N, w], weight [1, w], bias [1], projection [B, w] -> logits [B, N]."""
    plain = F.linear(lrelu(h3), weight, bias).squeeze(-1)
    return plain + (h3 * projection[:, None]).mean(-1)


class Conv3x3(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width, 3, 3, width))
        self.bias = nn.Parameter(torch.zeros(width))
        nn.init.kaiming_uniform_(self.weight.flatten(1), a=5**0.5)

    def forward(self, x):
        return conv3x3(x, self.weight, self.bias)


class Head(nn.Module):
    def __init__(self, hidden, pooled_dim, width):
        super().__init__()
        self.conv_in = nn.Linear(hidden, width)
        self.conv_mid = Conv3x3(width)
        self.conv_out = nn.Linear(width, width)
        self.cond = nn.Sequential(nn.Linear(SINUSOID + pooled_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.logit = nn.Linear(width, 1)

    def forward(self, features, condition, grid):
        """features [B, N, h], condition [B, 256 + P], grid (gh, gw) -> logits [B, N]."""
        h1 = lrelu(self.conv_in(layer_norm(features))).unflatten(1, grid)  # [B, gh, gw, w]
        h2 = h1 + lrelu(self.conv_mid(h1))
        h3 = self.conv_out(h2).flatten(1, 2)  # [B, N, w]
        return head_logits(h3, self.logit.weight, self.logit.bias, self.cond(condition))


class Heads(nn.Module):
    """One head per tap; parameter names heads.{i}.*, i counting the taps."""

    def __init__(self, taps, hidden, pooled_dim, width):
        super().__init__()
        self.heads = nn.ModuleList(Head(hidden, pooled_dim, width) for _ in range(taps))

    def forward(self, features, t_hat, pooled, grid):
        """features: one [B, N, h] per tap; t_hat [B]; pooled [B, P] -> logits [heads, B, N]."""
        condition = torch.cat([sinusoid(t_hat).to(pooled.dtype), pooled], dim=-1)
        return torch.stack([head(f, condition, grid) for head, f in zip(self.heads, features)])
