# cliptune in a container, and the image of deploy/rayjob.yaml:
#
#   docker build -t cliptune .
#   docker run --shm-size 4g -v "$PWD:/work" --user "$(id -u)" cliptune demo
#
# For GPUs, with PyPI's torch, which brings CUDA 13 itself, 3 GB of it; the host has the driver:
#
#   docker build -t cliptune --build-arg INDEX=https://pypi.org/simple .
#   docker run --gpus all ... cliptune demo
#
# Where the rest of CUDA is wanted too, add --build-arg BASE=nvidia/cuda:13.0.2-runtime-ubuntu24.04,
# or another image with apt and Python 3.11 or newer, its own or apt's.
ARG BASE=python:3.11-slim

FROM ${BASE} AS python
# KubeRay's probes call wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends wget $(command -v python3 > /dev/null || echo python3-venv) \
    && rm -rf /var/lib/apt/lists/*
ENV PATH=/opt/cliptune/bin:$PATH

FROM python AS build
# Where else torch is looked for: this index has a build without CUDA, which pip prefers.
ARG INDEX=https://download.pytorch.org/whl/cpu
RUN python3 -m venv /opt/cliptune
WORKDIR /checkout
COPY requirements.lock .
RUN pip install --no-cache-dir --extra-index-url "$INDEX" -r requirements.lock
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel . \
    && pip install --no-cache-dir --no-deps /wheel/*.whl

FROM python
COPY --from=build /opt/cliptune /opt/cliptune
RUN groupadd --gid 10001 cliptune && useradd --uid 10001 --gid 10001 --create-home cliptune \
    && install -d -o cliptune -g cliptune /work
USER 10001:10001
WORKDIR /work
# Caches, too, lie in what is mounted there, whoever the user is.
ENV HOME=/work
# KubeRay gives a command of its own in place of both.
ENTRYPOINT ["cliptune"]
CMD ["--help"]
