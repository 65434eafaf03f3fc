"""Trains the live line continually: workers, learner, label targets, and the Ray Train driver."""
