"""Networks, the zoo that binds them to weights and preprocessing, and the manifest of an exported model."""

import os
import sys

# The official builds of ONNX Runtime report every session (model, graph, hashes) to their maker unless told not to
# before they are imported. If its telemetry package can be imported, OpenVINO reports its own import and keeps an
# identifier in the home folder. Every module that imports one of them imports this package first.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None: it cannot be imported
