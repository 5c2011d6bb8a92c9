"""The command, as a person calls it, against a real server."""

import asyncio
import csv
import io
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from resnet_serving_client import Client
from resnet_serving_client.__main__ import in_order
from tests import processes, tiny
from tests.server.running import PATIENCE_S, ROOT, GatedServer, RunningServer, red_image, until


@pytest.fixture(scope="module")
def seeing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """Serves `seeing`, which has features and activation maps, and `sure`, which is calibrated."""
    repository = tmp_path_factory.mktemp("repository")
    tiny.write(repository, "seeing", extras=True)
    tiny.calibrate(repository, tiny.write(repository, "sure"))
    with RunningServer(repository) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 01.png to 20.png, of classes 1 to 20, and a broken one."""
    for red in range(1, 21):
        (tmp_path / f"{red:02}.png").write_bytes(red_image(red))
    (tmp_path / "broken.png").write_bytes(red_image(1)[:-30])
    return tmp_path


def command(url: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "resnet_serving_client", "--url", url, *map(str, arguments)]


def classify(server: RunningServer, *arguments: str | Path, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(server.url, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, **how
    )


def test_one_image_is_printed_with_its_five_classes(server: RunningServer, folder: Path) -> None:
    done = classify(server, folder / "07.png")
    assert (done.returncode, done.stderr) == (0, "")
    head, *classes = done.stdout.splitlines()
    assert head.startswith(f"{folder}/07.png, classified by tiny in ")
    assert len(classes) == 5
    assert classes[0].split()[1:] == ["red", "7"]


def test_a_folder_is_printed_in_order_and_what_fails_spares_the_others(server: RunningServer, folder: Path) -> None:
    done = classify(server, "--format", "json", folder, folder / "none.png")
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 1
    assert [answer["predictions"][0]["class_id"] for answer in answers[:20]] == list(range(1, 21))
    assert [answer["error"]["code"] for answer in answers[20:]] == ["broken_image", None]
    broken, missing = done.stderr.splitlines()
    assert broken.startswith(f"{folder}/broken.png: ")
    assert "(broken_image)" in broken
    assert missing == f"{folder}/none.png: No such file or directory"


def test_no_more_images_are_in_flight_than_may_be() -> None:
    started, ended = 0, 0

    async def act(name: str) -> str:
        nonlocal started, ended
        started += 1
        assert started - ended <= 3
        await asyncio.sleep(0)
        ended += 1
        return name

    async def scenario() -> list[str]:
        return [name async for name in in_order(act, map(str, range(20)), 3)]

    assert asyncio.run(scenario()) == [str(number) for number in range(20)]


def test_csv_has_a_row_for_each_class(server: RunningServer, folder: Path) -> None:
    done = classify(server, "--format", "csv", "--top-k", "2", f"{folder}/0*.png", "--in-flight", "3")
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0, done.stderr
    assert len(rows) == 18
    assert [int(row["class_id"]) for row in rows[::2]] == list(range(1, 10))
    assert (rows[0]["image"], rows[0]["rank"], rows[0]["model"]) == (f"{folder}/01.png", "1", "tiny")


def test_csv_says_which_images_are_of_a_known_class_where_that_was_asked(seeing: RunningServer, folder: Path) -> None:
    (folder / "60.png").write_bytes(red_image(60))
    asked = ("--format", "csv", "--model", "sure", "--top-k", "2", folder / "20.png", folder / "60.png")
    done = classify(seeing, "--reject", *asked)
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert done.returncode == 0, done.stderr
    assert [(row["rank"], row["known"]) for row in rows] == [
        ("1", "false"),
        ("2", "false"),
        ("1", "true"),
        ("2", "true"),
    ]
    assert "known" not in classify(seeing, *asked).stdout


def test_a_name_that_the_output_cannot_represent_spares_the_others(seeing: RunningServer, tmp_path: Path) -> None:
    unusual = [tmp_path / name for name in ("\u65e5\U0001f600.png", os.fsdecode(b"\xff.png"))]
    for path in unusual:
        path.write_bytes(red_image(1))
    table = tmp_path / "features.parquet"
    for encoding in ("ascii", "utf-8"):
        how = {**os.environ, "PYTHONIOENCODING": encoding}
        done = classify(seeing, "--format=json", "--model=seeing", "--features", table, *unusual, env=how)
        assert (done.returncode, done.stderr) == (0, "")
        assert [json.loads(line)["image"] for line in done.stdout.splitlines()] == [str(path) for path in unusual]
        assert classify(seeing, "--model=seeing", *unusual, env=how).returncode == 0
    assert parquet.read_table(table)["image"].to_pylist()[1].endswith("\\udcff.png")


def test_choices_reach_the_service(server: RunningServer, folder: Path) -> None:
    done = classify(
        server, "--format=json", "--model=tiny", "--version=1", "--top-k=3", "--crops=10", folder / "01.png"
    )
    answer = json.loads(done.stdout)
    assert (answer["version"], len(answer["predictions"])) == (1, 3)
    assert "(unknown_model)" in classify(server, "--model", "none", folder / "01.png").stderr


def test_standard_input_is_an_image(server: RunningServer) -> None:
    done = subprocess.run(
        command(server.url, "-"), cwd=ROOT, input=red_image(9), capture_output=True, timeout=PATIENCE_S
    )
    assert done.returncode == 0, done.stderr
    assert b"red 9" in done.stdout


def test_an_address_is_an_image(server: RunningServer) -> None:
    done = classify(server, f"{server.url}/static/icon.svg")  # it is downloaded, but is not an image
    assert (done.returncode, "(not_an_image)" in done.stderr) == (1, True)


def all_of(terminal: BinaryIO) -> bytes:
    """Everything written to it until its other end is closed, which Linux reports as an error."""
    read = b""
    with suppress(OSError):
        while part := terminal.read(1 << 16):
            read += part
    return read


def test_progress_is_shown_on_a_terminal_only(server: RunningServer, folder: Path) -> None:
    assert "images/s" not in classify(server, folder).stderr
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    with os.fdopen(ours, "rb", buffering=0) as terminal, ThreadPoolExecutor(1) as aside:
        shown = aside.submit(all_of, terminal)
        try:
            done = subprocess.run(
                command(server.url, folder), cwd=ROOT, stdout=subprocess.PIPE, stderr=theirs, text=True
            )
        finally:
            os.close(theirs)
        assert b"0/21 [" in shown.result()
    assert done.stdout.count("classified by") == 20


def test_a_server_that_dies_spares_what_was_answered(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    repository = tmp_path_factory.mktemp("slow")
    tiny.write(repository)
    with (
        GatedServer(repository, max_batch=1) as server,
        server.hold(20),
        processes.started(
            command(server.url, "--in-flight", "4", folder),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process,
    ):
        assert process.stdout
        assert process.stderr
        assert "01.png" in process.stdout.readline()
        server.process.kill()
        out, err = process.stdout.read(), process.stderr.read()  # `communicate` loses what `readline` has read ahead
        assert process.wait(PATIENCE_S) == 1
        assert out.count("classified by") + 1 + err.count("does not answer") == 21


def test_an_interrupt_ends_it(folder: Path, server: RunningServer) -> None:
    os.kill(server.pid("engine"), signal.SIGSTOP)
    try:
        with processes.started(command(server.url, folder), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            until(lambda: server.metric("serving_pending_requests") > 0)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE_S)
            assert (process.returncode, err) == (130, "interrupted\n")
    finally:
        os.kill(server.pid("engine"), signal.SIGCONT)


def test_a_reader_that_has_enough_ends_it(server: RunningServer, folder: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", '"$@" | head -n 1', "-", *command(server.url, folder, *[folder] * 20)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith(f"{folder}/01.png")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--crops", "3", "x"],
        ["--top-k", "0", "x"],
        ["--version", "-1", "x"],
        ["--coverage", "1", "x"],
        ["--in-flight", "0", "x"],
        ["--format", "xml", "x"],
        ["--deadline-s", "nan", "x"],
    ],
)
def test_wrong_arguments_are_told_of(server: RunningServer, wrong: list[str]) -> None:
    done = classify(server, *wrong)
    assert (done.returncode, done.stdout) == (2, "")
    assert "usage: classify" in done.stderr


def test_no_server_is_one_line(folder: Path) -> None:
    done = subprocess.run(
        command("http://127.0.0.1:9", folder / "01.png"), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "127.0.0.1:9 does not answer" in done.stderr


def test_features_are_written_in_the_order_of_the_images(seeing: RunningServer, folder: Path, tmp_path: Path) -> None:
    files = [tmp_path / "made" / "features.npy", tmp_path / "features.parquet"]
    for file in files:
        done = classify(seeing, "--model", "seeing", "--format", "json", "--features", file, folder)
        assert done.returncode == 1  # one of them is broken
        assert "features" not in json.loads(done.stdout.splitlines()[0])
    rows = np.load(files[0])
    assert (rows.dtype, rows[:20].tolist()) == (np.float32, [[red, 0, 0] for red in range(1, 21)])
    assert np.isnan(rows[20]).all()
    table = parquet.read_table(files[1]).to_pylist()
    assert [(Path(row["image"]).name, row["model"], row["features"]) for row in table] == [
        (f"{red:02}.png", "seeing", [red, 0, 0]) for red in range(1, 21)
    ]


def test_heat_maps_of_one_name_are_numbered_as_the_images_are_given(
    seeing: RunningServer, folder: Path, tmp_path: Path
) -> None:
    (folder / "more").mkdir()
    os.mkfifo(folder / "more/07.png")  # the first image, whose bytes come last
    images = [folder / "more/07.png", folder / "07.png"]
    arguments = command(seeing.url, "--model", "seeing", "--heatmaps", tmp_path / "maps", *images)
    wide = io.BytesIO()
    Image.new("RGB", (64, 32)).save(wide, "PNG")
    with processes.started(arguments, cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        until(lambda: (tmp_path / "maps/07-2.png").exists())
        (folder / "more/07.png").write_bytes(wide.getvalue())
        printed, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0
    assert [line.partition(",")[0] for line in printed.splitlines() if "classified" in line] == [*map(str, images)]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["07-2.png", "07.png"]
    for name, size in [("07", (64, 32)), ("07-2", (32, 32))]:
        with Image.open(tmp_path / f"maps/{name}.png") as picture:
            assert picture.size == size


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--features", "features.txt"], "features.txt is neither"),
        (["--features", "features.npy"], "unsupported_by_model"),
        (["--features", "/dev/null/folder/features.npy"], "/dev/null/folder/features.npy: Not a directory"),
        (["--features", "FOLDER.npy"], "FOLDER.npy: it cannot be written"),
        (["--heatmaps", "/dev/null/maps"], "/dev/null/maps: Not a directory"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(
    server: RunningServer, folder: Path, arguments: list[str], reason: str
) -> None:
    (folder / "FOLDER.npy").mkdir()
    arguments = [argument.replace("FOLDER", str(folder / "FOLDER")) for argument in arguments]
    done = classify(server, *arguments, folder / "07.png")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert reason in line


def test_programs_get_arrays_of_the_same_pass(seeing: RunningServer) -> None:
    with Client(seeing.url) as client:
        answer = client.classify(red_image(9), model="seeing", include=["logits", "features", "heatmap"])
        embedding = client.embed(red_image(9), model="seeing")
        plain = client.classify(red_image(9), model="seeing")
    assert answer.features is not None
    assert answer.logits is not None
    assert answer.heatmap is not None
    assert answer.features.dtype == np.float32
    assert answer.features.tolist() == embedding.features.tolist() == [9, 0, 0]
    assert int(answer.logits.argmax()) == answer.predictions[0].class_id == answer.heatmap.class_ids[0] == 9
    assert (answer.heatmap.maps.shape, tuple(answer.heatmap.box)) == ((5, 32, 32), (0, 0, 1, 1))
    assert (plain.logits, plain.features, plain.heatmap) == (None, None, None)
