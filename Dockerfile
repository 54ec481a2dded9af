# An image for NVIDIA GPUs, with everything that pretrains, evaluates and explores:
#   docker build --tag scfusion .
#   docker run --gpus all --ipc host --volume "$PWD":/work scfusion pretrain --config configs/pretrain/demo.yaml
# Not built by us: no Docker engine was at hand. A test keeps versions as in pyproject.toml and constraints.txt.
#
# The CUDA toolkit is in it (`devel`) since DeepSpeed and Triton compile kernels when they are first used; its version is
# that of the build of torch. For another one: --build-arg CUDA=12.8.1 --build-arg TORCH_CUDA=cu128.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-cudnn-devel-ubuntu24.04

ARG TORCH_CUDA=cu130
ENV DEBIAN_FRONTEND=noninteractive PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git pdsh python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/scfusion
ENV PATH=/opt/scfusion/bin:$PATH

# torch first: it is the largest layer, and changes least.
RUN pip install --index-url https://download.pytorch.org/whl/${TORCH_CUDA} torch==2.13.0
COPY . /src
RUN pip install --constraint /src/constraints.txt "/src[pretrain,eval,explore,triton]" \
    && scfusion models

WORKDIR /work
ENTRYPOINT ["scfusion"]
CMD ["--help"]
