"""Energies that learn from data, and the contrastive loss that teaches them."""
