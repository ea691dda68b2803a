"""Energy-based models as anomaly detectors, side by side."""
