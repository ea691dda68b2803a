"""What commands do: runs, comparisons, detectors, benchmarks. Only this room knows all others."""
