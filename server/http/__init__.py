"""The HTTP workers: HTTP over the serving core, with FastAPI."""
