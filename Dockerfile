# docker build -t token-broker .
# docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \
#   -v ./config.yaml:/etc/token-broker/config.yaml:ro -v ./secrets:/run/secrets:ro -v broker:/var/lib/token-broker \
#   -p 8080:8080 token-broker

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
# The admin listener stays on loopback, inside the container.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
  CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:9090/healthz', timeout=2)"]
ENTRYPOINT ["token-broker"]
CMD ["run", "/etc/token-broker/config.yaml"]
