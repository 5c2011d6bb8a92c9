"""The HTTP workers: FastAPI in front of an engine client."""
