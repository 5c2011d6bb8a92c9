# One image for each part: cpu (the default) and gpu serve; export makes the model; loadtest sends load.
#
#   docker build --target cpu --tag resnet-serving:cpu .
#
# Packages have their own layers, which change only with the pins, so that new code takes seconds to build. It builds
# with BuildKit and without, hence no RUN --mount. Docker without BuildKit runs all stages above the target: name one.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# CUDA 13 and cuDNN 9, which onnxruntime-gpu is built for.
ARG CUDA_IMAGE=nvidia/cuda:13.0.2-cudnn-runtime-ubuntu24.04

FROM ${PYTHON_IMAGE} AS requirements
WORKDIR /requirements
COPY constraints.txt pyproject.toml deploy/requirements.py ./
# Further extras of pyproject.toml, such as --build-arg EXTRAS="openvino"; for the export, EXTRAS="timm".
ARG EXTRAS=""
# hadolint ignore=SC2086
RUN python requirements.py tracing grpc ${EXTRAS} >cpu.txt \
    && python requirements.py gpu nvimagecodec tensorrt-rtx tracing grpc ${EXTRAS} --without onnxruntime >gpu.txt \
    && python requirements.py export ${EXTRAS} >export.txt \
    && grep '^torch==' export.txt >torch.txt \
    && python requirements.py loadtest --extras-only >loadtest.txt

FROM ${PYTHON_IMAGE} AS code
WORKDIR /app
COPY models models
COPY export export
COPY server server
COPY loadtest loadtest
COPY deploy/healthcheck.py deploy/pinned.py deploy/
# Compiled here, because the folder is read-only at run time.
RUN python -m compileall -q --invalidation-mode unchecked-hash .

FROM ${PYTHON_IMAGE} AS base
ENV PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp \
    PIP_CONSTRAINT=/opt/requirements/constraints.txt PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# New volumes that are mounted on these folders take their owner from them.
RUN useradd --uid 10001 --user-group --no-create-home serving \
    && install --directory --owner serving --group serving /models /weights
COPY --from=requirements /requirements/constraints.txt /opt/requirements/
COPY LICENSE deploy/notices.py /usr/local/share/licenses/resnet-serving/
WORKDIR /app

FROM base AS cpu
COPY --from=requirements /requirements/cpu.txt /opt/requirements/
RUN pip install --requirement /opt/requirements/cpu.txt \
    && python /usr/local/share/licenses/resnet-serving/notices.py >/usr/local/share/licenses/resnet-serving/THIRD_PARTY_NOTICES.txt
COPY --from=code /app/models models
COPY --from=code /app/server server
COPY --from=code /app/deploy deploy
ENV SERVER_HOST=0.0.0.0 SERVER_REPOSITORY=/models
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 CMD ["python", "-IS", "deploy/healthcheck.py"]
ENTRYPOINT ["python", "-m", "server"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resnet-serving" \
      org.opencontainers.image.description="Serves image classifiers over HTTP with dynamic batching, on CPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"

FROM base AS export
COPY --from=requirements /requirements/torch.txt /requirements/export.txt /opt/requirements/
# The CPU build of torch saves gigabytes; the package index's build is used only if it cannot be downloaded.
RUN pip install --no-deps --index-url https://download.pytorch.org/whl/cpu --retries 0 --timeout 5 \
        --requirement /opt/requirements/torch.txt \
    || echo "the CPU build of torch cannot be downloaded: using the package index's"
RUN pip install --requirement /opt/requirements/export.txt \
    && python /usr/local/share/licenses/resnet-serving/notices.py >/usr/local/share/licenses/resnet-serving/THIRD_PARTY_NOTICES.txt
COPY --from=code /app/models models
COPY --from=code /app/server server
COPY --from=code /app/export export
USER 10001
ENTRYPOINT ["python", "export/to_onnx.py", "--repository", "/models", "--weights-dir", "/weights"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resnet-serving export" \
      org.opencontainers.image.description="Exports trained image classifiers to ONNX graphs that are proven equal" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"

FROM base AS loadtest
COPY --from=requirements /requirements/loadtest.txt /opt/requirements/
RUN pip install --requirement /opt/requirements/loadtest.txt \
    && python /usr/local/share/licenses/resnet-serving/notices.py >/usr/local/share/licenses/resnet-serving/THIRD_PARTY_NOTICES.txt
COPY --from=code /app/export/photos export/photos
COPY --from=code /app/loadtest loadtest
USER 10001
EXPOSE 8089
ENTRYPOINT ["locust", "--locustfile", "loadtest/locustfile.py"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resnet-serving loadtest" \
      org.opencontainers.image.description="Puts the server under load and checks its answers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"

FROM base AS gpu-packages
COPY --from=requirements /requirements/gpu.txt /opt/requirements/
RUN pip install --requirement /opt/requirements/gpu.txt \
    && python /usr/local/share/licenses/resnet-serving/notices.py >/usr/local/share/licenses/resnet-serving/THIRD_PARTY_NOTICES.txt

# The base image has only CUDA; Python is copied with its packages, so both servers run the same interpreter.
FROM ${CUDA_IMAGE} AS gpu
ENV PATH=/usr/local/bin:$PATH PYTHONPATH=/app PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libexpat1 libffi8 libsqlite3-0 libssl3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --user-group --no-create-home serving \
    && install --directory --owner serving --group serving /models
COPY --from=gpu-packages /usr/local /usr/local
RUN ldconfig
WORKDIR /app
COPY --from=code /app/models models
COPY --from=code /app/server server
COPY --from=code /app/deploy deploy
ENV SERVER_HOST=0.0.0.0 SERVER_REPOSITORY=/models SERVER_PROVIDERS=CUDAExecutionProvider,CPUExecutionProvider
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s --retries=3 CMD ["python", "-IS", "deploy/healthcheck.py"]
ENTRYPOINT ["python", "-m", "server"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="resnet-serving" \
      org.opencontainers.image.description="Serves image classifiers over HTTP with dynamic batching, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="${REVISION}"

FROM cpu
