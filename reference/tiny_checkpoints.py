"""Makes tiny transformers of the kinds of Stable Diffusion 3 that reference/tiny_pipelines.py leaves out, and what diffusers computes from all.

    python reference/tiny_checkpoints.py tests/golden/pipelines

`sd3/` of tiny_pipelines.py has dual attention and QK norm, as SD3.5-medium. Here come `sd3-medium/` (no QK norm, one head of 64) and
`sd3.5-large/` (QK norm, no dual attention), in f16 and in shards with an index, as save_pretrained writes them; the rest of their pipeline is
that of `sd3/`. `kinds.safetensors` holds for each kind, in float32: inputs and output of SD3Transformer2DModel, and the latents of a guided
four-step draw of the whole pipeline. `originals.json` holds names, shapes and the beginning of the SHA-256 of every tensor of the original
single file, by type, from the conversion of check_diffusers.py.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import load_file, save_file

from check_diffusers import convert
from tiny_pipelines import NEGATIVE, PROMPTS, T5_TOKENS, roughen

SEED = 35
KINDS = {
    "sd3-medium": dict(num_layers=2, attention_head_dim=64, num_attention_heads=1, caption_projection_dim=64, qk_norm=None),
    "sd3.5-large": dict(num_layers=3, attention_head_dim=16, num_attention_heads=2, caption_projection_dim=32, qk_norm="rms_norm"),
}
FOLDERS = {"sd3-medium": "sd3-medium", "sd3.5-medium": "sd3", "sd3.5-large": "sd3.5-large"}
SHARD_BYTES = {"sd3-medium": 250_000, "sd3.5-large": 90_000}


def make(kind):
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, joint_attention_dim=48, pooled_projection_dim=40, pos_embed_max_size=12,
        dual_attention_layers=(), **KINDS[kind],
    )
    roughen(model)
    return model.to(torch.float16)


@torch.no_grad()
def expected(kind, folder, noise):
    pipe = StableDiffusion3Pipeline.from_pretrained(
        folder / "sd3", transformer=SD3Transformer2DModel.from_pretrained(folder / FOLDERS[kind], subfolder="transformer"), dtype=torch.float32
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.transformer.float()
    latent, context, pooled = torch.randn(2, 4, 6, 10), torch.randn(2, 7, 48), torch.randn(2, 40)
    t = torch.tensor([0.25, 0.875])
    velocity = pipe.transformer(latent, context, pooled, 1000 * t, return_dict=False)[0]
    drawn = pipe(
        prompt=PROMPTS[:2], negative_prompt=[NEGATIVE] * 2, latents=noise, num_inference_steps=4, guidance_scale=3.0, height=32, width=32,
        max_sequence_length=T5_TOKENS, output_type="latent",
    ).images
    return {"latent": latent, "context": context, "pooled": pooled, "t": t, "velocity": velocity, "drawn": drawn}


def stored(name, tensor, dtype):
    """The tensor as an export of that type holds it: in FP8 only weights are, the rest is bfloat16."""
    if dtype == torch.float8_e4m3fn and (tensor.dim() < 2 or name == "pos_embed"):
        dtype = torch.bfloat16
    return tensor.to(dtype).contiguous()


def digests(model):
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
    state = {name: tensor.float() for name, tensor in model.state_dict().items()}

    def sha(tensor):
        return hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest()[:16]

    original = convert(state, model.config.num_layers)
    return {
        name: {"shape": list(tensor.shape), **{key: sha(stored(name, tensor, dtype)) for key, dtype in types.items()}}
        for name, tensor in sorted(original.items())
    }


def main(folder):
    torch.manual_seed(SEED)
    for kind in KINDS:
        make(kind).save_pretrained(folder / FOLDERS[kind] / "transformer", max_shard_size=SHARD_BYTES[kind])
    noise = load_file(folder / "expected.safetensors")["noise"]
    tensors, originals = {}, {}
    for kind, place in FOLDERS.items():
        tensors |= {f"{kind}.{name}": tensor.contiguous() for name, tensor in expected(kind, folder, noise).items()}
        originals[kind] = digests(SD3Transformer2DModel.from_pretrained(folder / place, subfolder="transformer"))
    save_file(tensors, folder / "kinds.safetensors")
    rows = lambda kind: ",\n".join(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in kind.items())
    text = ",\n".join(f" {json.dumps(kind)}: {{\n{rows(table)}\n }}" for kind, table in originals.items())
    (folder / "originals.json").write_text("{\n" + text + "\n}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
