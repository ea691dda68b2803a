"""Checks of a user's energy and of vector environments."""
