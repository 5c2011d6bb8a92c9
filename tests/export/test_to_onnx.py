import socket
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import onnx
import pytest
import torch

from export import graph, repository, to_onnx
from export.recipe import plan
from models import manifest, networks, zoo
from models.architectures import ARCHITECTURES
from models.weights import MIRROR_VARIABLE, OFFICIAL_URL, sha256_of
from models.zoo import OfficialWeights
from tests.conftest import run_to_onnx
from tests.export.drafts import MODEL, draft


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    "arguments",
    [
        ("resnet18", "--weights", "mine.pth", "--random-weights"),
        ("resnet18", "--name", "../escape"),
        ("resnet18", "--shortcut", "D"),
        ("resnet50", "--stride-in", "7x7"),
        ("resnet18", "--num-classes", "many"),
    ],
)
def test_wrong_usage_is_2(arguments: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit) as ended:
        to_onnx.main(arguments)
    assert ended.value.code == 2


def test_the_command_itself_ends_with_the_same_codes_and_lines() -> None:
    used = run_to_onnx("resnet18", "--name", "../escape")
    assert (used.returncode, used.stdout) == (2, "")
    failed = run_to_onnx("resnet51")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: there is no network resnet51")
    assert failed.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet51",), "there is no network resnet51"),
        (("cifar_resnet20",), "--random-weights"),
        (("resnet18", "--weights", "none.pth"), "none.pth"),
        (("resnet18", "--weights", "pyproject.toml"), "no checkpoint"),
        (("resnet18", "--random-weights", "--num-classes", "0"), "--num-classes is 0"),
        (("resnet18", "--random-weights", "--stride-in", "1x1"), "no bottlenecks"),
        (("resnet18", "--ema"), "--weights FILE"),
        (("resnet18", "--random-weights", "--check-images", "models"), "models has no images"),
        (("resnet18", "--random-weights", "--labels", "models/zoo.py"), "models/zoo.py"),
    ],
)
def test_error_is_one_line_and_1(
    arguments: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert to_onnx.main([*arguments, "--repository", str(tmp_path / "repository")]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert message in told
    assert not (tmp_path / "repository").exists()


@pytest.mark.usefixtures("offline")
def test_named_network_that_is_unreachable_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = ["--repository", str(tmp_path / "repository"), "--weights-dir", str(tmp_path / "weights")]
    assert to_onnx.main(["resnet50", *folders]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "cannot be reached" in told
    assert list(tmp_path.rglob("*.pth*")) == []
    assert not (tmp_path / "repository").exists()


@pytest.mark.usefixtures("offline")
def test_default_network_has_a_stand_in_where_it_is_unreachable(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert to_onnx.main(["--repository", str(model_repository), "--weights-dir", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.err == "The weights of resnet50 still cannot be downloaded.\n"
    assert "efficientnet_lite0 is already exported as version 1" in told.out


@pytest.mark.usefixtures("offline")
def test_the_first_time_it_says_why_and_what_it_exports_instead(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "none").mkdir()
    arguments = ["--repository", str(tmp_path / "repository"), "--weights-dir", str(tmp_path)]
    assert to_onnx.main([*arguments, "--check-images", str(tmp_path / "none")]) == 1  # which ends it before it exports
    why, instead, stopped = capsys.readouterr().err.splitlines()
    assert "resnet50" in why
    assert instead == "Exporting efficientnet_lite0 instead, whose weights are installed."
    assert "has no images" in stopped


@pytest.mark.usefixtures("offline")
def test_default_network_that_is_exported_already_needs_no_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = draft(name="resnet50").model_copy(update={"fingerprint": plan("resnet50").fingerprint()})
    repository.publish(tmp_path, known, MODEL)
    assert to_onnx.main(["--repository", str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    assert "resnet50 is already exported as version 1" in told.out


def test_exported_manifest_says_all_that_is_known(model_repository: Path) -> None:
    folder = model_repository / "efficientnet_lite0" / "1"
    known = manifest.read(folder)
    manifest.read_model_file(folder, known)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "model.onnx"]
    assert known.weights.sha256 is not None
    assert known.weights.sha256.startswith("57934424")
    assert not known.weights.random
    assert (known.parameters, known.num_classes, known.top_k, known.opset) == (4_652_008, 1000, 100, 20)
    assert known.labels[504 - 1].label == "cocktail shaker"
    assert known.parity is not None
    assert known.parity.real_images == 3
    assert set(known.tools) == {"torch", "onnx", "onnxscript", "onnxruntime"}


def test_same_export_again_is_recognised(model_repository: Path) -> None:
    before = sorted(model_repository.rglob("*"))
    done = run_to_onnx("efficientnet_lite0", "--repository", model_repository)
    assert done.returncode == 0
    assert "already exported as version 1" in done.stdout
    assert sorted(model_repository.rglob("*")) == before


def test_official_weights_are_downloaded_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # As torchvision would serve it, except for the file's name: it contains a digest that no other file has.
    home = tmp_path / "home"
    home.mkdir()
    torch.save(networks.build("resnet18", 1000, seed=1).state_dict(), home / "weights")
    digest = sha256_of(home / "weights")
    official = OfficialWeights(f"resnet18-{digest[:8]}.pth")
    (home / "weights").rename(home / official.file_name)
    monkeypatch.setitem(zoo.NETWORKS, "resnet18", replace(zoo.NETWORKS["resnet18"], weights=official))
    handler = partial(QuietHandler, directory=home)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        monkeypatch.setenv(MIRROR_VARIABLE, f"http://127.0.0.1:{server.server_port}")
        folders = ["--weights-dir", str(tmp_path / "weights"), "--repository", str(tmp_path / "repository")]
        done = to_onnx.main(["resnet18", *folders])
        server.shutdown()
        thread.join()
    assert done == 0, capsys.readouterr().err
    known = manifest.read(tmp_path / "repository" / "resnet18" / "1")
    assert (known.weights.source, known.weights.sha256) == (OFFICIAL_URL + official.file_name, digest)
    assert known.published_accuracy == zoo.NETWORKS["resnet18"].accuracy
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [official.file_name]


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_own_checkpoint_is_exported_with_its_own_classes(
    tmp_path: Path, labels_of_seven: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(
        networks.build(replace(ARCHITECTURES["cifar_resnet20"], shortcut="B"), 7).state_dict(), tmp_path / "mine.pth"
    )
    arguments = ["cifar_resnet20", "--shortcut", "B", "--weights", str(tmp_path / "mine.pth")]
    arguments += ["--labels", str(labels_of_seven), "--name", "mine", "--repository", str(tmp_path / "repository")]
    assert to_onnx.main(arguments) == 0, capsys.readouterr().err
    known = manifest.read(tmp_path / "repository" / "mine" / "1")
    assert (known.num_classes, known.top_k, known.labels[6].label) == (7, 7, "kind 6")
    assert known.architecture == "cifar_resnet20 with shortcuts B"
    assert (known.weights.source, known.weights.random) == ("mine.pth", False)


def test_random_weights_are_flagged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_onnx.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path)]) == 0
    known = manifest.read(tmp_path / "cifar_resnet20" / "1")
    assert known.weights.random
    assert known.weights.sha256 is None
    assert "its answers mean nothing" in capsys.readouterr().out


def test_export_that_is_not_pytorch_stays_out_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faithful = graph.to_onnx

    def forgetful(complete: graph.CompleteGraph, crop: tuple[int, int], opset: int) -> bytes:
        proto = onnx.load_from_string(faithful(complete, crop, opset))
        next(tensor for tensor in proto.graph.initializer if tensor.name.endswith("fc.bias")).raw_data = b"\0" * 40
        content: bytes = proto.SerializeToString()
        return content

    monkeypatch.setattr(graph, "to_onnx", forgetful)
    assert to_onnx.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path / "repository")]) == 1
    assert "differ from PyTorch's" in capsys.readouterr().err
    assert not (tmp_path / "repository").exists()


def test_network_that_pytorch_does_not_export_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> bytes:
        raise torch.onnx.OnnxExporterError("step 1 of 3\nmore") from ValueError("no view of it\nmore")

    monkeypatch.setattr("export.graph.to_onnx", fail)
    assert to_onnx.main(["cifar_resnet20", "--random-weights", "--repository", str(tmp_path)]) == 1
    assert "PyTorch does not export cifar_resnet20 (no view of it): " in capsys.readouterr().err
