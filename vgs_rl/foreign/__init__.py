"""Energies made of what a user has at hand: functions of torch, NumPy or JAX, ASE calculators."""
