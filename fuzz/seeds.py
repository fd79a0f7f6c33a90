"""Writes the inputs that fuzzing begins with, valid ones, into corpus/TARGET/: made from the project's goldens and presets.

How an input becomes files is said in src/lib.rs: parts with a line between them, safetensors files as their headers alone.
"""

import gzip
import io
import json
import struct
import tarfile
import zlib
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


def adapters():
    lora = PROJECT / "tests/golden/lora"
    peft = [(lora / "peft/adapter_config.json").read_bytes(), header((lora / "peft/adapter_model.safetensors").read_bytes())]
    others = [header((lora / name).read_bytes()) for name in ("diffusers/pytorch_lora_weights.safetensors", "old.safetensors", "fused.safetensors")]
    seed("lora", peft, *([b"", other] for other in others))


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


def parquet():
    """The smallest table with a column `prompt`; none where pyarrow is not installed."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        return []
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.table({"prompt": ["a bag", "ankle boot"], "n": [1, 2]}), buffer, compression="none")
    return [[b"p" + buffer.getvalue()]]


def pictures():
    seed("prompts", ["ta bag\nankle boot\n"], ['j{"prompt": "a bag"}\n{"prompt": "ankle boot", "n": 1}\n'], *parquet())
    listed = '{"file_name": "a.png", "text": "a bag"}\n{"file_name": "b/c.jpg", "text": ["ankle boot", "shoe"]}\n'
    table = 'cfile_name,text\na.png,"a bag, red"\nb.png,boot\n'
    seed("captions", ["l" + listed], [table], ['j{"caption": ["a", "b"]}'], ["na.png\na.txt\nb/c.jpg\nb/c.json"], ["ta bag"])

    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, content in (("a.txt", b"a bag"), ("a.png", PNG), ("long/" * 30 + "b.txt", b"boot")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    seed("archive", [archive.getvalue()])
    samples = [path.read_bytes() for path in sorted((HERE / "pictures").glob("*"))]
    seed("picture", [PNG], *([sample] for sample in samples))

    icon = {"body": '<g fill="none"><path fill="#f92f60" d="M15 6a9 9 0 1 1 2 20z"/><circle cx="9" cy="9" r="3"/></g>'}
    seed("icons", [json.dumps({"prefix": "x", "icons": {"red-apple": icon}, "width": 32, "height": 32, "categories": {"Food": ["red-apple"]}})])
    seed("study", [(PROJECT / "src/study/demo.toml").read_bytes()])


def png():
    """A picture of 2x2 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    rows = zlib.compress(b"\0\x10\x20\x30\x40\x50\x60" * 2)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


PNG = png()


if __name__ == "__main__":
    networks()
    encoders()
    adapters()
    settings()
    data()
    pictures()
