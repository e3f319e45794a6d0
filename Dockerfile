# One image; the command picks the process:
#   leoma serve | leoma dagster webserver | leoma dagster daemon | leoma dagster code-server
# Not built where it was written (no container engine there): build it once before you rely on it.
FROM python:3.11-slim AS build
WORKDIR /src
RUN python -m venv /opt/leoma
# The lock names every package with its hash, so pip need not look for more.
COPY requirements.lock ./
RUN /opt/leoma/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock
COPY pyproject.toml README.md ./
COPY api api
COPY cli cli
COPY pipelines pipelines
COPY warehouse warehouse
RUN /opt/leoma/bin/pip install --no-cache-dir --no-deps --no-build-isolation --no-index . \
    && /opt/leoma/bin/pip check

FROM python:3.11-slim
RUN useradd --create-home --uid 10001 leoma && install -d -o leoma -g leoma /data
COPY --from=build /opt/leoma /opt/leoma
ENV PATH=/opt/leoma/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    LOG_FORMAT=json \
    LEOMA_HOME=/data
USER leoma
WORKDIR /home/leoma
VOLUME /data
EXPOSE 8000
# For the API; docker-compose.yml says how the others are checked.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["leoma", "healthcheck", "http://127.0.0.1:8000/health/ready"]
CMD ["leoma", "serve", "--host", "0.0.0.0", "--port", "8000", "--workers", "2"]
