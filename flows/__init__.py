"""Real pipelines that run on deepflow, each with a size parameter.

A flow here is ordinary Prefect code: it runs under any task runner, and picks deepflow's only as
its default. Private folders (`_flights`) hold the steps of one flow as plain functions, so that
they can be tested without a server.
"""
