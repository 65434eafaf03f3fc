"""Off-policy evaluation: the rewards that another policy would have earned, from logged propensities."""
