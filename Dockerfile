# The receiver without the embedded Postgres: DATABASE_URL names a real one.
#
# A release build pins the base to a digest: docker build --build-arg BASE=python:3.13.14-slim-bookworm@sha256:… .
ARG BASE=python:3.13.14-slim-bookworm

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
WORKDIR /source

# What changes seldom comes first, so that a change of the code does not install the packages again. The environment has
# no pip of its own; it is told where to install.
COPY requirements/runtime.txt requirements/build.txt requirements/
RUN python -m venv --without-pip /opt/jasper-receiver \
    && python -m pip --python /opt/jasper-receiver install --no-deps --require-hashes -r requirements/runtime.txt
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --no-deps --require-hashes -r requirements/build.txt

COPY pyproject.toml README.md LICENSE ./
COPY app app
COPY jasper_receiver_client jasper_receiver_client
COPY migrations migrations
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --no-index --wheel-dir dist . \
    && python -m pip --python /opt/jasper-receiver install --no-deps --no-index dist/*.whl \
    && python -m pip --python /opt/jasper-receiver check


FROM ${BASE}
LABEL org.opencontainers.image.title="jasper-receiver" \
      org.opencontainers.image.licenses="MIT"
RUN groupadd --gid 10001 jasper \
    && useradd --uid 10001 --gid jasper --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin jasper
COPY --from=build /opt/jasper-receiver /opt/jasper-receiver

# Byte code was written when the packages were installed; nothing needs to be written here, so the root file system may be
# read-only.
ENV PATH=/opt/jasper-receiver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOST=0.0.0.0 \
    PORT=8000 \
    LOG_FORMAT=json
WORKDIR /opt/jasper-receiver
# By number, so that a platform can see for itself that it is not root.
USER 10001:10001
EXPOSE 8000
STOPSIGNAL SIGTERM

# Python, because the image has no curl. Not through a proxy, whatever the environment says. Liveness only: a receiver
# that waits for Postgres is not cured by a restart.
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=3 \
    CMD ["python", "-c", "import http.client, os; asked = http.client.HTTPConnection('127.0.0.1', int(os.environ['PORT']), timeout=4); asked.request('GET', '/healthz'); raise SystemExit(asked.getresponse().status != 200)"]

# An init is the platform's: --init, or `init: true` in a compose file.
ENTRYPOINT ["jasper-receiver"]
CMD ["serve"]
