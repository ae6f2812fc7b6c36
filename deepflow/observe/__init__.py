"""What happened, told to people and machines: metrics, the journal, and what is drawn from it.

May live here: anything that records or exports what the runner and the workers did.
May import: `intermediates`, `decide`, `hints`, `errors`, prometheus-client, and matplotlib where a
picture is asked for. Never Prefect or Dask, so that driver, worker and scheduler processes can all
record in the same way.
"""
