"""Configuration: frozen dataclasses, their checks, and loading from YAML and environment."""
