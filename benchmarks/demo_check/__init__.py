"""Unattended check of a demo: measures it as a viewer, and judges the figures."""
