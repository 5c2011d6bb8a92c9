"""What is told of GPUs."""

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
