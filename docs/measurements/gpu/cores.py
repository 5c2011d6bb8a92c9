"""The CPUs without the GPU: images a second against HTTP workers, and engines where the server can have several."""

import sys
from functools import partial

from docs.measurements.gpu.load import Senders, prepared
from docs.measurements.gpu.meters import measure
from docs.measurements.gpu.part import Context, context
from docs.measurements.gpu.serving import serving
from server.settings import Settings

ENGINES = (1, 2, 4)


def main() -> int:
    """Measure; 0: no request failed."""
    ctx = context(("all",))
    senders = Senders(min(2, ctx.sizes.senders))
    images = [path.read_bytes() for path in ctx.photos()[:100]]
    engines: tuple[int | None, ...] = ENGINES if "engines" in Settings.model_fields else (None,)
    if engines == (None,):
        ctx.result.put("engines", "this server has one")
    try:
        for model in ("efficientnet_lite0", f"{ctx.sizes.network}-int8"):
            for count in engines:
                for workers in ctx.sizes.cores:
                    name = f"{model}, {workers} HTTP workers" + (f", {count} engines" if count else "")
                    ctx.result.check(name, partial(_step, ctx, senders, images, model, workers, count))
    finally:
        senders.close()
    return ctx.result.exit_code()


def _step(ctx: Context, senders: Senders, images: list[bytes], model: str, workers: int, engines: int | None) -> str:
    flags: dict[str, object] = {"models": model, "http_workers": workers}
    if engines:
        flags["engines"] = engines
    with serving(ctx.repository, flags, {"CUDA_VISIBLE_DEVICES": ""}) as server:
        photos = prepared(f"{server.url}/classify", images)
        known = {"model": model, "http_workers": workers, "engines": engines or 1}
        return measure(ctx, server, senders, photos, ctx.sizes.core_connections, **known)


if __name__ == "__main__":
    sys.exit(main())
