"""Judgement of quality: what a viewer takes next, asked of the system and of simple lists. Pure."""
