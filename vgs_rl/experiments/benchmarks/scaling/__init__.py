"""Time and memory against whatever can grow: environments, D, T, threads, ranks, updates."""
