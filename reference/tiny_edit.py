"""Makes the tiny transformers for editing and inpainting that the tests read: diffusers' SD3Transformer2DModel, widened.

    python reference/tiny_edit.py tests/golden/pipelines

`edit/transformer` reads twice the channels that it predicts, `inpaint/transformer` one more: `in_channels` counts the conditioning,
`out_channels` does not. The networks' random weights are saved as diffusers saves them. `widened.safetensors` holds inputs and what diffusers
computes from them in float32.
"""

import sys
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import save_file

from tiny_pipelines import roughen

SEED, CHANNELS = 21, 4


@torch.no_grad()
def main(folder):
    torch.manual_seed(SEED)
    tensors = {
        "latent": torch.randn(2, CHANNELS, 6, 4), "context": torch.randn(2, 3, 12), "pooled": torch.randn(2, 10),
        "t": torch.tensor([0.25, 0.875]), "conditioning": torch.randn(2, CHANNELS + 1, 6, 4),
    }  # fmt: skip
    for name, conditioning in (("edit", CHANNELS), ("inpaint", CHANNELS + 1)):
        model = SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=CHANNELS + conditioning, out_channels=CHANNELS, num_layers=1, attention_head_dim=16,
            num_attention_heads=1, joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=10, pos_embed_max_size=6,
            qk_norm="rms_norm",
        ).eval()  # fmt: skip
        roughen(model)
        model.save_pretrained(folder / name / "transformer", safe_serialization=True)
        latent = torch.cat([tensors["latent"], tensors["conditioning"][:, :conditioning]], dim=1)
        tensors[name] = model(latent, tensors["context"], tensors["pooled"], 1000 * tensors["t"], return_dict=False)[0].contiguous()
    save_file(tensors, folder / "widened.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
