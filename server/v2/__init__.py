"""The Open Inference Protocol, version 2, independent of its transport: `server/http/v2.py` and `server/grpc/`."""
