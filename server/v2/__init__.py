"""The Open Inference Protocol, version 2, whatever carries it: `server/http/v2.py` and `server/grpc/` do."""
