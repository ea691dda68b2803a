"""One sampler of a range of temperatures, next to samplers of one each."""
