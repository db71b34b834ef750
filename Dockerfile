# Rookery's three images. docs/images.md says what each is for, how to build them, and what was proven without a registry.
#   cpu   every verb on a CPU           docker build --target cpu .
#   beam  Dataflow's workers            docker build --target beam .
#   tpu   training on a Cloud TPU VM    docker build --target tpu .
# The bases are named by tag, because a tag is what a reader knows; cloudbuild.yaml can name them by digest (_PYTHON_IMAGE, _BEAM_IMAGE).
ARG PYTHON_IMAGE=python:3.11-slim-bookworm
ARG BEAM_IMAGE=apache/beam_python3.11_sdk:2.77.0

# What cpu, tpu and the wheel start from: Python, the one system library that a package wants and the base may lack, and a home that
# any user can write to, as `docker run --user` gives a number that no file of the image knows.
FROM ${PYTHON_IMAGE} AS start
# rasterio's wheel loads the system's libexpat. A pinned version would be gone from Debian with its next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends libexpat1 \
  && rm -rf /var/lib/apt/lists/* \
  && mkdir --mode=1777 /home/rookery
# USER: Python asks for the user's name, which a number has not.
ENV HOME=/home/rookery \
  USER=rookery \
  PATH=/opt/rookery/bin:$PATH \
  PIP_DISABLE_PIP_VERSION_CHECK=1 \
  PIP_NO_CACHE_DIR=1 \
  PYTHONUNBUFFERED=1
WORKDIR /rookery
COPY requirements/build.txt requirements/
# Source packages are built with these, not with what the index has today.
RUN python3 -m venv /opt/rookery \
  && pip install --no-cache-dir --require-hashes -r requirements/build.txt

# Rookery itself, as a wheel, so that no image holds the sources twice.
FROM start AS wheel
COPY . .
RUN pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir /wheel .

# The packages are a layer of their own, and nothing of the code is above them: a change of code sends a few hundred kilobytes.
FROM start AS cpu-packages
COPY requirements/base.txt requirements/
RUN pip install --no-cache-dir --require-hashes --no-build-isolation -r requirements/base.txt

FROM start AS tpu-packages
COPY requirements/tpu.txt requirements/
# --no-deps: the set is complete, and pip would refuse it for want of the `tensorflow` that requirements/tpu_overrides.txt leaves out.
RUN pip install --no-cache-dir --require-hashes --no-deps --no-build-isolation -r requirements/tpu.txt

FROM cpu-packages AS cpu
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
# `--config tpu_train/configs/NAME.yaml` reads as in a checkout.
COPY tpu_train/configs tpu_train/configs
# By number: an orchestrator that refuses root cannot look up a name.
USER 10001:10001
HEALTHCHECK --interval=1m --timeout=10s CMD ["rookery", "--help"]
CMD ["rookery", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rookery cpu" \
  org.opencontainers.image.description="From survey mosaics to counts: every verb, on a CPU" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"

# tensorflow-tpu in place of tensorflow, and the libtpu it was built for. What finds the chips is set when Rookery starts
# (survey/tpu_environment.py), since the same image runs on every generation and on a pod's worker 0.
# It stays root: the chips are device files of the VM's root, and mapping them (VFIO) locks memory beyond a user's limit. The container
# is started with --privileged on a VM that runs nothing else, so a number here would promise a wall that is not there.
FROM tpu-packages AS tpu
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
COPY tpu_train/configs tpu_train/configs
HEALTHCHECK --interval=1m --timeout=10s CMD ["rookery", "--help"]
CMD ["rookery", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rookery tpu" \
  org.opencontainers.image.description="Training on a Cloud TPU VM" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"

# Dataflow starts this image's own entrypoint, /opt/apache/beam/boot, and hands it the worker's arguments: no ENTRYPOINT and no CMD here.
# boot makes a virtual environment that sees the system's packages, so they go there and not into /opt/rookery. It stays root, as
# the base is: boot writes under /opt/apache/beam, and Dataflow's runner mounts its own folders for root.
FROM ${BEAM_IMAGE} AS beam
WORKDIR /rookery
COPY requirements/build.txt requirements/beam.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/build.txt \
  && pip install --no-cache-dir --require-hashes --no-build-isolation -r requirements/beam.txt
COPY --from=wheel /wheel /wheel
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
HEALTHCHECK --interval=1m --timeout=10s CMD ["rookery", "--help"]
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="rookery beam" \
  org.opencontainers.image.description="Dataflow workers for rookery shard and rookery predict" \
  org.opencontainers.image.version="${VERSION}" \
  org.opencontainers.image.revision="${REVISION}"
