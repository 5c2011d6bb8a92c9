"""The inference service: `python -m server`."""

VERSION = "0.1.0"
