"""Checks what `ladd-fast export` writes: diffusers loads it bit for bit, and draws with it inside its own StableDiffusion3Pipeline.

    python reference/check_exports.py target/release/ladd-fast [STUDENT...]

For each kind of Stable Diffusion 3 (the tiny ones of tests/golden/pipelines), each type of numbers and each format: exports, loads
with SD3Transformer2DModel.from_pretrained or from_single_file, compares every tensor, then draws four steps with FlowMatchEulerDiscreteScheduler
as docs/sd3.md says students are drawn with. In float32 the guided draw must be that of kinds.safetensors. STUDENT: folders of students that
`distill` wrote, to be drawn with as well. Prints a table; exit code 1 if anything fails.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
from diffusers.utils import logging
from safetensors.torch import load_file

from tiny_checkpoints import FOLDERS
from tiny_pipelines import NEGATIVE, PROMPTS, T5_TOKENS

GOLDEN = Path(__file__).parent.parent / "tests/golden/pipelines"
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16, "f8": torch.float8_e4m3fn}


def exact(name, tensor, dtype):
    """What a tensor is after it was stored in a type: in FP8 only weights are, the rest is bfloat16."""
    if dtype == torch.float8_e4m3fn and (tensor.dim() < 2 or name == "pos_embed.pos_embed"):
        dtype = torch.bfloat16
    return tensor.to(dtype).float()


def export(binary, source, form, dtype, scratch):
    out = scratch / f"{form}-{dtype}{'' if form == 'diffusers' else '.safetensors'}"
    shards = ["--shard-size", "100KB"] if form == "diffusers" else []
    subprocess.run([binary, "export", source, "--format", form, "--dtype", dtype, "--out", out, *shards], check=True, capture_output=True)
    return out


def load(path, form, place):
    if form == "diffusers":
        return SD3Transformer2DModel.from_pretrained(path, subfolder="transformer", dtype=torch.float32)
    return SD3Transformer2DModel.from_single_file(str(path), config=str(GOLDEN / place), subfolder="transformer", torch_dtype=torch.float32)


def pipeline(transformer):
    pipe = StableDiffusion3Pipeline.from_pretrained(GOLDEN / "sd3", transformer=transformer.float(), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def student_draws(transformer):
    """Pictures of four unguided steps are there and differ between prompts."""
    pipe = pipeline(transformer)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0, stochastic_sampling=True)
    draw = dict(sigmas=[1.0, 0.75, 0.5, 0.25], guidance_scale=0.0, height=32, width=32, max_sequence_length=T5_TOKENS, output_type="pt")
    images = pipe(PROMPTS[:2], generator=torch.Generator().manual_seed(1), **draw).images
    return images.shape == (2, 3, 32, 32) and bool(images.isfinite().all()) and bool((images[0] != images[1]).any())


@torch.no_grad()
def guided_error(transformer, kind):
    noise, expected = load_file(GOLDEN / "expected.safetensors")["noise"], load_file(GOLDEN / "kinds.safetensors")[f"{kind}.drawn"]
    drawn = pipeline(transformer)(
        prompt=PROMPTS[:2], negative_prompt=[NEGATIVE] * 2, latents=noise, num_inference_steps=4, guidance_scale=3.0, height=32, width=32,
        max_sequence_length=T5_TOKENS, output_type="latent",
    ).images
    return ((drawn - expected).norm() / expected.norm()).item()


def main(binary, students):
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    failed = False
    print(f"{'kind':14} {'format':10} {'type':5} {'tensors':>8} {'equal':>6} {'guided':>9} {'student':>8}")
    for kind, place in FOLDERS.items():
        original = SD3Transformer2DModel.from_pretrained(GOLDEN / place, subfolder="transformer").float().state_dict()
        for form in ("diffusers", "original"):
            for dtype, torch_dtype in TYPES.items():
                with tempfile.TemporaryDirectory() as scratch:
                    model = load(export(binary, GOLDEN / place, form, dtype, Path(scratch)), form, place)
                    found = model.float().state_dict()
                    equal = found.keys() == original.keys() and all(
                        torch.equal(found[name], exact(name, tensor, torch_dtype)) for name, tensor in original.items()
                    )
                    error = guided_error(model, kind) if dtype == "f32" else float("nan")
                    drawn = student_draws(model)
                bad = not (equal and drawn) or (dtype == "f32" and not error <= 1e-6)
                failed |= bad
                row = f"{kind:14} {form:10} {dtype:5} {len(found):8} {str(equal):>6} {error:9.1e} {str(drawn):>8}"
                print(row + ("  FAILED" if bad else ""))
    for student in students:
        drawn = student_draws(SD3Transformer2DModel.from_pretrained(student, subfolder="transformer"))
        failed |= not drawn
        print(f"{student}: {'drawn with' if drawn else 'FAILED'}")
    sys.exit(failed)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
