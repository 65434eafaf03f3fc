"""Nearest-neighbour indexes over item vectors that change in place."""
