"""Reference pages, of which `python -m docs.reference` makes those that the code determines."""
