"""The Open Inference Protocol over gRPC, beside HTTP in the same worker. Imported only where a port is set for it."""

import os

# Else its C library writes raw lines among ours about whatever clients do wrong.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
