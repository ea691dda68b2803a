"""Settings of a value-gradient agent for an energy that nobody tuned for, from its exploration."""
