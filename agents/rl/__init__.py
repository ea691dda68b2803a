"""Algorithms of stable-baselines3 and tianshou as agents."""
