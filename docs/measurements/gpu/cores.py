"""The CPUs without the GPU: images a second by engines and HTTP workers."""

import sys
from functools import partial

from docs.measurements.gpu.load import Senders, prepared
from docs.measurements.gpu.meters import measure
from docs.measurements.gpu.part import Context, context
from docs.measurements.gpu.serving import serving


def main() -> int:
    """Measure; 0: no request failed."""
    ctx = context(("all",))
    senders = Senders(min(2, ctx.sizes.senders))
    images = [path.read_bytes() for path in ctx.photos()[:50]]
    try:
        for engines, workers in ctx.sizes.cores:
            for model in ("efficientnet_lite0", f"{ctx.sizes.network}-int8"):
                name = f"{model}, {engines} engines, {workers} HTTP workers"
                ctx.result.check(name, partial(_step, ctx, senders, images, model, engines, workers))
    finally:
        senders.close()
    return ctx.result.exit_code()


def _step(ctx: Context, senders: Senders, images: list[bytes], model: str, engines: int, workers: int) -> str:
    flags = {"models": model, "engines": engines, "http_workers": workers}
    with serving(ctx.repository, flags, {"CUDA_VISIBLE_DEVICES": ""}, patience_s=ctx.sizes.patience_s) as server:
        photos = prepared(f"{server.url}/classify", images)
        return measure(ctx, server, senders, photos, ctx.sizes.core_connections, on_gpu=False, **flags)


if __name__ == "__main__":
    sys.exit(main())
