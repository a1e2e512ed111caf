# docker build -t speculative-tdmpc2 . ; docker run --rm speculative-tdmpc2 make demo PYTHON=python
# With CUDA: docker build --build-arg TORCH=https://pypi.org/simple . ; docker run --gpus all ...
FROM python:3.11-slim
ARG TORCH=https://download.pytorch.org/whl/cpu
RUN apt-get update && apt-get install -y --no-install-recommends make git g++ libegl1 && rm -rf /var/lib/apt/lists/*
WORKDIR /speculative-tdmpc2
COPY . .
RUN python -m pip install --no-cache-dir --extra-index-url $TORCH -r requirements.lock
RUN python -m pip install --no-cache-dir --no-deps --no-build-isolation -e .
ENV MUJOCO_GL=egl
CMD ["make", "demo", "PYTHON=python"]
