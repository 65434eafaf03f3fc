"""The plug-in command ``recsys merge``: interpolates an offline candidate with the live model."""
