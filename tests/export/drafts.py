"""Models to publish, and the contents of a repository."""

import hashlib
from datetime import UTC, datetime
from pathlib import Path

from models.labels import cifar10
from models.manifest import Manifest, ModelFile, Weights
from models.zoo import NETWORKS

MODEL = b"a model"


def draft(fingerprint: int = 0, name: str = "cifar_resnet20") -> Manifest:
    return Manifest(
        name=name,
        version=1,
        created=datetime.now(UTC),
        architecture="cifar_resnet20",
        parameters=269_722,
        weights=Weights(source="random, seed 0", sha256=None, random=True),
        published_accuracy=None,
        preprocessing=NETWORKS["cifar_resnet20"].preprocessing,
        num_classes=10,
        top_k=10,
        backend="onnx",
        precision="fp32",
        opset=20,
        file=ModelFile(name="model.onnx", sha256=hashlib.sha256(MODEL).hexdigest(), size_bytes=len(MODEL)),
        parity=None,
        tools={},
        fingerprint=f"{fingerprint:064x}",
        labels=cifar10(),
    )


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
