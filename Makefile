# The commands that people use. `make demo` and `make test` install what is missing by themselves.

.PHONY: help demo test soak build lint fmt deps

help:
	@echo "make demo    two sites, two KMEs and a tunnel on this machine, with real traffic"
	@echo "make test    everything that must hold, with one summary"
	@echo "make soak    the long runs, with a report in target/soak"
	@echo "make build   release binaries in target/release"
	@echo "make lint    format check and clippy"
	@echo "make fmt     format the sources"
	@echo "make deps    install what is missing (packages, cargo tools, Python packages)"

demo:
	@scripts/deps.sh system
	cargo build --locked --workspace --bins
	@cargo run --quiet --locked --package tests --bin qvpn-demo

test:
	@scripts/test.sh

soak:
	@scripts/soak.sh

build:
	cargo build --locked --release --workspace --bins

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fmt:
	cargo fmt --all

deps:
	@scripts/deps.sh
