"""Load tests. Only a few modules, which measure or simulate parts of the server, import it; the rest use HTTP alone."""
