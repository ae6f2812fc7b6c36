"""Which digit is it? A small convolutional network, in plain torch.

Weights travel as NumPy arrays, so that a network trained beside a GPU can be used anywhere.
Deterministic for a seed on one kind of device: weights, order and shifts are drawn from a generator
of their own, since the global one is shared by all threads of a worker.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .sheets import SIDE_PX, Pixels

if TYPE_CHECKING:
    import torch

Floats = npt.NDArray[np.float32]

# A digit is read at each of these shifts, and the readings are averaged.
_SHIFTS = tuple((x, y) for x in (-1, 0, 1) for y in (-1, 0, 1))


@dataclass(frozen=True, slots=True)
class Training:
    """How to train."""

    epochs: int
    batch_digits: int = 64
    channels: int = 16
    hidden_units: int = 64
    learning_rate: float = 4e-3
    weight_decay: float = 0.01
    # Each batch is moved by up to this many pixels: the network then cares less where a digit lies.
    most_shift_px: int = 2


@dataclass(frozen=True, slots=True)
class Network:
    """A trained network, and what it was trained on."""

    weights: Mapping[str, Floats]
    trained_on: str
    n_digits: int
    losses: tuple[float, ...]
    """Mean cross entropy of each epoch."""


def train(
    digits: Sequence[Pixels], labels: npt.NDArray[np.int64], *, seed: int, how: Training
) -> Network:
    """A network from stacks of digits, on a GPU where this process sees one.

    `labels` are those of all stacks, in their order; `ValueError` where the numbers differ.
    """
    import torch
    from torch.nn.functional import cross_entropy

    n_digits = sum(len(stack) for stack in digits)
    if n_digits != len(labels) or not n_digits:
        raise ValueError(f"{n_digits} digits to learn from, and {len(labels)} labels")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(seed)
    start = _initial_weights(how, generator)
    weights = {name: value.to(device).requires_grad_() for name, value in start.items()}
    x = torch.from_numpy(_scaled(np.concatenate(digits))).to(device)
    y = torch.from_numpy(labels).to(device)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=how.learning_rate, weight_decay=how.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=how.learning_rate,
        total_steps=how.epochs * -(-n_digits // how.batch_digits),
    )
    losses = []
    for _ in range(how.epochs):
        order = torch.randperm(n_digits, generator=generator)
        total = torch.zeros((), device=device)
        for batch in order.split(how.batch_digits):
            dx, dy = torch.randint(
                -how.most_shift_px, how.most_shift_px + 1, (2,), generator=generator
            ).tolist()
            here = batch.to(device)
            loss = cross_entropy(_forward(weights, x[here].roll((dx, dy), (2, 3))), y[here])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(batch)
        losses.append(float(total) / n_digits)
    return Network(
        weights={name: value.detach().cpu().numpy() for name, value in weights.items()},
        trained_on=device.type,
        n_digits=n_digits,
        losses=tuple(losses),
    )


def read(network: Network, digits: Pixels) -> Floats:
    """How likely each digit is each of 0 to 9, `(n_digits, 10)`; rows add up to 1.

    On a GPU where this process sees one. The mean over nine small shifts of each digit.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        weights = {
            name: torch.from_numpy(value).to(device) for name, value in network.weights.items()
        }
        x = torch.from_numpy(_scaled(digits)).to(device)
        shifted = torch.cat([x.roll(shift, (2, 3)) for shift in _SHIFTS])
        likely = _forward(weights, shifted).softmax(dim=1)
        mean = likely.reshape(len(_SHIFTS), len(digits), 10).mean(dim=0)
    read: Floats = mean.cpu().numpy()
    return read


def _initial_weights(how: Training, generator: torch.Generator) -> dict[str, torch.Tensor]:
    import torch

    def normal(*shape: int) -> torch.Tensor:
        n_inputs = int(np.prod(shape[1:]))
        return torch.randn(*shape, generator=generator) * (2 / n_inputs) ** 0.5

    wide, side = 2 * how.channels, SIDE_PX // 4
    return {
        "conv1": normal(how.channels, 1, 5, 5),
        "bias1": torch.zeros(how.channels),
        "conv2": normal(wide, how.channels, 3, 3),
        "bias2": torch.zeros(wide),
        "full1": normal(how.hidden_units, wide * side * side),
        "bias3": torch.zeros(how.hidden_units),
        "full2": torch.zeros(10, how.hidden_units),
        "bias4": torch.zeros(10),
    }


def _forward(weights: Mapping[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """Ten scores for each digit, `(n_digits, 10)`."""
    from torch.nn.functional import conv2d, linear, max_pool2d

    x = max_pool2d(conv2d(x, weights["conv1"], weights["bias1"], padding=2).relu(), 2)
    x = max_pool2d(conv2d(x, weights["conv2"], weights["bias2"], padding=1).relu(), 2)
    x = linear(x.flatten(1), weights["full1"], weights["bias3"]).relu()
    return linear(x, weights["full2"], weights["bias4"])


def _scaled(digits: Pixels) -> Floats:
    """Digits as the network wants them, `(n_digits, 1, SIDE_PX, SIDE_PX)`, mean 0, spread 1."""
    x = digits[:, None].astype(np.float32)
    spread = x.std(axis=(2, 3), keepdims=True)
    scaled: Floats = (x - x.mean(axis=(2, 3), keepdims=True)) / np.maximum(spread, 1.0)
    return scaled
