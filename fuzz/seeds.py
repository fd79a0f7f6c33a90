"""Writes the inputs that fuzzing begins with, valid ones, into corpus/TARGET/: made from the project's goldens and presets.

How an input becomes files is said in src/lib.rs: parts with a line between them, safetensors files as their headers alone.
"""

import gzip
import json
import struct
from pathlib import Path

HERE = Path(__file__).parent
PROJECT = HERE.parent
PIPELINE = PROJECT / "tests/golden/pipelines/sd3"


def seed(target, *inputs):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for i, parts in enumerate(inputs):
        parts = [part.encode() if isinstance(part, str) else part for part in parts]
        (folder / f"seed-{i}").write_bytes(b"\n@@@@\n".join(parts))


def of(name):
    return (PIPELINE / name).read_bytes()


def header(file):
    """The JSON before a safetensors file's values."""
    (length,) = struct.unpack("<Q", file[:8])
    return file[8 : 8 + length].strip()


def head(name):
    return header(of(name))


def whole(head):
    """A safetensors file of this header, its values zero."""
    ends = [entry["data_offsets"][1] for name, entry in json.loads(head).items() if name != "__metadata__"]
    return struct.pack("<Q", len(head)) + head + bytes(max(ends))


def tensors(**shapes):
    """A header of f32 tensors."""
    at, entries = 0, {}
    for name, (dtype, shape) in shapes.items():
        size = {"F16": 2, "F32": 4, "U32": 4, "I64": 8}[dtype]
        for side in shape:
            size *= side
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return json.dumps(entries).encode()


def networks():
    teacher = header((PROJECT / "src/data/demo/teacher.safetensors").read_bytes())
    seed("checkpoint", [teacher])
    seed("original", [teacher])
    transformer = head("transformer/diffusion_pytorch_model.safetensors")
    shard = "diffusion_pytorch_model-00001-of-00002.safetensors"
    places = {name: shard for name in json.loads(transformer) if name != "__metadata__"}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    seed("diffusers", [of("transformer/config.json"), index, transformer, b"{}"])
    small = tensors(f=("F16", [2, 3]), i=("I64", [1]))
    seed("safetensors", [whole(small)])


def encoders():
    seed("autoencoder", [of("vae/config.json"), head("vae/diffusion_pytorch_model.safetensors")])
    prompt = "a lighthouse in a störm, 灯台"
    lists = [of(f"tokenizer_2/{name}") for name in ("tokenizer_config.json", "vocab.json", "merges.txt")]
    one_file = [of(f"tokenizer/{name}") for name in ("tokenizer_config.json", "tokenizer.json")]
    seed("tokenizer", [prompt, *lists], [prompt, one_file[0], b"", b"", one_file[1]])
    clips = [f(f"{folder}/{name}") for folder in ("text_encoder", "text_encoder_2") for f, name in ((of, "config.json"), (head, "model.safetensors"))]
    seed("encoders", clips)


def settings():
    presets = [path.read_text() for path in sorted((PROJECT / "src/config/presets").glob("*.toml"))]
    seed("config", *([text, "distill.steps=100\nladd.student_t.kind=uniform\nsample.steps=1,2,4"] for text in presets))
    metrics = json.dumps({"kind": "phase", "name": "synthesis", "seconds": 1.5, "step": 0}) + "\n"
    state = json.dumps({"version": 1, "step": 1, "seconds": 2.5, "settings": "a = 1"})
    seed("run_folder", ['preset = "demo"\n' + presets[0], metrics, state])


def data():
    shard = tensors(latents=("F32", [2, 4, 2, 2]), prompt_index=("U32", [2]), seeds=("I64", [2]))
    model = dict(depth=2, heads=2, head_dim=8, in_channels=4, patch=1, context_dim=16, pooled_dim=16, pos_embed_max=8)
    model |= dict(qk_norm=False, dual_attention_blocks=0)
    codec = dict(kind="dct", block=2, channels=1, mean=[0.0] * 4, std=[1.0] * 4)
    pipeline = dict(model=model, codec=codec, text=dict(kind="words", dim=16, tokens=4), shift=1.0, role="teacher")
    made = dict(teacher="00", pipeline=pipeline, guidance=2.0, sampler="euler", sampler_steps=4, seed=1, dtype="f32", total=2)
    made["prompts"] = ["a", "b"]
    file = dict(file="shard-00000.safetensors", sha256="00", bytes=len(whole(shard)), count=2, shape=[4, 2, 2])
    seed("manifest", [json.dumps(dict(version=1, created_by="seeds", settings=made, shards=[file])), shard])

    def idx(*sizes):
        count = 1
        for size in sizes:
            count *= size
        content = bytes([0, 0, 8, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + bytes(count)
        return gzip.compress(content, 0)  # not compressed: mutations reach what is in it

    seed("fashion_mnist", [idx(2, 28, 28), idx(2)])


if __name__ == "__main__":
    networks()
    encoders()
    settings()
    data()
