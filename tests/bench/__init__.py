"""Measurements, not tests: run one with `python -m tests.bench.NAME`, all with `make bench`."""
