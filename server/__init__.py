"""The inference service: `python -m server`."""
