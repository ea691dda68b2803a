"""What draws and learns nothing: the chain with a policy, MCMC, annealing, exact samples."""
