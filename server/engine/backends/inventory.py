"""Which runtimes there are on this machine, for those who only want to know."""


def onnx_providers() -> list[str]:
    """ONNX Runtime's execution providers, the preferred first."""
    import onnxruntime

    found: list[str] = onnxruntime.get_available_providers()
    return found


def openvino_devices() -> list[str]:
    """OpenVINO's devices.

    Raises:
        ImportError: it is not installed.
    """
    from openvino import Core

    found: list[str] = Core().available_devices
    return found
