"""Contracts that plug-ins keep, and the suite that checks them: ``recsys contracts``."""
