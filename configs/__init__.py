"""The shipped configurations, one YAML file an experiment, as data of the package."""
