# CPU:   docker build -t ostlight .
# CUDA:  docker build -t ostlight:cuda --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# Run:   docker run --rm -v "$PWD:/work" ostlight select my_config.yaml
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV DEBIAN_FRONTEND=noninteractive PATH=/opt/ostlight/bin:$PATH
# A compiler and Python's headers: Triton compiles its launchers when a kernel is first used.
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv python3-dev gcc \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/ostlight
WORKDIR /src
COPY . .
RUN pip install --no-cache-dir -c constraints.txt --index-url ${TORCH_INDEX} --extra-index-url https://pypi.org/simple torch \
    && pip install --no-cache-dir -c constraints.txt '.[all]'
WORKDIR /work
ENTRYPOINT ["ostlight"]
CMD ["--help"]
