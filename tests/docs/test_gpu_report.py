"""Results become tables, with what is still missing to reach the goal."""

from typing import Any

from docs.measurements.gpu.report import goal, report

STEP: dict[str, Any] = {
    "http_workers": 8,
    "connections": 128,
    "images_per_s": 4000.0,
    "p50_ms": 30.1,
    "p99_ms": 61.0,
    "mean_batch": 31.5,
    "cpu_ms": {"http": 2.5, "engine": 0.2, "sender": 0.3},
    "gpu_busy": 0.41,
    "bound_by": "the CPUs, most of them for http",
}


def test_the_stage_that_costs_most_is_said_to_be_too_dear_by_how_much() -> None:
    slower = STEP | {"images_per_s": 10.0, "cpu_ms": {"http": 99.0}}
    said = goal([slower, STEP], 16)
    assert said.startswith("Fastest: 4000 images/s, bound by the CPUs, most of them for http.")
    assert "10,000/s leave 1.60 on 16 CPUs for all of 3.00: with all else as it is, http may cost 1.10." in said
    assert goal([STEP | {"cpu_ms": {"http": 1.0}}], 16).endswith("the CPUs suffice.")
    assert goal([STEP | {"cpu_ms": {"http": 1.7, "engine": 1.7}}], 16).endswith("more than http has to be cheaper.")


def test_every_part_that_has_a_result_is_in_the_report() -> None:
    results: dict[str, Any] = {
        "machine": {"verdict": "passed", "seconds": 5, "checks": {}, "gpu": "H100", "cpus": 16, "python": "3.12.3 (x)"},
        "right": {
            "verdict": "failed",
            "seconds": 61,
            "checks": {"tests": "RuntimeError: two failed", "server": "ok: fine"},
            "agreement": [{"model": "one", "images": 250, "same_class": 249, "right": 224}],
        },
        "safe": {"verdict": "failed", "seconds": 2},  # it ended before its first check
        "service": {"verdict": "passed", "seconds": 100, "checks": {}, "steps": [STEP]},
        "engines": {
            "verdict": "out of time",
            "seconds": 100,
            "checks": {},
            "roofline": {"copy_gb_per_s": 3000},
            "rows": [
                {
                    "model": "m",
                    "settings": {},
                    "batch": 1,
                    "images_per_s": 1.0,
                    "p50_ms": 1,
                    "p99_ms": 2,
                    "of_bound": 0.8,
                }
            ],
        },
    }
    text = report(results)
    assert text.startswith("H100, 16 CPUs, Python 3.12.3\n")
    assert "| right | failed | 61 | 60 | tests |" in text
    assert "| safe | failed | 2 | 75 |  |" in text
    assert "| one | 250 | 249 | 224 |" in text
    assert "| 8 | 128 | 4000.0 | 30.1 | 61.0 | 31.5 | 0.2 | 2.5 | 0.3 | 41% | the CPUs, most of them for http |" in text
    assert "| m | {} | 1 | 1.0 | 1 | 2 | 80% |" in text
