"""What bf16 costs PyTorch: the relative L2 error of golden results behind the heads' leaky ReLUs when PyTorch computes in bfloat16.

    python bf16_errors.py                    writes tests/golden/bf16_errors.json

An input of a leaky ReLU that is rounded across zero changes its slope fivefold, so how far a gradient is off depends on the case,
not on the kernels.  The tests hold bf16 backends to a multiple of these errors.  A sampled tensor is compared at its samples.
"""

import json
from pathlib import Path

import numpy as np
import torch

import golden_baselines
import golden_ladd
import golden_models

GOLDEN = Path(__file__).parent.parent / "tests/golden"
PASSES = [golden_models.discriminator_heads, golden_ladd.ladd_steps, golden_baselines.baseline_steps]


def relative_error(got, expected):
    difference = np.linalg.norm(got.astype(np.float64) - expected.astype(np.float64))
    scale = np.linalg.norm(expected.astype(np.float64))
    return float(f"{difference / scale if scale > 0 else difference:.3g}")


def main():
    torch.set_num_threads(1)  # a fixed order of summation
    errors = {}
    for make in PASSES:
        for exact, rounded in zip(make(torch.float64), make(torch.bfloat16), strict=True):
            results = [name for name in exact.tensors if not name.startswith("in.") and exact.tensors[name].dtype.kind == "f"]
            errors[exact.name] = {name: relative_error(rounded.tensors[name], exact.tensors[name]) for name in sorted(results)}
    path = GOLDEN / "bf16_errors.json"
    path.write_text(json.dumps(errors, indent=0, sort_keys=True) + "\n")
    worst = max((error, case, name) for case, all_of in errors.items() for name, error in all_of.items())
    print(f"{sum(map(len, errors.values()))} results of {len(errors)} cases, worst {worst}, in {path}")


if __name__ == "__main__":
    main()
