"""Fashion-MNIST from its four idx.gz files (Debian package dataset-fashion-mnist, MIT licence).

Images are padded from 28x28 to 32x32 with black and scaled to [-1, 1], as the demo does.
"""

import gzip
from pathlib import Path

import numpy as np
import torch

DEFAULT_FOLDER = "/usr/share/datasets/fashion-mnist"


def read_bytes(folder, name, offset):
    with gzip.open(Path(folder) / name) as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)


def read(folder, split):
    """split "train" or "t10k" -> images uint8 [n, 28, 28], labels int64 [n]."""
    images = read_bytes(folder, f"{split}-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)
    labels = read_bytes(folder, f"{split}-labels-idx1-ubyte.gz", 8)
    return torch.from_numpy(images.copy()), torch.from_numpy(labels.astype(np.int64))


def prepare(images):
    """uint8 [n, 28, 28] -> float32 [n, 1, 32, 32] in [-1, 1]."""
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    return padded[:, None].float() / 127.5 - 1
