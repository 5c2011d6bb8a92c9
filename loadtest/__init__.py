"""Load on a running server, over HTTP alone: nothing of the server or the models is imported here."""
