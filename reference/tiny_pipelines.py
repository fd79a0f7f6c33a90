"""Makes the tiny Stable Diffusion 3 pipelines the tests read: every part of the real one, with random weights, as diffusers and transformers save it.

    python reference/tiny_pipelines.py tests/golden/pipelines

`sd3/` is a whole StableDiffusion3Pipeline in f16 (transformer, both CLIPs, T5, tokenizers, VAE, scheduler). `expected.safetensors`
holds what these libraries compute from it in float32: token ids, context and pooled embeddings with T5 and without, the VAE's moments
and pictures, and the latents and pixels of a four-step guided draw. The metadata of that file names the prompts.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, T5Config, T5EncoderModel, T5Tokenizer

SEED = 20
PROMPTS = ["A red-hot   apple's café, 12 €!", "", "the the the " * 60, "日本 <|endoftext|> naïve\tQuiz"]
NEGATIVE = "blurry"
T5_TOKENS = 21
START, END = "<|startoftext|>", "<|endoftext|>"


def byte_alphabet():
    """The printable stand-ins of all bytes, in the order of byte-level BPE."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    shifted = [byte for byte in range(256) if byte not in kept]
    return [chr(byte) for byte in kept] + [chr(256 + i) for i in range(len(shifted))]


def clip_tokenizer(pad):
    alphabet = byte_alphabet()
    merges = [("t", "h"), ("th", "e</w>"), ("a", "p"), ("ap", "p"), ("l", "e</w>"), ("app", "le</w>"), ("r", "e"), ("c", "a"), ("Ã", "©</w>")]
    tokens = alphabet + [letter + "</w>" for letter in alphabet] + ["".join(pair) for pair in merges] + [START, END]
    return CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=merges, pad_token=pad, model_max_length=77)


def t5_tokenizer():
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁the", -1.0), ("▁A", -2.5), ("app", -3.0), ("le", -3.0), ("red", -3.5)]
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,.!'-é"
    return T5Tokenizer(vocab=pieces + [(letter, -6.0 - 0.01 * i) for i, letter in enumerate(letters)], extra_ids=0, model_max_length=512)


def clip(tokenizer, hidden, heads, activation, projection):
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=hidden, intermediate_size=3 * hidden, num_hidden_layers=3, num_attention_heads=heads,
        max_position_embeddings=77, hidden_act=activation, projection_dim=projection, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, initializer_factor=8.0,
    )
    return CLIPTextModelWithProjection(config)


def pipeline():
    tokenizers = clip_tokenizer(END), clip_tokenizer("!"), t5_tokenizer()
    t5 = T5Config(
        vocab_size=len(tokenizers[2]), d_model=48, d_kv=8, d_ff=80, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu",
        relative_attention_num_buckets=8, relative_attention_max_distance=12, tie_word_embeddings=False,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16), down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1, latent_channels=4, norm_num_groups=8, use_quant_conv=False, use_post_quant_conv=False, scaling_factor=1.5305,
        shift_factor=0.0609, sample_size=32, force_upcast=False,
    )
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=48, caption_projection_dim=32, pooled_projection_dim=40, pos_embed_max_size=12, qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=clip(tokenizers[0], 16, 2, "quick_gelu", 16), tokenizer=tokenizers[0],
        text_encoder_2=clip(tokenizers[1], 24, 3, "gelu", 24), tokenizer_2=tokenizers[1],
        text_encoder_3=T5EncoderModel(t5), tokenizer_3=tokenizers[2],
    )


def roughen(module):
    """Random biases and norms too: libraries start them at zero and one, which hides mistakes."""
    for parameter in module.parameters():
        if parameter.dim() < 2:
            parameter.data += 0.2 * torch.randn_like(parameter)


@torch.no_grad()
def expected(pipe):
    out = {}
    for name in ("tokenizer", "tokenizer_2"):
        out[f"{name}.ids"] = getattr(pipe, name)(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
    long = dict(padding="max_length", max_length=T5_TOKENS, truncation=True, return_tensors="pt")
    out["tokenizer_3.ids"] = pipe.tokenizer_3(PROMPTS, **long).input_ids
    text = dict(prompt_2=None, prompt_3=None, device="cpu", do_classifier_free_guidance=False, max_sequence_length=T5_TOKENS)
    out["context"], _, out["pooled"], _ = pipe.encode_prompt(PROMPTS, **text)
    t5, pipe.text_encoder_3 = pipe.text_encoder_3, None
    out["context_without_t5"] = pipe.encode_prompt(PROMPTS, **text)[0]
    pipe.text_encoder_3 = t5

    image = torch.rand(2, 3, 24, 40) * 2 - 1
    moments = pipe.vae.encode(image).latent_dist
    out |= {"image": image, "mean": moments.mean, "std": moments.std}
    latent = torch.randn(2, 4, 6, 10)
    out |= {"latent": latent, "decoded": pipe.vae.decode(latent).sample}
    pipe.vae.enable_tiling()  # along one axis: where four tiles meet, diffusers blends one of them twice
    for name, height, width in [("tall", 48, 24), ("wide", 24, 48)]:
        image, latent = torch.rand(1, 3, height, width) * 2 - 1, torch.randn(1, 4, height // 4, width // 4)
        out |= {f"{name}.image": image, f"{name}.mean": pipe.vae.encode(image).latent_dist.mean}
        out |= {f"{name}.latent": latent, f"{name}.decoded": pipe.vae.decode(latent).sample}
    pipe.vae.disable_tiling()

    noise = torch.randn(2, 4, 8, 8)
    draw = dict(
        prompt=PROMPTS[:2], negative_prompt=[NEGATIVE] * 2, latents=noise, num_inference_steps=4, guidance_scale=3.0, height=32, width=32,
        max_sequence_length=T5_TOKENS,
    )
    out |= {"noise": noise, "drawn": pipe(**draw, output_type="latent").images, "pixels": pipe(**draw, output_type="pt").images}
    return out


def as_published(folder, tokenizer):
    """Stability's folders hold CLIP's tokenizers as two lists, the form from before tokenizer.json."""
    model = json.loads((folder / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    (folder / "special_tokens_map.json").write_text(json.dumps({"bos_token": {"content": START}, "eos_token": END, "pad_token": tokenizer.pad_token}))


def main(folder):
    torch.manual_seed(SEED)
    pipe = pipeline()
    for part in (pipe.transformer, pipe.vae, pipe.text_encoder, pipe.text_encoder_2, pipe.text_encoder_3):
        roughen(part)
        part.eval()
    pipe.to(torch.float16)
    pipe.save_pretrained(folder / "sd3", safe_serialization=True)
    as_published(folder / "sd3" / "tokenizer_2", pipe.tokenizer_2)
    pipe = StableDiffusion3Pipeline.from_pretrained(folder / "sd3", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    about = {"prompts": json.dumps(PROMPTS), "negative": NEGATIVE, "t5_tokens": str(T5_TOKENS)}
    tensors = {name: tensor.contiguous() for name, tensor in expected(pipe).items()}
    save_file(tensors, folder / "expected.safetensors", metadata=about)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
