"""What happened, told to people and machines: metrics today; journal, history and traces later.

May live here: anything that records or exports what the runner and the workers did.
May import: `intermediates`, `decide`, `hints`, `errors`, and prometheus-client. Never Prefect or
Dask, so that driver, worker and scheduler processes can all record in the same way.
"""
