"""How results travel and rest: what they weigh, how they are coded and checked, where they lie.

What may live here: code about data, free of Prefect. Dask is known to `registration`, which teaches
it our types; `tiers` borrows its measure of a value's size. Numpy, pandas, pyarrow and torch are
used where a value of theirs turns up, never imported first.

`codecs` makes a buffer smaller. `chunks` is the one layer on it that cuts, codes, checks and
decodes; `values` (a value in one piece), `stream` (over a socket) and `stored` (a persisted result)
stand on it. `choosing` says which codec a buffer gets, for a link, for the heap or for a store.
"""
