"""Benchmarks: each a script with `--help` and `--json`; none is a timed test."""
