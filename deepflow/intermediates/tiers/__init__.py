"""A mapping of values that keeps in the heap what fits, and the rest where it takes less.

Heap, then coded in memory, then disk, then an object store. One thread evicts in the background,
another reads back what tasks are about to want, so that who sets and gets values waits as rarely as
can be. A copy on disk or in a store is kept when its value is read back: to evict that again costs
nothing. A stored copy that is damaged or gone is a lost value (`ValueLostError`), never another.

A value that cannot leave is one of two kinds. What fails *in passing* (it was read meanwhile, a
place is full or does not answer, memory is short) is tried again after a pause that doubles, and
sooner when room comes back. What *lasts* (it cannot be pickled, it lives only in this process, no
place takes such a value) pins the value. Where only pinned values are left, nobody waits for room.
The store asks its owner through hooks, runs the users' pickling code and writes to places: none of
these can end its threads, whatever they raise.

`store` is the mapping, with the reading back; `evicting` chooses what leaves and moves it down;
`shelves` are the places a store writes to, with their failures; `pressure` is how full the store is
and who waits for room; `entries` is what is known of each value; `owner` asks the owner. They share
one lock, that of `pressure`.
"""

from deepflow.intermediates.tiers.owner import Hooks, Use
from deepflow.intermediates.tiers.store import TieredStore

__all__ = ["Hooks", "TieredStore", "Use"]
