"""Plug-ins that ship with the system, found by their entry points. The core imports none of them."""
