"""Evaluation of samplers of conditional energies."""
