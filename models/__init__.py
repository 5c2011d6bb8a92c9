"""Networks, the zoo that binds them to weights and preprocessing, and the manifest of an exported model."""

import os

# The official builds of ONNX Runtime report every session (model, graph, hashes) to their maker unless told not to
# before they are imported. Everything that imports ONNX Runtime here imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
