# Everything is built with one set of features and one profile (--workspace), so that nothing is
# compiled twice; only clippy's check is apart.

CARGO ?= cargo
# Extra flags for `dormouse dev` or the benchmark: make dev ARGS='--idle-after 5m'
ARGS ?=
# Names of end-to-end tests to run: make e2e TESTS='ssh api'
TESTS ?=
# How long each fuzz target runs: make fuzz SECONDS=600
SECONDS ?= 60

TARGET := $(or $(CARGO_TARGET_DIR),target)
DORMOUSE := $(TARGET)/debug/dormouse
# What scripts/setup installed comes first.
export PATH := $(CURDIR)/.dev/venv/bin:$(CURDIR)/.dev/lint/bin:$(CURDIR)/.dev/node/bin:$(PATH)

.DEFAULT_GOAL := help
.PHONY: help dev build test unit e2e lint bench soak fuzz clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## Install what is missing, build, and run the whole system on this machine
	@scripts/setup build dev
	$(CARGO) build --workspace --bins
	$(DORMOUSE) dev --data-dir .dev/data $(ARGS)

build: ## Build the dormouse binary
	@scripts/setup build
	$(CARGO) build --workspace --bins

test: unit e2e ## Run every test: unit tests, then end to end with real clients

# PostgreSQL, OpenSSH and a provider to sign in with are used by some of them.
unit: ## Run the unit tests
	@scripts/setup build test
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
		$(CARGO) nextest run --workspace; \
	else \
		$(CARGO) test --workspace; \
	fi

e2e: ## Run the end-to-end tests: browser, OpenSSH, kubectl, JupyterLab, Streamlit, JupyterHub
	@scripts/setup build test
	$(CARGO) build --workspace --bins
	cd e2e && CARGO_TARGET_DIR=$(abspath $(TARGET)) node run.js $(TESTS)

lint: ## Check formatting, clippy, licences and crates, and the project's own invariants
	@scripts/setup build lint
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) deny check bans licenses sources
	$(CARGO) build --workspace --bins
	$(TARGET)/debug/dormouse-xtask check

bench: ## Measure beside other proxies and providers (builds for release); ARGS=--quick for minutes
	@scripts/setup build bench
	$(CARGO) build --release -p dormouse-cli -p dormouse-load
	CARGO_TARGET_DIR=$(abspath $(TARGET)) node bench/run.js $(ARGS)

soak: ## Hold 10,000 WebSockets and 2,000 requests/s for 10 minutes (builds for release); ARGS='--minutes 1'
	@scripts/setup build bench
	$(CARGO) build --release -p dormouse-cli -p dormouse-load
	CARGO_TARGET_DIR=$(abspath $(TARGET)) node bench/soak.js $(ARGS)

# `-s none`: what is fuzzed has no unsafe code of ours, so what is looked for is panics and broken promises.
fuzz: ## Fuzz the parsers and compare the two engines, SECONDS each (cargo install cargo-fuzz)
	@$(CARGO) fuzz --version >/dev/null 2>&1 || { echo 'make fuzz needs cargo-fuzz: cargo install cargo-fuzz' >&2; exit 1; }
	cd fuzz && for target in $$(ls fuzz_targets | sed 's/\.rs$$//'); do \
		mkdir -p corpus/$$target && \
		RUSTC_BOOTSTRAP=1 $(CARGO) fuzz run -s none $$target corpus/$$target seeds/$$target \
			-- -max_total_time=$(SECONDS) -timeout=60 $$(ls $$target.dict 2>/dev/null | sed 's/^/-dict=/') || exit 1; \
	done

clean: ## Remove what was built and what `make dev` and `make test` installed and left
	$(CARGO) clean
	rm -rf .dev e2e/node_modules e2e/artifacts
