"""`docs/measurements/gpu.sh`: run the parts in order of value, each to its own limit, until the time is up.

This program needs nothing but Python; it first installs what the parts need, from a bundle. Each result is on disk at
once (`<part>.json`), and so is each log. Wherever the program was cut off, it does not run a part with a result again.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from docs.measurements.gpu import bundle, install, plan
from docs.measurements.gpu.plan import Part, Verdict

ROOT = Path(__file__).parents[3]
GRACE_S = 5.0
"""From SIGTERM to SIGKILL, for a part that has to end. A part's limit leaves so much of `--within`."""
REHEARSAL_LIMIT_S = 1800.0
"""Of each part on a CPU, which takes long for what a GPU does at once."""
RESULTS, LOGS = "results.json", "logs.tar.gz"


@dataclass(frozen=True, slots=True)
class Run:
    """Where and how the parts run."""

    folder: Path
    python: Path
    rehearse: bool
    results: Path | None
    """The folder to which all results and logs are copied after every part."""

    def done(self) -> dict[str, Any]:
        """Return all results so far, by part."""
        found = {part.name: self.folder / f"{part.name}.json" for part in plan.PARTS}
        return {name: json.loads(path.read_text()) for name, path in found.items() if path.exists()}


def main() -> int:
    """Run all parts that are ready; 0: each part that has a result has passed."""
    options = _parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # ends the part under way first
    started_s = time.monotonic()
    options.folder.mkdir(parents=True, exist_ok=True)
    python = install.environment(options.folder / "venv")
    whole, problems = bundle.unpack(options.parts, options.folder / "bundle")
    installed, refused = install.install(python, [path for path in whole if path.suffix == ".whl"])
    print(f"== installed in {time.monotonic() - started_s:.0f} s: {', '.join(installed) or 'nothing'}", flush=True)
    for problem in (*problems, *refused):  # parts that do not need these still run
        print(f"== {problem}", flush=True)
    run = Run(options.folder, python, options.rehearse, options.results)
    for name in options.again:
        (options.folder / f"{name}.json").unlink(missing_ok=True)
    try:
        ready, waiting = plan.choose(options.parts_asked, run.done(), install.distributions(python))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    publish(run)  # what is kept from an earlier call may be wanted from this one, too
    for part in ready:
        left_s = options.within - GRACE_S - (time.monotonic() - started_s)
        limit_s = plan.fits(part, left_s)
        if options.rehearse and left_s > 0:  # seconds are those of a GPU
            limit_s = min(REHEARSAL_LIMIT_S, left_s)
        if limit_s is None:
            waiting[part.name] = f"takes {part.seconds} s, and {max(0.0, left_s):.0f} s are left"
            continue
        run_part(run, part, limit_s)
        publish(run)
    for name, reason in waiting.items():
        print(f"== {name} {reason}")
    print(summary(run.done()))
    return 0 if all(result["verdict"] == "passed" for result in run.done().values()) else 1


def run_part(run: Run, part: Part, limit_s: float, command: Callable[[Run, Part], list[str]] | None = None) -> Verdict:
    """Run one part in processes of its own, which all end with it, and write its result."""
    print(f"== {part.name}, at most {limit_s:.0f} s", flush=True)
    started_s = time.monotonic()
    rows, log = run.folder / f"{part.name}.rows.json", run.folder / f"{part.name}.log"
    rows.unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603
            (command or _command)(run, part), cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, process_group=0,  # in this session, so whatever ends the session ends it, too
        )  # fmt: skip
        try:
            verdict: Verdict = "failed" if process.wait(limit_s) else "passed"
        except subprocess.TimeoutExpired:
            verdict = "out of time"
            _signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()
    result = {
        "verdict": verdict,
        "seconds": round(time.monotonic() - started_s, 1),
        "rehearsal": run.rehearse,
        **(json.loads(rows.read_text()) if rows.exists() else {}),
    }
    _write(run.folder / f"{part.name}.json", json.dumps(result, indent=1))
    rows.unlink(missing_ok=True)
    if verdict != "passed":
        print(*log.read_text(errors="replace").splitlines()[-15:], sep="\n")
    print(f"== {part.name} {verdict} after {result['seconds']} s", flush=True)
    return verdict


def publish(run: Run) -> None:
    """Copy all results into one file, and all logs into another, in the folder that the user named."""
    if run.results is None:
        return
    run.results.mkdir(parents=True, exist_ok=True)
    _write(run.results / RESULTS, json.dumps(run.done(), indent=1))
    packed = run.results / f".{LOGS}"
    with tarfile.open(packed, "w:gz") as archive:
        for log in sorted(run.folder.glob("*.log")):
            archive.add(log, log.name)
    packed.rename(run.results / LOGS)


def summary(done: dict[str, Any]) -> str:
    """Return a line for each part that has a result, and one for each of its checks that failed."""
    lines = []
    for name, result in done.items():
        verdict: Verdict = result["verdict"]
        match verdict:
            case "passed":
                mark = "✓"
            case "failed":
                mark = "✗"
            case "out of time":
                mark = "…"
            case _:
                assert_never(verdict)
        lines.append(f"{mark} {name}: {verdict}, {result['seconds']} s")
        checks = result.get("checks", {})
        lines += [f"    {check}: {text}" for check, text in checks.items() if not text.startswith("ok")]
    return "\n".join(lines)


def _command(run: Run, part: Part) -> list[str]:
    command = [str(run.python), "-m", f"docs.measurements.gpu.{part.module}", *part.arguments]
    command += ["--folder", str(run.folder), "--rows", str(run.folder / f"{part.name}.rows.json")]
    return [*command, "--rehearse"] if run.rehearse else command


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _write(path: Path, text: str) -> None:
    """Write a file whole or not at all: the machine may disappear at any moment."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text + "\n")
    scratch.rename(path)


def _parse() -> argparse.Namespace:
    out = os.environ.get("OUT")
    parser = argparse.ArgumentParser(prog="gpu.sh", description=__doc__)
    parser.add_argument(
        "parts_asked", nargs="*", metavar="PART", help="if not all: " + ", ".join(p.name for p in plan.PARTS)
    )
    parser.add_argument("--rehearse", action="store_true", help="small sizes, on the CPU where there is no GPU")
    parser.add_argument(
        "--within",
        type=float,
        default=float("inf"),
        metavar="S",
        help="begin no part that needs longer, and end by then",
    )
    parser.add_argument(
        "--again", action="append", default=[], metavar="PART", help="run this part although it has a result"
    )
    parser.add_argument("--folder", type=lambda text: Path(text).resolve(), default=ROOT / "gpu-measurements",
                        metavar="FOLDER", help="for results, logs, models and packages")  # fmt: skip
    parser.add_argument(
        "--parts", type=Path, default=ROOT / "gpu-parts", metavar="FOLDER", help="the folder that wheels.py wrote"
    )
    parser.add_argument("--results", type=Path, default=Path(out) if out else None, metavar="FOLDER",
                        help=f"where {RESULTS} and {LOGS} go as well (default $OUT)")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
