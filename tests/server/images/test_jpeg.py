"""Which decoder is used for JPEG, and what is logged if the wanted one cannot be used."""

from pathlib import Path
from typing import Any

import pytest

from server.cuda import find_gpu
from server.images import jpeg
from server.settings import Settings
from tests import tiny
from tests.server.running import run_server

without_gpu = pytest.mark.skipif(find_gpu() is not None, reason="there is a GPU here")


@without_gpu
def test_a_server_that_is_to_decode_on_a_gpu_that_is_not_there_does_not_start(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    line = "python -m server: there is no NVIDIA GPU to decode on, or no driver: leave --decoder out"
    assert run_server("--repository", tmp_path, "--port", 0, "--decoder", "nvimagecodec") == (1, line)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert jpeg.why_not(Settings(decoder="nvimagecodec-cpu")) is None

    def find_spec(name: str) -> Any:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(jpeg, "find_spec", find_spec)
    assert "'.[nvimagecodec]'" in str(jpeg.why_not(Settings(decoder="nvimagecodec-cpu")))
    assert jpeg.why_not(Settings()) is None


@without_gpu
def test_a_process_that_finds_its_gpu_gone_decodes_with_pillow(caplog: pytest.LogCaptureFixture) -> None:
    assert jpeg.start(Settings(decoder="nvimagecodec"), lambda _: None) is None
    assert "the decoder cannot start: Pillow decodes all photos" in caplog.text
