"""Trains the small CNN whose features measure the demo's pictures, and writes it with its reference statistics.

Six 3x3 convolutions (strides 2,1,2,1,2,1, widths 32,32,64,64,128,128), each with BatchNorm and ReLU, global average
pool to 128 features, one linear layer.  BatchNorm is folded into the convolutions, the result rounded to float16, and
everything below is measured with those rounded weights in float32.
Writes classifier.safetensors, statistics.safetensors and test_images.safetensors into --out.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

import fashion_mnist

WIDTHS = (32, 32, 64, 64, 128, 128)
STRIDES = (2, 1, 2, 1, 2, 1)


class Trainable(nn.Module):
    """The network with its BatchNorms, as trained."""

    def __init__(self):
        super().__init__()
        inputs = (1, *WIDTHS[:-1])
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1, bias=False) for i, o, s in zip(inputs, WIDTHS, STRIDES))
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in WIDTHS)
        self.fc = nn.Linear(WIDTHS[-1], 10)

    def forward(self, x):
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return self.fc(x.mean((2, 3)))

    @torch.no_grad()
    def folded(self):
        """Convolution weights and biases with BatchNorm's running statistics multiplied in, float16."""
        tensors = {"fc.weight": self.fc.weight, "fc.bias": self.fc.bias}
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            gain = norm.weight / (norm.running_var + norm.eps).sqrt()
            tensors[f"conv{i}.weight"] = conv.weight * gain[:, None, None, None]
            tensors[f"conv{i}.bias"] = norm.bias - norm.running_mean * gain
        return {name: tensor.half().contiguous() for name, tensor in tensors.items()}


def classify(tensors, x):
    """The folded network: images [n, 1, 32, 32] -> logits [n, 10], features [n, 128], in x's dtype."""
    for i, stride in enumerate(STRIDES):
        weight, bias = (tensors[f"conv{i}.{part}"].to(x.dtype) for part in ("weight", "bias"))
        x = F.relu(F.conv2d(x, weight, bias, stride=stride, padding=1))
    features = x.mean((2, 3))
    return F.linear(features, tensors["fc.weight"].to(x.dtype), tensors["fc.bias"].to(x.dtype)), features


def augment(images, generator):
    """Half of the pictures mirrored, each moved by up to one pixel.  [n, 1, 32, 32] -> the same."""
    n = len(images)
    mirrored = torch.rand(n, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    dy, dx = (int(torch.randint(-1, 2, (), generator=generator)) for _ in range(2))
    return images.roll((dy, dx), (2, 3))


def train(images, labels, steps, batch, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = Trainable()
    optimiser = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 5e-3, steps)
    order = torch.empty(0, dtype=torch.int64)
    started = time.time()
    for step in range(steps):
        if len(order) < batch:
            order = torch.randperm(len(images), generator=generator)
        index, order = order[:batch], order[batch:]
        loss = F.cross_entropy(model(augment(fashion_mnist.prepare(images[index]), generator)), labels[index], label_smoothing=0.05)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % 250 == 0:
            print(f"step {step + 1}/{steps}  loss {loss.item():.3f}  {time.time() - started:.0f} s", flush=True)
    return model.eval()


def diversity(images, labels):
    """Mean pairwise pixel distance within a class, over the first 100 images of each, averaged over the classes."""
    per_class = [torch.pdist(images[labels == k][:100].flatten(1)).mean() for k in range(10)]
    return torch.stack(per_class).mean().item()


@torch.no_grad()
def statistics(tensors, images, labels):
    logits, features = (torch.cat(part) for part in zip(*(classify(tensors, chunk) for chunk in images.split(500))))
    measured = {
        "images": str(len(images)),
        "test_accuracy": f"{(logits.argmax(1) == labels).double().mean().item():.4f}",
        "diversity": f"{diversity(images, labels):.6f}",
        "pixels": "padded to 32x32, scaled to [-1, 1]",
    }
    features = features.double()
    return {"mean": features.mean(0).float(), "covariance": torch.cov(features.T).float().contiguous()}, measured


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=fashion_mnist.DEFAULT_FOLDER, help="folder with the four idx.gz files")
    parser.add_argument("--out", default=Path(__file__).parent.parent / "src/data/demo", type=Path)
    parser.add_argument("--steps", default=3000, type=int)
    parser.add_argument("--batch", default=128, type=int)
    parser.add_argument("--threads", default=2, type=int)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--measure-only", action="store_true", help="keep classifier.safetensors, rewrite the statistics")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)

    path = args.out / "classifier.safetensors"
    if not args.measure_only:
        model = train(*fashion_mnist.read(args.data, "train"), args.steps, args.batch, args.seed)
        save_file(model.folded(), path, {"steps": str(args.steps), "batch": str(args.batch), "seed": str(args.seed)})
    tensors = load_file(path)

    images, labels = fashion_mnist.read(args.data, "t10k")
    reference, measured = statistics(tensors, fashion_mnist.prepare(images), labels)
    save_file(reference, args.out / "statistics.safetensors", measured)
    ten_of_each = torch.cat([torch.nonzero(labels == k)[:10, 0] for k in range(10)])
    save_file(
        {"images": images[ten_of_each].contiguous(), "labels": labels[ten_of_each].to(torch.uint8)},
        args.out / "test_images.safetensors",
        {"source": "Fashion-MNIST test set, the first ten images of each class, MIT licence"},
    )
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
