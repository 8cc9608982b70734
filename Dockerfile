# One image for both halves: the controller runs it as it is, the agent's DaemonSet as uid 0 with NET_ADMIN.
# The base is python:slim or any other Debian bookworm: what it lacks is installed.
ARG BASE_IMAGE=python:3.13-slim-bookworm

FROM ${BASE_IMAGE} AS base
# In full, since a base that was imported from a file system sets no PATH. nft lies in /usr/sbin.
ENV PATH=/opt/conntrack-operator/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
# nft must be older than 1.1.2: sets that a newer one writes crash older nft programs on the same node, kube-proxy's among
# them (kubernetes #136786). Bookworm has 1.0.6; a base that brings a newer one is refused here and not on a node.
RUN set -eu; export DEBIAN_FRONTEND=noninteractive; \
    for what in doc man locale info; do echo "path-exclude /usr/share/$what/*"; done >/etc/dpkg/dpkg.cfg.d/no-documents; \
    command -v python3 >/dev/null && python= || python=python3; \
    apt-get update; \
    apt-get install -y --no-install-recommends nftables iptables $python; \
    nft="$(dpkg-query -W -f '${Version}' nftables)"; \
    dpkg --compare-versions "$nft" lt 1.1.2 || { echo "nftables $nft is too new; take a base of Debian bookworm" >&2; exit 1; }; \
    apt-get clean; \
    rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log /var/log/alternatives.log

FROM base AS build
RUN set -eu; export DEBIAN_FRONTEND=noninteractive; \
    python3 -c 'import ensurepip, venv' 2>/dev/null || { apt-get update; apt-get install -y --no-install-recommends python3-venv; }; \
    python3 -m venv /build/tools; \
    python3 -m venv --without-pip /opt/conntrack-operator
WORKDIR /build/source
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
# Dependencies first: they change less often than the source.
COPY operator/requirements.txt operator/requirements.txt
RUN /build/tools/bin/pip --python /opt/conntrack-operator/bin/python install --require-hashes --only-binary :all: \
      --no-compile -r operator/requirements.txt
# Of the official client's package: a second, asynchronous client, as large as the first, and wrappers, one module for each
# group of the API. Nothing here imports them: they would be 40 % of what is installed.
RUN cd /opt/conntrack-operator/lib/python3*/site-packages/kubernetes && rm -r aio client/api/*_api.py
# setuptools comes with the lock of the tests, which says what builds the package; only its entry is taken.
COPY tests/requirements.txt tests/requirements.txt
RUN awk '/^[a-z]/ { wanted = /^setuptools==/ } wanted' tests/requirements.txt >setuptools.txt && \
    /build/tools/bin/pip install --require-hashes -r setuptools.txt
COPY pyproject.toml LICENSE README.md* ./
COPY operator/conntrack_operator operator/conntrack_operator
RUN /build/tools/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /build/wheel . && \
    /build/tools/bin/pip --python /opt/conntrack-operator/bin/python install --no-deps --no-compile /build/wheel/*.whl
# Everything is compiled but the official client's models, one module for each kind, of which few are imported.
# unchecked-hash: layers hold whole seconds, so that a file's time need not be the one its compiled form remembers.
RUN python3 -m compileall -q --invalidation-mode unchecked-hash -x 'kubernetes/client/models/' /opt/conntrack-operator

FROM base
COPY --from=build /opt/conntrack-operator /opt/conntrack-operator
ARG BASE_IMAGE
# Before the command, whose result they are part of: a builder that keeps layers may else take labels of another build.
ARG VERSION=unknown
ARG REVISION=unknown
# python:slim ships its library uncompiled; on a read-only root every start would compile it anew and keep 3 MB for it.
# Importing our every module compiles what they use of it, and shows that nothing is missing.
RUN python3 -c 'import importlib, pkgutil, conntrack_operator as ours; \
      [importlib.import_module(m.name) for m in pkgutil.walk_packages(ours.__path__, "conntrack_operator.") \
       if not m.name.endswith("__main__")]' && \
    conntrack-operator --version && nft --version
LABEL org.opencontainers.image.title="conntrack-operator" \
      org.opencontainers.image.description="Keeps Linux connection tracking from filling up, on every node of a Kubernetes cluster" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# The controller needs no root. A number, so that runAsNonRoot can be checked.
USER 65532:65532
ENTRYPOINT ["conntrack-operator"]
CMD ["--help"]
