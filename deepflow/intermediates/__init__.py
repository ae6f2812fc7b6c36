"""How results travel and rest: what they weigh, how they are coded, as which frames they go.

What may live here: code about data, free of Prefect and, but for `registration`, of Dask.
Numpy, pandas, pyarrow and torch are used where a value of theirs turns up, never imported first.
"""
