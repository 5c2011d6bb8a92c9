"""Metrics of several processes, each of which opens its files as a real process does."""

from pathlib import Path

from server import metrics
from tests.server.running import run_with_metrics


def test_processes_add_up_and_a_restarted_one_goes_on_where_it_was(tmp_path: Path) -> None:
    count = "metrics.requests.labels('a', '1', 'ok').inc(); metrics.pending.set({pending})"
    for identity, pending in (("http-0", 9), ("http-1", 2), ("http-0", 3)):
        run_with_metrics(tmp_path, f"metrics = Metrics('{identity}'); {count.format(pending=pending)}")
    files = {path.name for path in tmp_path.iterdir()}
    lines = run_with_metrics(tmp_path, "print(exposition()[0].decode())").splitlines()
    assert 'serving_requests_total{code="ok",model="a",version="1"} 3.0' in lines
    assert "serving_pending_requests 5.0" in lines  # the newest of each process
    run_with_metrics(tmp_path, "Metrics('http-0')")
    assert {path.name for path in tmp_path.iterdir()} == files


def test_nothing_waits_in_an_engine_that_has_ended_and_what_it_has_counted_stays(tmp_path: Path) -> None:
    metrics.use_directory(tmp_path, ["engine", "supervisor"])
    engine = "metrics = Metrics('engine'); metrics.queue_length.labels('{model}', '1').set(9); metrics.engine_images"
    run_with_metrics(tmp_path, engine.format(model="a") + ".labels('engine', 'all').inc(3)")
    run_with_metrics(tmp_path, "Metrics('supervisor').ended('engine')")
    lines = run_with_metrics(tmp_path, "print(exposition()[0].decode())").splitlines()
    assert not [line for line in lines if line.startswith("serving_queue_length{")]
    assert 'serving_engine_images_total{device="all",engine="engine"} 3.0' in lines
    run_with_metrics(tmp_path, engine.format(model="b"))  # its successor has another model
    lines = run_with_metrics(tmp_path, "print(exposition()[0].decode())").splitlines()
    assert [line for line in lines if line.startswith("serving_queue_length{")] == [
        'serving_queue_length{model="b",version="1"} 9.0'
    ]


def test_what_is_counted_at_one_time_is_counted_as_one_by_one(tmp_path: Path) -> None:
    times = "0.0005, 0.0006, 0.02, 99.0, 0.02"
    program = f"""metrics = Metrics('engine')
metrics.queue.labels('together', '1').add_all([{times}])
for seconds in ({times}):
    metrics.queue.labels('each', '1').add(seconds)
    metrics.queue.labels('client', '1').observe(seconds)
metrics.inference.labels('together', '1').add(0.03, times=3)
for _ in range(3):
    metrics.inference.labels('client', '1').observe(0.03)
print(exposition()[0].decode())"""
    lines = run_with_metrics(tmp_path, program).splitlines()
    of = {model: [line.replace(model, "") for line in lines if f'"{model}"' in line] for model in ("each", "together")}
    expected = [line.replace("client", "") for line in lines if '"client"' in line]
    assert of["together"] == expected
    assert of["each"] == [line for line in expected if "queue" in line]
    assert 'serving_queue_seconds_bucket{le="0.0005",model="",version="1"} 1.0' in expected


def test_the_room_for_metrics_is_taken_at_the_start_and_is_enough(tmp_path: Path) -> None:
    metrics.use_directory(tmp_path, ["http-0"])
    before = {path.name: path.stat().st_blocks for path in tmp_path.iterdir()}
    models = """for n in range(160):
    model = f'some-model-{n}', '1'
    metrics.count_decoding(model, 0.1, 0.1)
    metrics.total.labels(*model).observe(0.1)
    for stage in ('queue', 'decode', 'inference', 'remembered', 'failed'):
        metrics.stages.labels(*model, stage).observe(0.1)
    for code in ('ok', 'deadline_exceeded', 'not_an_image', 'client_closed', 'queue_full', 'overloaded'):
        metrics.requests.labels(*model, code).inc()"""
    run_with_metrics(tmp_path, f"metrics = Metrics('http-0')\n{models}")
    assert {path.name: path.stat().st_blocks for path in tmp_path.iterdir()} == before
    assert sum(before.values()) * 512 >= sum(metrics.room_bytes(0).values())
