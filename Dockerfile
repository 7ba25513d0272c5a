# zeus-union in a container that works without a network once the weights are in it.
#
#   docker build -t zeus-union .                                                             on a CPU
#   docker build -t zeus-union --build-arg BASE=pytorch/pytorch:2.9.0-cuda12.8-cudnn9-runtime .   on a GPU (docker run --gpus all)
#
#   docker run --rm -v "$PWD:/work" zeus-union zeus segment patient7 --run runs/brats.zeus.zip
ARG BASE=python:3.12-slim
FROM ${BASE}

# The base's torch is kept where it has one; on a plain Python the registry's is installed.
COPY . /opt/zeus-union
RUN python -m pip install --no-cache-dir "/opt/zeus-union[dicom]" \
    && rm -rf /opt/zeus-union

# The embedded profile's weights (213 MB); WEIGHTS= leaves them out, they are fetched when they are needed.
ARG WEIGHTS=lite
ENV ZEUS_HOME=/opt/zeus
RUN if [ -n "${WEIGHTS}" ]; then zeus-instruct fetch --models "${WEIGHTS}"; fi \
    && mkdir -p "${ZEUS_HOME}" && chmod -R a+rX "${ZEUS_HOME}"

WORKDIR /work
CMD ["zeus", "--help"]
