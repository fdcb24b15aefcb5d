# docker build -t token-broker .
# How to run it: docs/howto/docker.md

FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY broker broker
RUN python -m venv /opt/token-broker \
 && /opt/token-broker/bin/pip install --no-cache-dir --constraint constraints.txt .

FROM python:3.11-slim
COPY --from=build /opt/token-broker /opt/token-broker
# The only place that is written to: the SQLite store and the spool. Everything else may be read-only.
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin broker \
 && install -d -o broker -g broker -m 0700 /var/lib/token-broker
ENV PATH=/opt/token-broker/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001
VOLUME /var/lib/token-broker
EXPOSE 8080
# The admin listener stays on loopback, inside the container. Where admin.listen names another port, say so here, too:
# --env HEALTH_URL=http://127.0.0.1:9191/healthz
ENV HEALTH_URL=http://127.0.0.1:9090/healthz
# It asks this container and nobody else, whatever HTTP_PROXY says.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import os, urllib.request as u; u.build_opener(u.ProxyHandler({})).open(os.environ['HEALTH_URL'], timeout=2)"]
ENTRYPOINT ["token-broker"]
CMD ["run", "/etc/token-broker/config.yaml"]
