"""The Open Inference Protocol over gRPC, beside HTTP in the same worker. Imported only where a port is set for it."""
