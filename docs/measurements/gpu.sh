#!/usr/bin/env bash
# Build, check and measure everything that a machine with an NVIDIA GPU can show, in one run:
#
#   docs/measurements/gpu.sh [FOLDER]      results go to FOLDER (default gpu-measurements)
#
# The Python that is named by PYTHON (default python3) has PyTorch for CUDA, and keeps its own version of it. What is
# missing beside it is installed into FOLDER/venv: from the package index, or, on a machine that reaches none, from the
# folder of wheels that WHEELS names. Each part that fails is named at the end, and the others run nevertheless.
#
#   NETWORKS  default "resnet50 resnet152"    WEIGHTS  --random-weights where the official ones cannot be had (default)
#   BATCHES   default 1,2,4,8,16,32,64,128,256         SECONDS_EACH  for each figure, default 2
#   HTTP_WORKERS  default "1 2 4 8"           CONNECTIONS  default 1,32,256
#   PHOTOS        JPEGs for the decoders, default export/photos
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1

out=$(realpath -m "${1:-gpu-measurements}")
python=${PYTHON:-python3}
read -ra networks <<<"${NETWORKS:-resnet50 resnet152}"
read -ra weights <<<"${WEIGHTS---random-weights}"
read -ra http_workers <<<"${HTTP_WORKERS:-1 2 4 8}"
repository=$out/model_repository
failed=()

part() { # NAME COMMAND...: its output goes to the screen and to a file
    local name=$1 started=$SECONDS
    shift
    echo "== $name"
    if "$@" 2>&1 | tee "$out/$name.log"; then
        echo "== $name: $((SECONDS - started)) s"
    else
        echo "== $name FAILED"
        failed+=("$name")
    fi
}

install() {
    local from=() site base
    [[ -z ${WHEELS-} ]] || from=(--no-index --find-links "$WHEELS")
    base=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    "$python" -m venv "$out/venv" || return 1
    python=$out/venv/bin/python
    # Not --system-site-packages: where PYTHON is itself of a virtual environment, that would not be its packages.
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    echo "$base" >"$site/base.pth"
    # What is there stays, whatever its version: PyTorch above all, and the ONNX Runtime that was built for this GPU.
    "$python" - >"$out/missing.txt" <<'PYTHON' || return 1
import re, subprocess, sys
from importlib.metadata import distributions

def plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()

there = {plain(found.name) for found in distributions()}
if "onnxruntime-gpu" in there:
    there.add("onnxruntime")  # which is imported by the same name
command = [sys.executable, "deploy/requirements.py", "export", "loadtest", "nvimagecodec", "--without", "locust"]
found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
for line in (*found, "pytest", "httpx", "hypothesis"):
    if plain(re.split(r"[^\w.-]", line)[0]) not in there:
        print(line)
PYTHON
    [[ ! -s $out/missing.txt ]] ||
        "$python" -m pip install --disable-pip-version-check "${from[@]}" --requirement "$out/missing.txt"
}

machine() {
    nvidia-smi || echo "no nvidia-smi"
    nproc
    "$python" - <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version

print("python", sys.version)
for name in ("torch", "torchvision", "onnxruntime", "onnxruntime-gpu", "tensorrt", "cuda-bindings"):
    try:
        print(name, version(name))
    except PackageNotFoundError:
        print(name, "is not there")
PYTHON
}

build() {
    local network status=0
    for network in "${networks[@]}"; do
        "$python" export/to_onnx.py "$network" "${weights[@]}" --repository "$repository" || status=1
        for precision in fp32 fp16; do
            "$python" export/to_torch.py "$network" "${weights[@]}" --precision "$precision" \
                --repository "$repository" || status=1
        done
        "$python" export/quantize.py "$network" --precision fp16 --seconds 0 --repository "$repository" || status=1
        # Three photos calibrate for speed, not for accuracy.
        "$python" export/quantize.py "$network" --precision int8 --target gpu --calibration export/photos --seconds 0 \
            --min-agreement 0 --method minmax --repository "$repository" || status=1
    done
    return $status
}

engines() {
    local network precision status=0
    for network in "${networks[@]}"; do
        for precision in fp32 fp16 int8; do
            "$python" export/to_trt.py "$network" --precision "$precision" --max-batch 256 \
                --repository "$repository" || status=1
        done
    done
    return $status
}

measure_engine() {
    "$python" loadtest/engine.py --repository "$repository" --output "$out" --seconds "${SECONDS_EACH:-2}" \
        --batches "${BATCHES:-1,2,4,8,16,32,64,128,256}"
}

measure_decoders() {
    "$python" docs/measurements/decoders.py nvimagecodec "${PHOTOS:-export/photos}" --repository "$repository" \
        --model "${networks[0]}"
}

measure_service() { # DECODER DECODE_THREADS: the whole way of a JPEG, for the first network and its fastest program
    local workers status=0
    for workers in "${http_workers[@]}"; do
        SERVER_HTTP_WORKERS=$workers SERVER_MAX_BATCH=64 SERVER_QUEUE_SIZE=1024 SERVER_STALL_TIMEOUT_MS=600000 \
            SERVER_DECODER=$1 SERVER_DECODE_THREADS=$2 \
            "$python" loadtest/bench.py --repository "$repository" --model "${networks[0]}-torch-fp16" \
            --connections "${CONNECTIONS:-1,32,256}" --seconds "${SECONDS_EACH:-2}" --warm-up 1 \
            --json "$out/service-$1-$workers-workers.json" || status=1
    done
    return $status
}

mkdir -p "$out"
export PYTHONPATH=$PWD
install >"$out/install.log" 2>&1 || { # in this shell, whose Python it changes
    tail "$out/install.log"
    exit 1
}
part machine machine
part build build
if "$python" -c 'import tensorrt' 2>"$out/tensorrt.log"; then
    part tensorrt engines
else
    echo "== tensorrt is not installed: its engines are left out"
fi
part tests "$python" -m pytest -p no:cacheprovider -m "gpu or torchvision" -ra tests/server/engine tests/server/images \
    tests/models tests/export
part engine measure_engine
part decoders measure_decoders
part service measure_service pillow 4
part service-decoding-on-the-gpu measure_service nvimagecodec 32
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}; what they said is in $out/NAME.log" >&2
    exit 1
fi
