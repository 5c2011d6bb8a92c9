"""Commands that turn a trained network into a verified model of the repository."""

import models  # noqa: F401 it silences ONNX Runtime, which must not be imported before
