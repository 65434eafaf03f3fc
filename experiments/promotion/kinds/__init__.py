"""Kinds of lines beside the live one: a file each, with all rules of its kind. Pure."""
