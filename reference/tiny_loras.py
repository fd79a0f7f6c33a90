"""Makes the files of adapters that the tests read, for the tiny pipeline of tiny_pipelines.py, as the programs that train adapters save them.

    python reference/tiny_loras.py tests/golden/pipelines/sd3 tests/golden/lora

`diffusers/` and `many/` by StableDiffusion3Pipeline.save_lora_weights (equal ranks, in f32; several ranks and alphas, in f16), `peft/` by PEFT's
save_pretrained (every matrix, rank-stabilised, bf16), `old.safetensors` under the names from before PEFT, `fused.safetensors` under the
original names as sd-scripts writes them, with alpha. `written/` and `written_peft/` are no product of this script but of `ladd-fast lora
convert`; they are loaded here as any others. `expected.safetensors` holds the transformer's float32 output with each of them, and the
gradients of the adapters in `diffusers/`.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

SEED = 31
ATTENTION = ["attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"]
EVERYTHING = [*ATTENTION, "attn2.to_q", "attn2.to_k", "attn2.to_v", "attn2.to_out.0", "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2",
              "norm1.linear", "norm1_context.linear", "norm_out.linear", "proj_out", "context_embedder", "pos_embed.proj",
              "timestep_embedder.linear_1", "timestep_embedder.linear_2", "text_embedder.linear_1", "text_embedder.linear_2"]


def transformer(folder):
    return SD3Transformer2DModel.from_pretrained(folder, subfolder="transformer", torch_dtype=torch.float32).eval()


def fill(model):
    """Random B too: training starts it at zero."""
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * (0.5 / parameter.flatten(1).shape[1]) ** 0.5


def inputs():
    return dict(
        hidden_states=torch.randn(2, 4, 8, 12), timestep=torch.tensor([1000 * 0.8, 1000 * 0.3]), encoder_hidden_states=torch.randn(2, 7, 48),
        pooled_projections=torch.randn(2, 40),
    )


def save_by_diffusers(pipeline, folder, config, dtype):
    """The adapters of `config` on a fresh transformer, saved with their settings as diffusers' training scripts do."""
    network = transformer(pipeline)
    network.add_adapter(config)
    fill(network)
    layers = {name: tensor.to(dtype) for name, tensor in get_peft_model_state_dict(network).items()}
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in network.peft_config["default"].to_dict().items()}
    settings["peft_type"] = "LORA"
    StableDiffusion3Pipeline.save_lora_weights(folder, transformer_lora_layers=layers, transformer_lora_adapter_metadata=settings)


def save_by_peft(pipeline, folder):
    network = get_peft_model(transformer(pipeline), LoraConfig(r=3, lora_alpha=2, use_rslora=True, target_modules=EVERYTHING))
    fill(network)
    network.to(torch.bfloat16).save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)


def old_names(folder, target):
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    save_file({name.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): tensor for name, tensor in tensors.items()}, target)


def fused(target):
    """Queries, keys and values in one, text in one, the final modulation; and the same network for diffusers."""
    rank, alpha, hidden = 4, 2.0, 32
    flat, ours = {}, {}
    for original, theirs, outputs in [
        ("joint_blocks_0_x_block_attn_qkv", ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_k", "transformer_blocks.0.attn.to_v"], 3 * hidden),
        ("joint_blocks_1_context_block_attn_qkv", [f"transformer_blocks.1.attn.add_{x}_proj" for x in "qkv"], 3 * hidden),
        ("final_layer_adaLN_modulation_1", ["norm_out.linear"], 2 * hidden),
    ]:
        down, up = torch.randn(rank, hidden) * 0.3, torch.randn(outputs, rank) * 0.3
        name = f"lora_unet_{original}"
        flat |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
        parts = [up.roll(hidden, 0)] if theirs == ["norm_out.linear"] else up.split(hidden)
        for module, part in zip(theirs, parts):
            ours |= {f"transformer.{module}.lora_A.weight": down.clone(), f"transformer.{module}.lora_B.weight": part * (alpha / rank)}
    save_file(flat, target)
    return ours


@torch.no_grad()
def output(network, given):
    return network(**given, return_dict=False)[0].clone()


def by_diffusers(pipeline, given, loras, scales=None, fuse=None):
    """The transformer of the real pipeline after load_lora_weights."""
    pipe = StableDiffusion3Pipeline.from_pretrained(pipeline, torch_dtype=torch.float32)
    for i, lora in enumerate(loras):
        pipe.load_lora_weights(lora, adapter_name=f"a{i}")
    if scales:
        pipe.set_adapters([f"a{i}" for i in range(len(loras))], scales)
    if fuse is not None:
        pipe.fuse_lora(components=["transformer"], lora_scale=fuse)
    return output(pipe.transformer, given)


def gradients(pipeline, given, lora, upstream):
    network = transformer(pipeline)
    network.load_lora_adapter(str(lora), use_safetensors=True)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_("lora_" in name)
    (network(**given, return_dict=False)[0] * upstream).sum().backward()
    grads = {name: p.grad for name, p in network.named_parameters() if "lora_" in name}
    return {f"grad.{name.replace('.default_0', '')}": grad for name, grad in grads.items()}


def main(pipeline, folder):
    torch.manual_seed(SEED)
    save_by_diffusers(pipeline, folder / "diffusers", LoraConfig(r=4, lora_alpha=6, target_modules=[*ATTENTION, "norm_out.linear"]), torch.float32)
    many = LoraConfig(
        r=4, lora_alpha=6, target_modules=[*ATTENTION, "attn2.to_q", "ff.net.2", "norm1_context.linear"], rank_pattern={"attn.to_q": 2, "ff.net.2": 5},
        alpha_pattern={"attn.to_k": 1, "norm1_context.linear": 12},
    )
    save_by_diffusers(pipeline, folder / "many", many, torch.float16)
    save_by_peft(pipeline, folder / "peft")
    old_names(folder / "diffusers", folder / "old.safetensors")
    equivalent = fused(folder / "fused.safetensors")

    given, upstream = inputs(), torch.randn(2, 4, 8, 12)
    out = {f"in.{name}": tensor for name, tensor in given.items()} | {"in.upstream": upstream}
    first, second = folder / "diffusers", folder / "many"
    out["base"] = output(transformer(pipeline), given)
    out["diffusers"] = by_diffusers(pipeline, given, [first])
    out["old"] = by_diffusers(pipeline, given, [folder / "old.safetensors"])
    out["many"] = by_diffusers(pipeline, given, [second])
    out["many.fused"] = by_diffusers(pipeline, given, [second], fuse=0.7)
    out["both"] = by_diffusers(pipeline, given, [first, second], scales=[0.7, -0.4])
    out["fused"] = by_diffusers(pipeline, given, [equivalent])
    out["peft"] = output(PeftModel.from_pretrained(transformer(pipeline), folder / "peft").float(), given)
    out |= gradients(pipeline, given, first, upstream)
    if (folder / "written").is_dir():
        out["written"] = by_diffusers(pipeline, given, [folder / "written"])
        out["written_peft"] = output(PeftModel.from_pretrained(transformer(pipeline), folder / "written_peft").float(), given)
        print("written by ladd-fast, relative distance to the same adapters before:")
        for name in ("written", "written_peft"):
            print(f"  {name}: {((out[name] - out['many']).norm() / out['many'].norm()).item():.1e}")
    save_file({name: tensor.contiguous() for name, tensor in out.items()}, folder / "expected.safetensors")
    print(json.dumps({name: round(((out[name] - out["base"]).norm() / out["base"].norm()).item(), 4) for name in out if out[name].shape == out["base"].shape and "." not in name}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
