"""Plans an experiment: how many users an effect needs, ``recsys experiment power``."""
