"""Samplers of few network calls, or one, that learn from a trained sampler."""
