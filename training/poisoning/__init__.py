"""Accounts that push or sink items together: who they are, and what their quarantine does."""
