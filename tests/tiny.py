"""A training that takes a second, as the text of a configuration file."""

TINY = """
env: FourGauss
mdp: {chain: vp, num_steps: 5, schedule: {kind: auto, total_noise: 0.9}, start: {scale: 1.3}}
agent:
  class_path: ValueGradientConfig
  init_args:
    prior_std: 2.0
    network: {class_path: MLPNetwork, init_args: {width: 16, depth: 2}}
    objective:
      class_path: GradientMatching
      init_args: {batch_size: 128, refresh_size: 512, first_size: 512, start_size: 256}
"""
