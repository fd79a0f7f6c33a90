"""Compares two folders of golden cases tensor by tensor: python compare_goldens.py EXPECTED FOUND [--tolerance 1e-6].

The error of a tensor is |found - expected| / |expected| in L2 (absolute where expected is zero); integers must be equal.
Missing or extra files, tensors, and differing metadata are failures.  Exit code 1 if anything failed.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open


def read(path):
    with safe_open(path, "numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["case"])


def without_norms(case):
    """The metadata but for the norms of sampled tensors, which are floating point results."""
    sampled = {name: {k: v for k, v in entry.items() if k != "norm"} for name, entry in case["sampled"].items()}
    return {**case, "sampled": sampled}


def tensor_error(expected, found):
    if expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    expected, found = expected.astype(np.float64), found.astype(np.float64)
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / (norm if norm > 0 else 1.0))


def compare(expected_path, found_path):
    """(worst error, the tensor it belongs to) of one case; infinite where the files do not match."""
    if not expected_path.exists() or not found_path.exists():
        return float("inf"), "file missing"
    expected, expected_case = read(expected_path)
    found, found_case = read(found_path)
    if expected.keys() != found.keys() or without_norms(expected_case) != without_norms(found_case):
        return float("inf"), "names or metadata differ"
    errors = {name: tensor_error(expected[name], found[name]) for name in expected}
    for name, entry in expected_case["sampled"].items():
        a, b = entry["norm"], found_case["sampled"][name]["norm"]
        errors[f"norm of {name}"] = abs(a - b) / (abs(a) or 1.0)
    worst = max(errors, key=errors.get)
    return errors[worst], worst


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("expected", type=Path)
    parser.add_argument("found", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-6)
    args = parser.parse_args()
    names = sorted({path.name for folder in (args.expected, args.found) for path in folder.glob("*.safetensors")})
    failures = 0
    for name in names:
        error, tensor = compare(args.expected / name, args.found / name)
        failed = not error <= args.tolerance
        failures += failed
        print(f"{name[:-12]:32} {error:9.2e}  {tensor}{'  FAILED' if failed else ''}")
    print(f"{len(names)} cases, {failures} failed, tolerance {args.tolerance:g}")
    sys.exit(failures > 0 or not names)


if __name__ == "__main__":
    main()
