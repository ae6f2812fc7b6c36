"""How results travel and rest: what they weigh, how they are coded, as which frames they go.

What may live here: code about data, free of Prefect. Dask is known to `registration`, which teaches
it our types; `tiers` borrows its measure of a value's size.
Numpy, pandas, pyarrow and torch are used where a value of theirs turns up, never imported first.
"""
