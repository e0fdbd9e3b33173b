"""Figures, each beside a yardstick that runs in the same call (docs/benchmarks.md)."""
