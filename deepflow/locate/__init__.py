"""Where inputs lie: what `near=` names is looked up, and an input is cut along its blocks.

May live here: resolvers (things to be near → `deepflow.decide.location.Location`), the locator that
asks them side by side under a deadline, and the cutting of an input into shards. May import:
`decide`, `hints`, `errors` and fsspec; what only one storage needs (s3fs, requests) is imported on
first use. Never Dask or Prefect: workers, driver and scheduler all may ask.
"""
