"""The driver's half: what runs beside the flow.

A submitted call becomes items here (`call`). Items are held until their inputs allow
(`readiness`), sent (`sending`), followed (`reports`, `losses`) and given their end (`settling`).
Prefect's server is told of it (`recorder`). This room may import the files directly in
`deepflow.runner`, and `deepflow.runner.results`; never `deepflow.runner.worker`. It is handed the
few functions of the worker's that it has to name (`deepflow.runner.worker_side`).

At import it is looked at whether Prefect and Dask have what the driver cannot do without.
"""

from deepflow.backend.contract import CONTEXTS, RECORDING, SUBMITTING, may_use

for _needed in (CONTEXTS, SUBMITTING, RECORDING):
    may_use(_needed)
