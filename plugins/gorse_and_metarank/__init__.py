"""Plug-in with the routes of Gorse and Metarank, for their clients: their JSON to our records and back."""
