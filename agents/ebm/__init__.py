"""An energy-based model in the loop, its negatives, and anomaly detectors."""
