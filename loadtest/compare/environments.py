"""The rivals' virtual environments: one for each, since their requirements conflict."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from loadtest.command import LoadTestError
from loadtest.processes import ROOT

RIVALS = Path(__file__).with_name("rivals")
FOLDER = ROOT / ".compare" / "environments"


class InstallError(LoadTestError):
    """A rival cannot be installed; the message says why."""


def requirements(rival: str) -> Path:
    """The file that pins every package of a rival's environment."""
    return RIVALS / f"{rival}.txt"


def version(rival: str, package: str) -> str:
    """The pinned version of one package."""
    found = re.search(rf"^{re.escape(package)}==(\S+)", requirements(rival).read_text(), re.MULTILINE)
    return found[1] if found else ""


def ensure(rival: str) -> Path:
    """The folder with the programs of a rival's environment, which is made if it is missing or its pins have changed.

    Raises:
        InstallError: pip fails.
    """
    pins = requirements(rival)
    environment = FOLDER / rival
    done = environment / "installed"
    digest = hashlib.sha256(pins.read_bytes() + sys.version.encode()).hexdigest()
    if not (done.exists() and done.read_text() == digest):
        print(f"installing {rival} into {environment}", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment)
        pip = [sys.executable, "-m", "pip", "--python", str(environment / "bin" / "python")]
        command = [*pip, "install", "--quiet", "--disable-pip-version-check", "--requirement", str(pins)]
        # pip must not count packages on PYTHONPATH, which the rival will not have
        own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        ended = subprocess.run(command, env=own, stderr=subprocess.PIPE, text=True, check=False)  # noqa: S603
        if ended.returncode:
            raise InstallError(f"{rival} cannot be installed: {ended.stderr.strip()[-1000:]}")
        done.write_text(digest)
    return environment / "bin"
