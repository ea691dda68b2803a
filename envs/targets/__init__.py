"""Energies that ship with the package, one file a family."""
