"""Scoring candidates and drawing a list from the scores, with exact propensities."""
