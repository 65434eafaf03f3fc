"""Statistics of experiments: sequential tests, effects, power, interleaving, off-policy estimates. Pure."""
