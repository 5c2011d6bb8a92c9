"""Commands that turn a trained network into a verified model of the repository."""
