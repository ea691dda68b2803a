"""Posteriors of statistical models, one file a model."""
