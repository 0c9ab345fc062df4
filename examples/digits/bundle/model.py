"""A net of two convolutions for images of 8 x 8 pixels with values from 0 to 1."""

from typing import Any

from torch import nn


def build(_bundle: Any = None) -> nn.Module:
    """The net without its weights; whoever loads the bundle puts them in."""
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64 * 4 * 4, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
