"""The Value Gradient Sampler: its agent and what its value is regressed on."""
