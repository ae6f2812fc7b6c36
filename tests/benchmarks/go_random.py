"""The generator of Go's `math/rand`, so that a published simulation can be replayed by its seed.

An additive lagged Fibonacci generator after Mitchell and Reeds: y(n) = y(n-607) + y(n-273) modulo
2^64. Go mixes a seed with a fixed table, which is the state of the same generator 7.8e12 steps
after a seeding with 1. The table is not kept here: the recurrence is linear, so that a power of x
modulo its characteristic polynomial jumps there in 43 squarings.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

LENGTH, TAP = 607, 273
COOKING_STEPS = 7_800_000_000_000
MERSENNE = (1 << 31) - 1
WORD = (1 << 64) - 1


def _lehmer_words(seed: int, shift: int) -> list[int]:
    """607 words, each of three numbers of the minimal standard generator, `shift` bits apart."""
    x = seed % MERSENNE or 89482311
    for _ in range(20):
        x = 48271 * x % MERSENNE
    words = []
    for _ in range(LENGTH):
        word = 0
        for shift_now in (2 * shift, shift, 0):
            x = 48271 * x % MERSENNE
            word ^= x << shift_now
        words.append(word & WORD)
    return words


def _product(a: NDArray[np.uint64], b: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """a·b modulo x^607 - x^334 - 1, coefficients modulo 2^64."""
    full = np.zeros(2 * LENGTH - 1, dtype=np.uint64)
    for power in np.flatnonzero(a):
        full[power : power + LENGTH] += a[power] * b
    top = 2 * LENGTH - 1
    while top > LENGTH:  # pieces short enough that none is added to itself
        low = max(LENGTH, top - TAP)
        piece = full[low:top]
        full[low - TAP : top - TAP] += piece
        full[low - LENGTH : top - LENGTH] += piece
        top = low
    return full[:LENGTH]


def _slot(n: int) -> int:
    """Where the generator keeps the output of its n-th call."""
    return (LENGTH - TAP - n) % LENGTH


@cache
def _cooked() -> tuple[int, ...]:
    """The table that every seed is mixed with."""
    start = _lehmer_words(1, 10)
    history = [start[_slot(n)] for n in range(1 - LENGTH, 1)]
    while len(history) < 2 * LENGTH - 1:
        history.append((history[-LENGTH] + history[-TAP]) & WORD)
    past = np.array(history, dtype=np.uint64)

    x = np.zeros(LENGTH, dtype=np.uint64)
    x[1] = 1
    power = np.zeros(LENGTH, dtype=np.uint64)
    power[0] = 1
    for bit in f"{COOKING_STEPS:b}":
        power = _product(power, power)
        if bit == "1":
            power = _product(x, power)

    table = [0] * LENGTH
    for j in range(LENGTH):
        value = np.add.reduce(power * past[j : j + LENGTH])
        table[_slot(COOKING_STEPS - LENGTH + 1 + j)] = int(value)
    return tuple(table)


class GoRandom:
    """Go's `rand.New(rand.NewSource(seed))`: `int63`, `intn` and `shuffle` give the same values."""

    def __init__(self, seed: int) -> None:
        words = _lehmer_words(seed, 20)
        self._state = [word ^ cooked for word, cooked in zip(words, _cooked(), strict=True)]
        self._calls = 0

    def int63(self) -> int:
        """A number below 2^63."""
        self._calls += 1
        feed, tap = _slot(self._calls), -self._calls % LENGTH
        value = (self._state[feed] + self._state[tap]) & WORD
        self._state[feed] = value
        return value & (WORD >> 1)

    def intn(self, n: int) -> int:
        """A number below n, for n up to 2^31 - 1."""
        if n & (n - 1) == 0:
            return (self.int63() >> 32) & (n - 1)
        largest = (1 << 31) - 1 - (1 << 31) % n
        while (value := self.int63() >> 32) > largest:
            pass
        return value % n

    def shuffle(self, items: list[Any]) -> None:
        """Fisher and Yates from the end, with Lemire's multiplication for the bounded numbers."""
        for i in range(len(items) - 1, 0, -1):
            n = i + 1
            product = (self.int63() >> 31) * n
            if (product & 0xFFFFFFFF) < n:
                while (product & 0xFFFFFFFF) < (1 << 32) % n:
                    product = (self.int63() >> 31) * n
            j = product >> 32
            items[i], items[j] = items[j], items[i]

    def permutation(self, n: int) -> list[int]:
        """The numbers below n in random order (`rand.Perm`)."""
        order: list[int] = []
        for i in range(n):
            j = self.intn(i + 1)
            order.append(i)
            order[i], order[j] = order[j], i
        return order
