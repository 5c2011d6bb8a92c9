"""Results of made-up runs, one of which failed."""

from datetime import UTC, datetime

from loadtest.compare.rows import Around, Measured, Row


def row(
    server: str, variant: str, images_per_s: float, *, connections: int = 8, number: int = 0, errors: int = 0
) -> Row:
    return Row(
        work="tiny",
        server=server,
        variant=variant,
        connections=connections,
        round=number,
        run=datetime(2026, 1, 1, tzinfo=UTC),
        seconds=1,
        baseline=Around(images_per_s=400, cpu_ms=5, lone_ms=6),
        measured=Measured(
            images=10,
            images_per_s=images_per_s,
            p50_ms=10,
            p95_ms=18,
            p99_ms=20,
            mean_batch=1,
            server_cpu_ms=8,
            client_cpu_ms=0.1,
            client_share=0.05,
            server_share=0.7,
            others_share=0.25,
            errors=errors,
            faults={"status 503": errors} if errors else {},
            memory_mb=200,
            processes=3,
            start_s=1.5,
            same_class=1,
        ),
    )


ROWS = [
    row("ours", "onnx", 200),
    row("ours", "openvino", 100),
    row("mosec", "plain", 110),
    row("mosec", "tuned", 120),
    row("mosec", "tuned", 150, number=1),
    row("mosec", "tuned", 140, number=2),
    row("litserve", "plain", 90, errors=2),
    row("litserve", "plain", 80, number=1, errors=1),
]
FAILED = ROWS[-1].model_copy(update={"measured": None, "failure": "it does not start", "variant": "tuned"})
