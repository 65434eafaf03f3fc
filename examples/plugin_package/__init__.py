"""A package of plug-ins: an operator, a reader, a source and a stage (docs/how-to/plugins.md)."""
