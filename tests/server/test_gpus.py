"""What the server reports about GPUs."""

from pathlib import Path

import pytest

from server import gpus
from tests.server.running import run_with_metrics


def test_a_gpu_is_in_the_metrics(tmp_path: Path) -> None:
    program = (
        "from server import gpus\n"
        "gpus.show(Metrics('supervisor'), gpus.GpuState(0, 'NVIDIA T4', '580', 0.25, 2**30, 2**34, '7.5'))\n"
        "print(exposition()[0].decode())"
    )
    lines = run_with_metrics(tmp_path, program).splitlines()
    assert 'serving_gpu_utilization_ratio{gpu="0",name="NVIDIA T4"} 0.25' in lines
    assert 'serving_gpu_memory_used_bytes{gpu="0",name="NVIDIA T4"} 1.073741824e+09' in lines
    assert 'serving_gpu_memory_total_bytes{gpu="0",name="NVIDIA T4"} 1.7179869184e+10' in lines


def test_without_a_gpu_nothing_watches_and_nothing_is_told(tmp_path: Path) -> None:
    with gpus.management() as library:
        if library is not None:
            pytest.skip("this machine has a GPU")
    program = (
        "import threading\nfrom server import gpus\n"
        "gpus.watch(Metrics('supervisor'), threading.Event()).join()\n"
        "print(exposition()[0].decode())"
    )
    assert "serving_gpu" not in run_with_metrics(tmp_path, program)


class Library:
    """A fake of NVIDIA's library, with GPUs by id; a list: a divided GPU's slices; None: a lost GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, *gpus: str | list[str] | None) -> None:
        self._gpus = gpus

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self._gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str | list[str]:  # noqa: N802
        if (found := self._gpus[index]) is None:
            raise self.NVMLError
        return found

    def nvmlDeviceGetMigMode(self, gpu: str | list[str]) -> tuple[int, int]:  # noqa: N802
        if gpu == "GPU-old":
            raise self.NVMLError
        return isinstance(gpu, list), 0

    def nvmlDeviceGetMaxMigDeviceCount(self, _gpu: list[str]) -> int:  # noqa: N802
        return 7

    def nvmlDeviceGetMigDeviceHandleByIndex(self, gpu: list[str], index: int) -> str:  # noqa: N802
        if index >= len(gpu):
            raise self.NVMLError
        return gpu[index]

    def nvmlDeviceGetUUID(self, device: str) -> str:  # noqa: N802
        return device


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, ("GPU-a", "GPU-old", "MIG-1", "MIG-2")),
        ("", ()),
        ("-1", ()),
        ("1", ("1",)),
        ("MIG-2, GPU-a", ("MIG-2", "GPU-a")),
        ("0,-1,2", ("0",)),
    ],
)
def test_engines_get_the_gpus_that_cuda_would_use(variable: str | None, expected: tuple[str, ...]) -> None:
    assert gpus.visible(Library("GPU-a", None, "GPU-old", ["MIG-1", "MIG-2"]), variable) == expected


def test_without_the_library_only_the_variable_tells_of_gpus() -> None:
    assert gpus.visible(None, None) == ()
    assert gpus.visible(None, "0,1") == ("0", "1")


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_told() -> None:
    with gpus.management() as library:
        if library is None:
            pytest.skip("no NVIDIA GPU, or no driver")
        found = gpus.look(library)
    assert found
    for gpu in found:
        assert 0 <= gpu.utilisation <= 1
        assert 0 < gpu.used_bytes <= gpu.total_bytes
