# A student behind HTTP, on CPUs or NVIDIA GPUs:
#   docker build -t sage-distill .
#   docker build -t sage-distill:cuda --build-arg EXTRAS=cuda12,serve .
#   docker run --rm -p 127.0.0.1:8000:8000 sage-distill
#   docker run --rm -p 127.0.0.1:8000:8000 --gpus all sage-distill:cuda
# jax[cuda12] brings CUDA's libraries; the host gives the driver, by the NVIDIA Container Toolkit.
# To train in it, torch included: EXTRAS=teacher,cuda12, and docker run --entrypoint python.
FROM python:3.11-slim AS build
ARG EXTRAS=student,serve
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY bridge bridge
COPY student_jax student_jax
COPY teacher_torch teacher_torch
RUN python -m venv /opt/venv \
  && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt ".[${EXTRAS}]"

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home student
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /home/student
COPY configs configs
USER 10001
EXPOSE 8000
HEALTHCHECK --start-period=60s \
  CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=3)"]
# Loopback inside a container reaches nobody; what reaches the container, docker run -p decides.
ENTRYPOINT ["python", "-m", "student_jax.serve"]
CMD ["--host", "0.0.0.0"]
