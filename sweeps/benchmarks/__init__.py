"""Measurements that print ratios, both sides measured in one run: `python -m sweeps.benchmarks NAME`."""
