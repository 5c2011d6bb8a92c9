#!/usr/bin/env bash
# Everything that only a machine with an NVIDIA GPU can show, part by part, in order of value.
#
#   docs/measurements/gpu.sh                       run all parts that have no result yet
#   docs/measurements/gpu.sh right service         run these, and all whose names begin so: right-onnx, service-decoder
#   docs/measurements/gpu.sh --within 480          begin no part that needs longer, and end within so many seconds
#   docs/measurements/gpu.sh --again service       run this part although it has a result
#   docs/measurements/gpu.sh --rehearse            run every part with small sizes, without a GPU on the CPU
#
# PYTHON (default python3) has PyTorch for CUDA, whose version stays. All other packages, in the versions of
# constraints.txt, are installed beside it in gpu-measurements/venv, from gpu-parts/1, 2, ..., made on another machine by
#
#   python -m docs.measurements.gpu.wheels
#
# These folders may come in any order and one by one. A part waits until the packages that it needs have come, and runs
# after the parts that make its models. Each part writes its result at once to gpu-measurements/NAME.json and its log to
# NAME.log; all of them are also in results.json and logs.tar.gz in --results FOLDER (default $OUT). A part that fails
# or takes longer than its limit is ended, and the next one begins. If the machine is lost, name the parts that remain
# on the next one: the report takes several files of results.
#
# The plan is for a machine that is rented for 15 minutes, start included, without a network. Files reach it in pieces
# of at most 60 MiB, so there are seven calls, each with the next folder; earlier folders may be gone by then:
#
#   folder  seconds to bring it, to unpack and install  then runs                            seconds
#           90 to start the machine
#   1       10 + 15                                     machine to service                       310
#   2       10 + 5                                      build-rest, engines                      110
#   3       10 + 5                                      cores                                     60
#   4, 5    2 x (10 + 5)                                nothing new
#   6       10 + 15                                     right-, service-, engines-onnx           145
#   7       10 + 5                                      service-decoder                           50
#   in all  90 + 125                                                                             675  = 890 s
#
# engines-compiled takes whatever is left. --within of each call is what is left of the 15 minutes by then.
#
# part                plan   limit  proves
# machine             15 s    60 s  card, driver, versions; the roofline of all later figures
# build               40 s    90 s  this machine's PyTorch exports the programs
# right               60 s   110 s  tests marked gpu, torchvision; EfficientNet FP16 and CIFAR over HTTP as the CPU
# safe                75 s   120 s  engine killed, memory gone, device lost: nothing lost, /readyz 503 in between
# service            120 s   170 s  JPEG to top-5, ResNet-50 FP16: connections, HTTP workers, what bounds it
# build-rest          50 s   100 s  and the ONNX files, FP16 and INT8, and the deeper network
# engines             60 s   100 s  PyTorch with CUDA graphs of the roofline, FP32 and FP16, batch 1 to 256
# cores               60 s   100 s  the CPUs alone: EfficientNet-Lite0, ResNet-50 INT8, by engines and HTTP workers
# right-onnx          45 s   110 s  the same by ONNX Runtime's CUDA provider, all 250 photos
# service-onnx        45 s   100 s  the service by ONNX Runtime with CUDA graphs
# service-decoder     50 s    90 s  the service, JPEG decoded on the GPU
# engines-onnx        55 s   120 s  ONNX Runtime's CUDA provider of the roofline
# engines-compiled    90 s   150 s  what torch.compile adds: FP16, batch 1 to 128
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
export PYTHONPATH=$PWD
exec "${PYTHON:-python3}" -m docs.measurements.gpu "$@"
