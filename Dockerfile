# Everything of Breakwater that is Python: services, gateways, the edge's controller, and the steps around them.
# Build it with `docker compose build`; what is in it comes from .dockerignore, which names the folders.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS build
RUN python3 -m venv /opt/venv
COPY requirements.lock /tmp/
RUN /opt/venv/bin/pip install --no-cache-dir --disable-pip-version-check --no-input --require-hashes -r /tmp/requirements.lock \
    && /opt/venv/bin/pip uninstall --yes --quiet pip setuptools
COPY . /app
RUN /opt/venv/bin/python -m compileall -q /app

FROM ${PYTHON_IMAGE}
# For `haproxy -c`, by which the controller has a configuration judged before it is put in place.
RUN apt-get update -q \
    && apt-get install -y -q --no-install-recommends haproxy \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/*
COPY --from=build /opt/venv /opt/venv
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONPATH=/app PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 HOME=/tmp LANG=C.UTF-8
RUN python -m stack.containers folders
USER 10001:10001
