"""What `deploy/notices.py` prints about the installed packages."""

import subprocess
import sys
from importlib.metadata import distribution

from tests.server.running import ROOT


def test_every_package_is_named_with_its_licence_and_texts() -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "deploy" / "notices.py"], capture_output=True, text=True, check=True
    ).stdout
    for name, licence in (
        ("onnxruntime", "MIT License"),
        ("fastapi", "MIT"),
        ("pillow", "MIT-CMU"),
        ("numpy", "BSD-3-Clause"),
    ):
        assert f"{name} {distribution(name).version}: {licence}" in printed
    assert "Permission is hereby granted, free of charge" in printed
    assert "LIBJPEG" in printed.upper()  # bundled in Pillow's wheel
