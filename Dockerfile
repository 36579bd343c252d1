# The image of Ringcast: README.md, "Image". tests/image runs these very lines where there is no engine.

# Both can be named otherwise, e.g. in a mirror, or by digest.
ARG BUILDER=rust:1.95.0-slim-bookworm
# Of the same Debian: certificates, time zones, glibc; no shell, no OpenSSL.
ARG BASE=gcr.io/distroless/base-nossl-debian12:nonroot

FROM ${BUILDER} AS builder
ARG TARGETARCH
WORKDIR /build
# For the list of dependencies. They run for a moment, so they are not optimised.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    CARGO_PROFILE_DEV_DEBUG=false cargo install --quiet --locked --debug cargo-auditable@0.7.7 auditable2cdx@0.1.0
COPY . .
# Touched, because cargo goes by times: sources can be older than what another build left in the cache.
# Stripped of line tables, but not of names: a backtrace still tells the functions.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    --mount=type=cache,id=ringcast-target-${TARGETARCH},target=/build/target,sharing=locked \
    touch src/lib.rs src/main.rs src/bin/apns-simulator.rs && \
    cargo auditable build --locked --profile dist --bin ringcast --bin apns-simulator && \
    install -D -m 755 -t image/usr/bin target/dist/ringcast target/dist/apns-simulator && \
    strip --strip-debug image/usr/bin/*
# What the programs consist of; and the one library that the base lacks, told to scanners as the base tells its own packages.
RUN doc=image/usr/share/doc library=lib/$(gcc -print-multiarch) && \
    install -D -m 644 -t $doc/ringcast LICENSE && \
    auditable2cdx image/usr/bin/ringcast >$doc/ringcast/sbom.cdx.json && \
    install -D -m 644 -t "image/usr/$library" "/$library/libgcc_s.so.1" && \
    install -D -m 644 -t $doc/libgcc-s1 "/usr/share/doc/gcc-$(gcc -dumpversion)-base/copyright" && \
    mkdir -p image/var/lib/dpkg/status.d && \
    dpkg-query --status libgcc-s1 >image/var/lib/dpkg/status.d/libgcc-s1

FROM ${BASE}
ARG BASE
ARG VERSION=0.1.0
ARG REVISION=
ARG CREATED=
ARG SOURCE=
LABEL org.opencontainers.image.title="ringcast" \
      org.opencontainers.image.description="A worker that makes iPhones ring: call invites from RabbitMQ, VoIP pushes to APNs, one outcome for each" \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.base.name="${BASE}"
COPY --from=builder /build/image/ /
USER 65532:65532
EXPOSE 9090
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/bin/ringcast"]
CMD ["run", "--config", "/etc/ringcast/ringcast.toml"]
