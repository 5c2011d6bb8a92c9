"""The repository as the server reads it: real folders with real manifests."""

import json
import os
import pickle
from dataclasses import fields
from pathlib import Path

import pytest

from models.manifest import ManifestError, Profile, TensorRT, UnreadableError
from server.errors import Code, ServiceError
from server.refusals import Cause, Refusal
from server.repository import Catalogue, ModelKey, Watch, first_scan, scan, signature
from server.settings import Settings
from tests import tiny


def resolved(catalogue: Catalogue, name: str | None = None, version: int | None = None) -> tuple[str, int]:
    found = catalogue.resolve(name, version)
    return found.name, found.version


def unknown(catalogue: Catalogue, name: str | None = None, version: int | None = None) -> str:
    """What a client is told that asks for a model that is not there."""
    with pytest.raises(ServiceError) as refused:
        catalogue.resolve(name, version)
    assert refused.value.code is Code.UNKNOWN_MODEL
    return refused.value.detail


def change(folder: Path, /, **fields: object) -> None:
    """Overwrite fields of a manifest."""
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_the_newest_version_is_the_default_by_number(tmp_path: Path) -> None:
    for version in (2, 10, 9):
        tiny.write(tmp_path, "a", version)
    catalogue = scan(tmp_path)
    assert resolved(catalogue, "a") == ("a", 10)
    assert resolved(catalogue, "a", 2) == ("a", 2)
    assert dict(catalogue.refused) == {}


def test_who_asks_for_what_there_is_not_is_told_what_there_is(tmp_path: Path) -> None:
    for name, version in (("b", 1), ("d", 1), ("a", 1), ("e", 1), ("a", 3), ("f", 1)):
        tiny.write(tmp_path, name, version)
    catalogue = scan(tmp_path)
    assert unknown(catalogue, "c") == "there is no model 'c'; models served here: a, b, d, e, f"
    assert unknown(catalogue, "a", 2) == "model 'a' has no version 2; versions served here: [1, 3]"
    assert unknown(catalogue) == "no model was named and there is no --default-model; models served here: a, b, d, e, f"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a"], "a"),
        (["a", "b"], None),
        (["a", "resnet50", "efficientnet_lite0"], "resnet50"),
        (["a", "efficientnet_lite0"], "efficientnet_lite0"),
    ],
)
def test_the_default_model_is_the_only_one_or_a_preferred_one(
    tmp_path: Path, names: list[str], expected: str | None
) -> None:
    for name in names:
        tiny.write(tmp_path, name)
    assert scan(tmp_path).default_model == expected


def test_an_engine_takes_the_default_from_no_model(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    engine = tiny.write(tmp_path, "a-rtx-fp16-sm89")
    record = TensorRT(
        flavour="tensorrt_rtx",
        version="1.7.1.116",
        compute_capabilities=("sm89",),
        gpu=None,
        profiles=(Profile(smallest=1, largest=1),),
        onnx_sha256=engine.file.sha256,
    )
    engine = engine.model_copy(update={"backend": "tensorrt", "tensorrt": record})
    (tmp_path / engine.name / "1" / "manifest.json").write_text(engine.model_dump_json())
    assert scan(tmp_path).default_model == "a"
    assert scan(tmp_path, (engine.name,)).default_model == engine.name


def test_the_default_model_that_was_asked_for_wins(tmp_path: Path) -> None:
    for name in ("a", "resnet50"):
        tiny.write(tmp_path, name)
    assert resolved(scan(tmp_path, default_model="a")) == ("a", 1)


def test_only_the_models_asked_for_are_read(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        tiny.write(tmp_path, name)
    change(tmp_path / "c" / "1", version="broken")
    catalogue = scan(tmp_path, ("a", "b"))
    assert set(catalogue.models) == {ModelKey("a", 1), ModelKey("b", 1)}
    assert dict(catalogue.refused) == {}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON"),
        (b"\xff\xfe", "Invalid JSON"),
        (b"[]", "should be an object"),
        (b"{}", "Unable to extract tag using discriminator 'backend'"),
        (b'{"backend": "onnx"}', "name: Field required"),
        (None, "No such file or directory"),
    ],
)
def test_a_broken_manifest_is_refused_with_its_reason_and_spares_others(
    tmp_path: Path, content: bytes | None, reason: str
) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, "a", version)
    broken = tmp_path / "a" / "2" / "manifest.json"
    if content is None:
        broken.unlink()
    else:
        broken.write_bytes(content)
    catalogue = scan(tmp_path)
    assert resolved(catalogue) == ("a", 1)
    assert list(catalogue.refused) == [ModelKey("a", 2)]
    assert reason in catalogue.refused[ModelKey("a", 2)].reason
    assert str(broken) in catalogue.refused[ModelKey("a", 2)].reason
    assert "\n" not in catalogue.refused[ModelKey("a", 2)].reason


@pytest.mark.parametrize(
    "fields",
    [
        {"num_classes": 10},
        {"top_k": 101},
        {"backend": "magic"},
        {"surprise": 1},
        {"schema_version": 2},
        {"file": {"name": "../model.onnx", "sha256": "0" * 64, "size_bytes": 1}},
        {"name": "../a"},
        {"version": 0},
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(tmp_path: Path, fields: dict[str, object]) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, "a", version)
    change(tmp_path / "a" / "2", **fields)
    assert list(scan(tmp_path).refused) == [ModelKey("a", 2)]


@pytest.mark.parametrize("moved", ["a/7", "b/2", "a/02"])
def test_a_version_in_a_folder_that_is_not_its_own_is_refused(tmp_path: Path, moved: str) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, "a", version)
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "2").rename(tmp_path / moved)
    catalogue = scan(tmp_path)
    assert set(catalogue.models) == {ModelKey("a", 1)}
    name, _, number = moved.partition("/")
    assert "describes a version 2, not this folder" in catalogue.refused[ModelKey(name, int(number))].reason


def test_exports_in_progress_and_other_things_are_not_looked_at(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    for name in (".draft-0123", "1.tmp", "latest"):
        (tmp_path / "a" / name).mkdir()
    (tmp_path / "README").write_text("not a model")
    catalogue = scan(tmp_path)
    assert (set(catalogue.models), dict(catalogue.refused)) == ({ModelKey("a", 1)}, {})


def test_an_empty_repository_says_what_to_do(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ManifestError, match=r"no model in .*: \S*python export/to_onnx.py"):
            scan(folder)


def test_a_repository_with_broken_models_only_says_what_is_wrong(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    change(tmp_path / "a" / "1", top_k=0)
    with pytest.raises(ManifestError, match="top_k"):
        scan(tmp_path)


@pytest.mark.parametrize("wanted", [{"names": ("a", "b")}, {"default_model": "b"}])
def test_a_model_that_must_be_there_and_is_not_is_an_error_that_says_what_to_do(
    tmp_path: Path, wanted: dict[str, object]
) -> None:
    tiny.write(tmp_path, "a")
    with pytest.raises(ManifestError, match=r"'b' is not in .*: \S*python export/to_onnx.py b$"):
        scan(tmp_path, **wanted)  # type: ignore[arg-type]


def test_a_mistyped_name_is_noticed(tmp_path: Path) -> None:
    for name in ("flowers", "birds"):
        tiny.write(tmp_path, name)
    for wanted in ({"names": ("flwoers",)}, {"default_model": "flwoers"}):
        with pytest.raises(ManifestError, match=r"export/to_onnx.py flwoers, or did you mean flowers\?$"):
            scan(tmp_path, **wanted)


def test_a_model_that_must_be_there_and_is_broken_is_an_error_that_says_why(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.write(tmp_path, name)
    change(tmp_path / "b" / "1", top_k=0)
    with pytest.raises(ManifestError, match=r"'b' .*top_k"):
        scan(tmp_path, ("a", "b"))


def test_the_default_model_must_be_among_the_models_that_are_served(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.write(tmp_path, name)
    with pytest.raises(ManifestError, match="the default model 'b' is not among the models to serve: a"):
        scan(tmp_path, ("a",), "b")


def test_what_cannot_be_loaded_is_refused_and_older_versions_take_over(tmp_path: Path) -> None:
    for version in (1, 2):
        tiny.write(tmp_path, "a", version)
    tiny.write(tmp_path, "b")
    change(tmp_path / "b" / "1", top_k=0)
    before = scan(tmp_path, default_model="a")
    first = {key: model for key, model in before.models.items() if key.version == 1}
    no_memory = Refusal(Cause.NOT_NOW, "no memory")
    after = before.serving(first, {ModelKey("a", 2): no_memory})
    assert resolved(after) == ("a", 1)
    assert after.refused[ModelKey("a", 2)] == no_memory
    assert "top_k" in after.refused[ModelKey("b", 1)].reason
    assert resolved(before) == ("a", 2)  # unchanged
    assert unknown(before.serving({}, {})).endswith("served here: none")


def test_what_is_computed_of_a_catalogue_is_not_sent_as_a_thread_may_compute_it_while_another_sends(
    tmp_path: Path,
) -> None:
    tiny.write(tmp_path, "a")
    catalogue = scan(tmp_path)
    sent = set(catalogue.__getstate__())
    assert resolved(catalogue) == ("a", 1)
    assert catalogue.candidates.by_key == {}
    assert set(catalogue.__getstate__()) == sent == {each.name for each in fields(catalogue)}
    received = pickle.loads(pickle.dumps(catalogue))
    assert (received, resolved(received)) == (catalogue, ("a", 1))


def test_a_model_has_settings_of_its_own(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    before = scan(tmp_path)
    (tmp_path / "a" / "serving.json").write_text('{"max_batch": 3, "priority": "low"}')
    (tmp_path / "b" / "serving.json").write_text('{"max_batch": 0}')
    after = scan(tmp_path)
    found = after.models[ModelKey("a", 1)]
    assert Settings(max_batch=5, queue_size=7).of(found.settings) == Settings(max_batch=3, queue_size=7)
    assert after.settings(found.manifest).priority == "low"
    assert found.id != before.models[ModelKey("a", 1)].id  # so that it is loaded again
    assert "serving.json: max_batch" in after.refused[ModelKey("b", 1)].reason


def test_any_change_of_a_file_is_noticed(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    seen = [signature(tmp_path)]
    (tmp_path / "a" / "serving.json").write_text("{}")
    seen.append(signature(tmp_path))
    with (tmp_path / "a" / "1" / "model.onnx").open("ab") as file:
        file.write(b"!")
    seen.append(signature(tmp_path))
    (tmp_path / "a" / "1").rename(tmp_path / "a" / "2")
    seen.append(signature(tmp_path))
    assert all(seen.count(one) == 1 for one in seen)
    assert signature(tmp_path) == seen[-1]


def test_the_end_of_a_removal_is_noticed_too(tmp_path: Path) -> None:
    tiny.write(tmp_path)
    version = tmp_path / "tiny" / "1"
    for path in version.iterdir():
        path.unlink()
    emptied = signature(tmp_path)
    version.rmdir()
    assert signature(tmp_path) != emptied


def test_a_repository_is_read_again_when_it_has_changed_and_it_is_time(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    watch = Watch(tmp_path, (), every_s=5, now_s=100)
    tiny.write(tmp_path, "b")
    assert watch.look(104) is None
    found, changed = watch.look(105) or (None, None)
    assert (found, changed) == (scan(tmp_path), {ModelKey("b", 1)})
    assert watch.look(111) is None
    (tmp_path / "b" / "1" / "manifest.json").write_text("{")
    found, changed = watch.look(117) or (None, None)
    assert found
    assert (set(found.refused), changed) == ({ModelKey("b", 1)}, {ModelKey("b", 1)})


def test_a_repository_that_cannot_be_served_is_not_read_again_until_it_changes(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    watch = Watch(tmp_path, ("a",), every_s=1, now_s=0)
    (tmp_path / "a" / "1").rename(tmp_path / "a" / ".gone")
    with pytest.raises(ManifestError, match="'a' is not in"):
        watch.look(1)
    assert watch.look(2) is None
    (tmp_path / "a" / ".gone").rename(tmp_path / "a" / "1")
    assert watch.look(3)


def test_a_repository_that_is_never_to_be_looked_at_is_not(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    watch = Watch(tmp_path, (), every_s=0, now_s=0)
    tiny.write(tmp_path, "b")
    assert watch.look(1e9) is None
    assert set(watch.scan().versions) == {"a", "b"}  # only on request


def test_of_models_that_were_asked_for_later_none_must_be_there(tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        tiny.write(tmp_path, name)
    change(tmp_path / "c" / "1", version="broken")
    watch = Watch(tmp_path, ("a",), every_s=0, now_s=0)
    assert set(watch.scan().versions) == {"a"}
    found = watch.scan(("b", "c", "none", "../a"))
    assert (set(found.versions), set(found.refused), found.default_model) == ({"a", "b"}, {ModelKey("c", 1)}, "a")


def test_what_cannot_be_read_for_a_moment_is_read_again_although_nothing_else_changes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        tiny.write(tmp_path, name)
    path = tmp_path / "b" / "1" / "manifest.json"
    path.rename(tmp_path / "kept")
    first = scan(tmp_path)
    assert first.refused[ModelKey("b", 1)].cause is Cause.NOT_NOW
    watch = Watch(tmp_path, (), every_s=0, now_s=0, whole=False)
    (tmp_path / "kept").rename(path)
    found, _ = watch.look(5) or (None, None)
    assert found
    assert (set(found.versions), found.refused) == ({"a", "b"}, {})
    assert watch.look(1e9) is None  # all of it was read


@pytest.mark.parametrize("names", [(), ("a",)])
def test_a_folder_that_cannot_be_listed_for_a_moment_is_not_taken_for_an_empty_one(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    watch = Watch(tmp_path, names, every_s=1, now_s=0)
    (tmp_path / "a").rename(tmp_path / ".a")
    (tmp_path / "a").symlink_to("a")  # a loop, which not even root can follow
    for now_s in (1, 2):
        if names:
            with pytest.raises(UnreadableError, match="symbolic links"):
                watch.look(now_s)
        else:
            found, _ = watch.look(now_s) or (None, None)
            assert found
            assert found.refused[ModelKey("a", 0)].cause is Cause.NOT_NOW
            assert found.is_refused(ModelKey("a", 1))
            assert set(found.versions) == {"b"}
    (tmp_path / "a").unlink()
    (tmp_path / ".a").rename(tmp_path / "a")
    found, _ = watch.look(3) or (None, None)
    assert found
    assert "a" in found.versions


def test_a_folder_that_cannot_be_listed_keeps_no_other_model_from_being_served(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path / ".trash", "a")
    (tmp_path / ".trash" / "a").rename(tmp_path / ".a")
    for name in ("lost+found", "b"):  # the first is the volume's, and no model's
        (tmp_path / name).symlink_to(name)  # a loop, which not even root can follow
    found = first_scan(tmp_path)
    assert set(found.versions) == {"a"}
    (refused,) = found.refused.items()
    assert str(refused[0]) == "every version of b"
    with pytest.raises(ServiceError, match="every version of b cannot be served for now") as raised:
        found.resolve("b", 7)
    assert raised.value.code is Code.MODEL_UNAVAILABLE
    watch = Watch(tmp_path, (), every_s=1, now_s=0, whole=False)
    tiny.write(tmp_path, "c")
    now, _ = watch.look(1) or (None, None)
    assert now
    assert set(now.versions) == {"a", "c"}


def test_names_that_are_not_utf8_can_be_told(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    (tmp_path / os.fsdecode(b"caf\xe9") / "1").mkdir(parents=True)
    ((key, refusal),) = scan(tmp_path).refused.items()
    assert key == (r"caf\udce9", 1)
    assert refusal.reason.isascii()


def test_a_model_file_that_is_changed_in_place_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    watch = Watch(tmp_path, (), every_s=1, now_s=0)
    (tmp_path / "a" / "1" / "model.onnx").write_bytes(b"another")
    change(tmp_path / "b" / "1", architecture="another")
    tiny.write(tmp_path, "a", 2)
    assert watch.look(1)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == [
        "model.onnx of a version 1 was changed in place"
    ]


def test_a_file_that_gets_its_old_time_back_has_changed(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    model = tmp_path / "a" / "1" / "model.onnx"
    before, seen = model.stat(), signature(tmp_path)
    model.write_bytes(bytes(before.st_size))
    os.utime(model, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert signature(tmp_path) != seen


def test_a_first_scan_goes_on_with_what_can_be_read_and_ends_with_what_never_will(tmp_path: Path) -> None:
    tiny.write(tmp_path, "a")
    tiny.write(tmp_path, "b")
    (tmp_path / "b" / "1" / "manifest.json").unlink()
    (tmp_path / "b" / "1" / "manifest.json").symlink_to("manifest.json")  # to itself
    found = first_scan(tmp_path, ("a", "b"), "b")
    assert [key.name for key in found.models] == ["a"]
    assert found.default_model == "b"
    with pytest.raises(ServiceError) as raised:
        found.resolve("b", None)
    assert raised.value.code is Code.MODEL_UNAVAILABLE
    with pytest.raises(UnreadableError):
        scan(tmp_path, ("a", "b"))
    (tmp_path / "b" / "1" / "manifest.json").unlink()
    (tmp_path / "b" / "1" / "manifest.json").write_text("{}")
    with pytest.raises(ManifestError, match="'b' is not in"):
        first_scan(tmp_path, ("a", "b"))
