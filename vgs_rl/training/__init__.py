"""What a training needs around its algorithm: configuration, run folder, resuming, event files."""
