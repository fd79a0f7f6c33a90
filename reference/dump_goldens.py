"""Writes the golden tensors the Rust tests and the kernels are held to: one safetensors file per case.

    python dump_goldens.py [--out tests/golden] [--only NAME]      float64 mathematics, what is committed
    python dump_goldens.py --dtype float32 --out /tmp/float32      the same in float32, to see what float32 costs
"""

import argparse
from pathlib import Path

import torch

import golden_baselines
import golden_ladd
import golden_models
import golden_ops

GROUPS = [golden_ops, golden_models, golden_ladd, golden_baselines]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=Path(__file__).parent.parent / "tests/golden", type=Path)
    parser.add_argument("--only", default="", help="only the operations whose function name contains this")
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    args = parser.parse_args()
    torch.set_num_threads(1)  # a fixed order of summation
    args.out.mkdir(parents=True, exist_ok=True)

    total = 0
    for group in GROUPS:
        for make in group.ALL:
            if args.only not in make.__name__:
                continue
            for case in make(getattr(torch, args.dtype)):
                case.write(args.out)
                size = (args.out / f"{case.name}.safetensors").stat().st_size
                total += size
                print(f"{case.name:32} {len(case.tensors):4} tensors {size / 1024:8.1f} KiB")
    print(f"{total / 2**20:.2f} MiB in {args.out}")


if __name__ == "__main__":
    main()
