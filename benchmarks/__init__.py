"""Benchmarks: ratios measured in one process on one machine, and what was measured."""
