"""Changes of coordinates: affine ones, of tails, of funnels, and of what bounds a state."""
