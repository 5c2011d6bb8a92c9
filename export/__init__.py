"""Commands that turn a trained network into a verified model of the repository."""

import models.missing  # noqa: F401 `models` silences ONNX Runtime, which must not be imported before
