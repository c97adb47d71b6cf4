"""Benchmarks: scripts that print a measured speed beside the limit of the hardware (README.md)."""
