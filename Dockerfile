# A workplace in a box: in it, `make repro` works.
#   docker build -t resnets . && docker run --rm resnets         (with a GPU: docker run --gpus all)
# On Linux the usual wheels of torch bring CUDA along, so one image serves both. A smaller one for
# machines without a GPU: --build-arg TORCH_INDEX=URL, the index of CPU wheels (pytorch.org, "get
# started"). Changes survive in a volume: docker run -it -v resnets:/home/dev/resnets resnets bash

FROM python:3.11-slim-bookworm AS tools
# Debian keeps only the newest version of a package in its index, so none is pinned
# hadolint ignore=DL3008
RUN apt-get update \
  && apt-get install --yes --no-install-recommends git make \
  && rm -rf /var/lib/apt/lists/* \
  && useradd --uid 1000 --create-home --shell /bin/bash dev
ARG TORCH_INDEX=""
ENV PIP_EXTRA_INDEX_URL=$TORCH_INDEX PIP_NO_CACHE_DIR=1
USER 1000
WORKDIR /home/dev/resnets

FROM tools
# packages first: a change of the code installs nothing anew
COPY --chown=1000 Makefile pyproject.toml constraints.txt LICENSE THIRD-PARTY.md README.md ./
RUN mkdir src && make setup
COPY --chown=1000 . .
# a checkout that is newer than the cached packages is no reason to install them again
RUN touch .venv/.installed
CMD ["make", "repro"]
