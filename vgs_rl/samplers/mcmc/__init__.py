"""Markov chain Monte Carlo and annealing: samplers that need no training."""
