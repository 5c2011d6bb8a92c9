"""Networks, the zoo that binds them to weights and preprocessing, and the manifest of an exported model."""

import os
import sys

# The official builds of ONNX Runtime report every session (model, graph, hashes) to their maker unless told not to
# before they are imported. OpenVINO reports its import, and keeps an identifier in the home folder, where its telemetry
# package can be imported. Everything that imports one of them here imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None: it cannot be imported
