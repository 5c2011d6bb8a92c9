"""The whole service: JPEG over HTTP in, five classes out, by connections and HTTP workers, and what bounds it.

`torch` is the FP16 program with CUDA graphs, `onnx` the FP16 file by ONNX Runtime's CUDA provider, `decoder` the former
with JPEG decoded on the GPU. The load generator runs on the same CPUs; each row has its share.
"""

import sys
from functools import partial
from typing import Any

from docs.measurements.gpu.load import Senders, prepared
from docs.measurements.gpu.meters import measure
from docs.measurements.gpu.part import Context, context
from docs.measurements.gpu.serving import serving

QUEUE = 2048


def main() -> int:
    """Measure the grid; 0: no request failed."""
    ctx = context(("torch", "onnx", "decoder"))
    senders = Senders(ctx.sizes.senders)
    images = [path.read_bytes() for path in ctx.photos()]
    ctx.result.put("photos", {"count": len(images), "mean_bytes": sum(map(len, images)) / len(images)})
    try:
        for workers, connections in ctx.sizes.grid if ctx.variant == "torch" else ctx.sizes.short_grid:
            ctx.result.check(f"{workers} HTTP workers", partial(_step, ctx, senders, images, workers, connections))
    finally:
        senders.close()
    return ctx.result.exit_code()


def flags(ctx: Context) -> dict[str, object]:
    """Return the server's flags for a variant; without a GPU, those of its substitutes on the CPU."""
    found: dict[str, object] = {"max_batch": ctx.sizes.max_batch, "queue_size": QUEUE, "stall_timeout_ms": 120_000}
    if ctx.variant == "onnx":
        cuda = {"providers": "CUDAExecutionProvider,CPUExecutionProvider", "cuda_graph": "true"} if ctx.on_gpu else {}
        return found | {"models": f"{ctx.sizes.network}-fp16"} | cuda
    found["models"] = f"{ctx.sizes.network}-torch-fp16"
    if ctx.variant == "decoder":
        found |= {"decoder": "nvimagecodec" if ctx.on_gpu else "nvimagecodec-cpu", "decode_threads": 32}
    return found


def _step(ctx: Context, senders: Senders, images: list[bytes], workers: int, connections: tuple[int, ...]) -> str:
    known: dict[str, Any] = {"variant": ctx.variant, "http_workers": workers}
    with serving(ctx.repository, flags(ctx) | {"http_workers": workers}, patience_s=ctx.sizes.patience_s) as server:
        photos = prepared(f"{server.url}/classify", images)
        said = [measure(ctx, server, senders, photos, count, on_gpu=ctx.on_gpu, **known) for count in connections]
        return "; ".join(said)


if __name__ == "__main__":
    sys.exit(main())
