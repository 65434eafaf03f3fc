"""Experiment definitions, user assignment, and the policy that answers a user. Pure."""
