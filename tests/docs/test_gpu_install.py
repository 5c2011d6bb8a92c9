"""Packages that a machine has stay in place, and missing ones are installed beside them."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from docs.measurements.gpu import install


def wheel(folder: Path, name: str, module: str) -> Path:
    path = folder / f"{name.replace('-', '_')}-1.0-py3-none-any.whl"
    info = f"{path.name.removesuffix('-py3-none-any.whl')}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", "HERE = True\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
def test_what_is_missing_is_installed_and_what_is_there_is_not(tmp_path: Path) -> None:
    python = install.environment(tmp_path / "venv")
    wheels = [wheel(tmp_path, "pytest", "pytest"), wheel(tmp_path, "brought-along", "brought")]
    assert install.install(python, wheels) == (["brought-along"], [])
    assert install.install(python, wheels) == ([], [])
    program = "import brought, pytest; print(brought.HERE, hasattr(pytest, 'HERE'))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "True False\n"


@pytest.mark.slow
def test_a_wheel_that_pip_refuses_does_not_keep_the_others_out(tmp_path: Path) -> None:
    python = install.environment(tmp_path / "venv")
    broken = tmp_path / "broken-1.0-py3-none-any.whl"
    broken.write_bytes(b"no archive")
    wheels = [broken, wheel(tmp_path, "brought-along", "brought")]
    assert install.install(python, wheels)[1] == ["broken cannot be installed"]
    assert "brought-along" in install.distributions(python)


def test_libraries_are_found_beside_the_packages_that_look_for_them_there(tmp_path: Path) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    for path in (there / "cu13" / "lib" / "libcublas.so.13", here / "cu13" / "lib" / "libnvjpeg.so.13"):
        path.parent.mkdir(parents=True)
        path.touch()
    for _ in range(2):
        install._link_libraries(there, here)
    assert (here / "cu13" / "lib" / "libcublas.so.13").resolve() == there / "cu13" / "lib" / "libcublas.so.13"
    assert not (here / "cu13" / "lib" / "libnvjpeg.so.13").is_symlink()
