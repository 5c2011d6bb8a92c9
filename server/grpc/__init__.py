"""The Open Inference Protocol over gRPC, beside HTTP in the same worker. Imported only if `grpc_port` is set."""

import os

# Else gRPC's C library writes raw lines into our log about whatever clients do wrong.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
