import json
import math
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from loadtest.roofline import Roofline, Work, count
from tests import tiny
from tests.loadtest import commands


def test_work_is_that_of_convolutions_and_matrix_products() -> None:
    def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        return helper.make_tensor(name, TensorProto.FLOAT, shape, bytes(4 * math.prod(shape)), raw=True)

    nodes = [
        helper.make_node("Conv", ["images", "filters"], ["maps"], group=2, kernel_shape=[3, 3]),
        helper.make_node("GlobalAveragePool", ["maps"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "matrix"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "counted",
        [value("images", "n", 4, 7, 7)],
        [value("logits", "n", 10)],
        [weights("filters", 6, 2, 3, 3), weights("matrix", 10, 6)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    done = count(model.SerializeToString())
    # 6 maps of 5 x 5 values, each a sum over 2 channels of 3 x 3; 10 logits, each a sum over 6 means
    assert done.giga_flops * 1e9 == pytest.approx(2 * (6 * 25 * 2 * 9 + 10 * 6))
    assert done.million_activations * 1e6 == pytest.approx(6 * 25 + 10)


def test_bound_is_the_slower_of_arithmetic_and_memory() -> None:
    roofline = Roofline("a device", on_gpu=False, torch="0", tera_flops={"fp32": 1.0}, copy_gb_per_s=100.0)
    # 1 GFLOP takes 1 ms at 1 TFLOP/s; 100 MB of weights take 1 ms at 100 GB/s, and a batch reads them once
    assert Work(1.0, 0.0).bound(roofline, "fp32", 8, 1_000) == pytest.approx(1000)
    assert Work(0.1, 0.0).bound(roofline, "fp32", 4, 100_000_000) == pytest.approx(4000)
    assert Work(1.0, 0.0).bound(roofline, "int8", 1, 1_000) is None


def test_every_backend_that_runs_here_is_in_the_table_and_the_others_are_named(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    tiny.write(repository, crop=8, work=1)
    tiny.write_torch(repository, "program", crop=8)
    arguments = ("--repository", repository, "--batches", "1,2", "--seconds", "0.01", "--output", tmp_path / "out")
    done = commands.run("engine.py", *arguments)
    assert done.returncode == 0, done.stderr
    (written,) = (tmp_path / "out").glob("engine-*.json")
    rows = json.loads(written.read_text())["rows"]
    assert {(row["model"], row["backend"], row["batch"]) for row in rows if not row["on_gpu"]} >= {
        ("tiny", backend, batch) for backend in ("onnx", "openvino") for batch in (1, 2)
    }
    assert {row["batch"] for row in rows if row["model"] == "program"} == {1, 2}
    assert all(row["images_per_s"] == pytest.approx(1e3 * row["batch"] / row["p50_ms"]) for row in rows)
    assert written.with_suffix(".md").read_text() in done.stdout
