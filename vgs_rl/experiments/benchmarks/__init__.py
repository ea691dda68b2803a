"""Benchmarks: what the machine was, what was compared, what it cost."""
