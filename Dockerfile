# The planning service. Build with --build-arg PIP_EXTRA_INDEX_URL=… to install a build of torch for CPUs alone.
# With a compiler, for the C part of `coded` and of the masks.
FROM python:3.11 AS build
ARG PIP_EXTRA_INDEX_URL=
WORKDIR /src
RUN python -m venv /opt/memfit
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY memfit memfit
COPY planner planner
COPY service service
COPY models models
COPY migrations migrations
RUN /opt/memfit/bin/pip install --no-cache-dir -c constraints.txt '.[cluster,telemetry]'

FROM python:3.11-slim
RUN apt-get update && apt-get install -y --no-install-recommends bubblewrap && rm -rf /var/lib/apt/lists/*
RUN useradd --system --create-home --home-dir /var/lib/memfit memfit
COPY --from=build /opt/memfit /opt/memfit
USER memfit
ENV PATH=/opt/memfit/bin:$PATH PYTHONUNBUFFERED=1
VOLUME /var/lib/memfit
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=30s \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
CMD ["memfit", "serve", "--host", "0.0.0.0", "--port", "8000", "--data", "/var/lib/memfit"]
