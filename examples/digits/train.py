"""Train the net in a few seconds and write the bundle: ``python -m examples.digits.train --out FOLDER``."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from examples.bundles import write_bundle

TEMPLATE = Path(__file__).parent / "bundle"
SEED = 20
EPOCHS = 8
BATCH = 64


class Digits(NamedTuple):
    """Images as float32 of n x 1 x 8 x 8 from 0 to 1, labels as int64; the held-out fifth is never trained on."""

    images: NDArray[np.float32]
    labels: NDArray[np.int64]
    held_out_images: NDArray[np.float32]
    held_out_labels: NDArray[np.int64]


def load_digits() -> Digits:
    """scikit-learn's bundled data set, split 4 to 1, always the same way. Reads no network."""
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    data: Any = load()
    images = (data.images[:, None] / 16).astype(np.float32)
    split = train_test_split(images, data.target, test_size=0.2, random_state=SEED, stratify=data.target)
    return Digits(split[0], split[2].astype(np.int64), split[1], split[3].astype(np.int64))


def train(out: Path, threads: int = 1) -> float:
    """Train, write the bundle to *out*, give the accuracy on the held-out images. Deterministic for one torch build."""
    import torch
    from torch.nn import functional

    from examples.digits.bundle.model import build

    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    data = load_digits()
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, total_steps=EPOCHS * -(-len(images) // BATCH))
    for _ in range(EPOCHS):
        for part in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            functional.cross_entropy(net(images[part]), labels[part]).backward()
            optimizer.step()
            schedule.step()
    with torch.inference_mode():
        guesses = net(torch.from_numpy(data.held_out_images)).argmax(1).numpy()
    write_bundle(TEMPLATE, out, net.state_dict())
    return float((guesses == data.held_out_labels).mean())


def main() -> None:
    """Read the command line, train, say how good it is."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the bundle")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    print(f"{train(options.out, options.threads):.3f} of the held-out images are right; bundle: {options.out}")


if __name__ == "__main__":
    main()
