"""Agents that learn a control by a loss of whole paths: PIS, trajectory balance, log-variance."""
