"""How late will this flight arrive? A small network per airport, in plain torch.

The network predicts the minutes a flight *gains or loses after departure*; the predicted arrival
delay is the departure delay plus that. Weights travel as NumPy arrays, so that a model trained
beside a GPU can be used anywhere, and nothing but this module imports torch.

Deterministic for a seed on one kind of device: weights and batch order are drawn from a generator
of their own, since the global one is shared by all threads of a worker. A GPU adds up in another
order, so its figures differ in the last digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .features import FeatureShard, Floats, Words

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Training:
    """How to train. Chosen on September and October with January to August as training."""

    epochs: int = 4
    batch_flights: int = 512
    hidden_units: int = 32
    embedding_units: int = 6
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    # Errors beyond this many minutes count linearly: one flight a day late is not 100 others.
    huber_min: float = 10.0


@dataclass(frozen=True, slots=True)
class DelayModel:
    """A trained network: weights, and how to bring features into the range it was trained on."""

    airport: str
    trained_on: str
    n_flights: int
    shard_bytes: int
    losses: tuple[float, ...]
    weights: Mapping[str, Floats]
    center: Floats
    scale: Floats
    carriers: Words
    destinations: Words


def train(
    airport: str, shards: Sequence[FeatureShard], *, seed: int, how: Training | None = None
) -> DelayModel:
    """A model of `airport` from its training shards, on a GPU where this process sees one.

    `losses` is the mean Huber loss of each epoch. All that is learned, centre and scale and the
    lists of carriers and destinations included, comes from `shards` alone.
    """
    import torch

    how = how or Training()
    _require_one_airport(airport, shards)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    numbers = np.concatenate([shard.numbers for shard in shards])
    center = np.nanmean(numbers, axis=0)
    scale = np.nanstd(numbers, axis=0)
    scale[~(scale > 1e-6)] = 1.0
    carriers = np.unique(np.concatenate([shard.carrier for shard in shards]))
    destinations = np.unique(np.concatenate([shard.destination for shard in shards]))
    gained = np.concatenate([s.arrival_delay_min - s.departure_delay_min for s in shards])

    generator = torch.Generator().manual_seed(seed)
    start = _initial_weights(
        len(center), len(carriers), len(destinations), float(np.median(gained)), how, generator
    )
    weights = {name: value.to(device).requires_grad_() for name, value in start.items()}
    x = torch.from_numpy(_scaled(numbers, center, scale)).to(device)
    carrier = torch.from_numpy(
        _positions(np.concatenate([s.carrier for s in shards]), carriers)
    ).to(device)
    destination = torch.from_numpy(
        _positions(np.concatenate([s.destination for s in shards]), destinations)
    ).to(device)
    y = torch.from_numpy(gained).to(device)

    steps = how.epochs * -(-len(y) // how.batch_flights)
    optimizer = torch.optim.AdamW(
        weights.values(), lr=how.learning_rate, weight_decay=how.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=how.learning_rate, total_steps=steps
    )
    losses = []
    for _ in range(how.epochs):
        order = torch.randperm(len(y), generator=generator).to(device)
        total = torch.zeros((), device=device)
        for batch in order.split(how.batch_flights):
            predicted = _forward(weights, x[batch], carrier[batch], destination[batch])
            loss = torch.nn.functional.huber_loss(predicted, y[batch], delta=how.huber_min)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(batch)
        losses.append(float(total) / len(y))
    return DelayModel(
        airport=airport,
        trained_on=device.type,
        n_flights=len(y),
        shard_bytes=sum(shard.n_bytes for shard in shards),
        losses=tuple(losses),
        weights={name: value.detach().cpu().numpy() for name, value in weights.items()},
        center=center,
        scale=scale,
        carriers=carriers,
        destinations=destinations,
    )


def predict(model: DelayModel, shard: FeatureShard) -> Floats:
    """Predicted arrival delay in minutes, float32 `(n_flights,)`."""
    import torch

    _require_one_airport(model.airport, [shard])
    with torch.no_grad():
        gained = _forward(
            {name: torch.from_numpy(value) for name, value in model.weights.items()},
            torch.from_numpy(_scaled(shard.numbers, model.center, model.scale)),
            torch.from_numpy(_positions(shard.carrier, model.carriers)),
            torch.from_numpy(_positions(shard.destination, model.destinations)),
        )
    predicted: Floats = shard.departure_delay_min + gained.numpy()
    return predicted


def _initial_weights(
    n_numbers: int,
    n_carriers: int,
    n_destinations: int,
    usual_gain_min: float,
    how: Training,
    generator: torch.Generator,
) -> dict[str, torch.Tensor]:
    """Starts out predicting the usual gain: the last layer is zero but for its bias."""
    import torch

    def normal(rows: int, columns: int, spread: float) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * spread

    n_inputs = n_numbers + 2 * how.embedding_units
    hidden = how.hidden_units
    return {
        # Row 0 of each stands for a carrier or destination never seen in training.
        "carrier": normal(n_carriers + 1, how.embedding_units, 0.1),
        "destination": normal(n_destinations + 1, how.embedding_units, 0.1),
        "w1": normal(n_inputs, hidden, (2 / n_inputs) ** 0.5),
        "b1": torch.zeros(hidden),
        "w2": normal(hidden, hidden, (2 / hidden) ** 0.5),
        "b2": torch.zeros(hidden),
        "w3": torch.zeros(hidden, 1),
        "b3": torch.full((1,), usual_gain_min),
    }


def _forward(
    weights: Mapping[str, torch.Tensor],
    numbers: torch.Tensor,
    carrier: torch.Tensor,
    destination: torch.Tensor,
) -> torch.Tensor:
    """Minutes gained after departure, `(n_flights,)`."""
    import torch

    inputs = torch.cat(
        [numbers, weights["carrier"][carrier], weights["destination"][destination]], dim=1
    )
    hidden = torch.relu(inputs @ weights["w1"] + weights["b1"])
    hidden = torch.relu(hidden @ weights["w2"] + weights["b2"])
    return (hidden @ weights["w3"] + weights["b3"]).squeeze(1)


def _scaled(numbers: Floats, center: Floats, scale: Floats) -> Floats:
    """Features in units of their spread; unknown ones at the centre; outliers at ten spreads."""
    scaled = np.clip((numbers - center) / scale, -10, 10)
    known: Floats = np.nan_to_num(scaled, nan=0.0).astype(np.float32)
    return known


def _positions(words: Words, known: Words) -> npt.NDArray[np.int64]:
    """1 + the position of each word in the sorted `known`, 0 where it is not among them."""
    position = np.minimum(np.searchsorted(known, words), len(known) - 1)
    return np.where(known[position] == words, position + 1, 0).astype(np.int64)


def _require_one_airport(airport: str, shards: Sequence[FeatureShard]) -> None:
    others = sorted({shard.airport for shard in shards} - {airport})
    if others or not shards or not sum(shard.n_flights for shard in shards):
        raise ValueError(
            f"the model of {airport} needs flights from {airport}, and was given "
            f"{len(shards)} shard(s) from {', '.join(others) or 'nowhere'}"
        )
