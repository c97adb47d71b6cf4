"""Benchmarks of the engine in this process, and of its start."""
