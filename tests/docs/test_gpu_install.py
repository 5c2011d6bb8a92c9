"""A machine's packages stay, and those of the bundle come beside them."""

import subprocess
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from docs.measurements.gpu import install


def wheel(folder: Path, name: str, module: str, version: str = "1.0") -> Path:
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{path.name.removesuffix('-py3-none-any.whl')}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{module}.py", "HERE = True\n")
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.mark.slow
def test_what_is_missing_or_of_another_version_is_installed_once(tmp_path: Path) -> None:
    python = install.environment(tmp_path / "venv")
    wheels = [
        wheel(tmp_path, "pytest", "pytest", version("pytest")),
        wheel(tmp_path, "pluggy", "pluggy", "0.1"),
        wheel(tmp_path, "brought-along", "brought"),
    ]
    assert install.install(python, wheels) == (["brought-along", "pluggy"], [])
    assert install.install(python, wheels) == ([], [])
    program = "import brought, pluggy; print(brought.HERE, pluggy.HERE); import importlib.util as i;"
    program += "print(i.find_spec('pytest').origin)"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == f"True True\n{pytest.__file__}\n"
    assert version("pluggy") != "0.1"  # the machine's own


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
