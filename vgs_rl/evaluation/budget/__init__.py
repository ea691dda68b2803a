"""The path gap, split into what lowers it."""
