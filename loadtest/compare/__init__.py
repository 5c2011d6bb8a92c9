"""This server and its rivals at the same work, in one run: `python loadtest/compare --help`."""
