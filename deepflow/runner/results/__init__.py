"""Persisted results: how they are written, where they lie, what is found again.

May import what is directly in `deepflow.runner`; neither `deepflow.runner.driver` nor
`deepflow.runner.worker`, both of which use it.
"""
