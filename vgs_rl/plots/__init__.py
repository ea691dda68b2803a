"""Pictures: of chains, particles, detections and comparisons."""
