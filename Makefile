# `make demo` and `make test` install missing packages and tools.

.PHONY: help packages reproducible demo trial test bench bench-parts hub soak fuzz miri mutants build lint fmt deps evidence

help:
	@echo "make demo    two sites, two KMEs and a tunnel on this machine, with real traffic"
	@echo "make trial   five days on a simulated QKD link in 13 minutes, and a page about it; TRIAL=--short for half a minute"
	@echo "make test    all checks and tests, with one summary"
	@echo "make soak    the long runs, with a report in target/soak"
	@echo "make fuzz    each parser on hostile input with a nightly toolchain, 10 minutes each; FUZZ=3600 for an hour each"
	@echo "make evidence  memory, floods, vectors, model, Miri, AddressSanitizer, timing and fuzzing for hours, a page in docs/evidence; EVIDENCE=20 for short"
	@echo "make bench   qvpn and other VPNs alternately on this machine; BENCH=--quick for a shorter run, BENCH=--help for options"
	@echo "make miri    the tests of unsafe code under Miri (needs a nightly toolchain)"
	@echo "make mutants  small changes of qvpn-proto and session.rs, and which of them no test detects, for hours; MUTANTS='-F respond' for some"
	@echo "make hub     a hub with 1,000 sites for a minute: processor time a rekey, memory, restart; HUB=--help for options"
	@echo "make bench-parts   parts of the data path alone, and AEAD implementations; PARTS=FILTER for some"
	@echo "make build   release binaries in target/release"
	@echo "make packages  .deb and .rpm from a release build, SBOM, checksums, in target/packages/out"
	@echo "make reproducible  the packages twice, in two directories, and a comparison of every byte"
	@echo "make lint    format check and clippy"
	@echo "make fmt     format the sources"
	@echo "make deps    install missing packages, cargo tools and Python packages"

demo:
	@scripts/deps.sh system
	cargo build --locked --workspace --bins
	@cargo run --quiet --locked --package tests --bin qvpn-demo

trial:
	@scripts/deps.sh system
	cargo build --locked --workspace --bins
	@cargo run --quiet --locked --package tests --bin qvpn-trial -- $(TRIAL)
	@[ ! -e target/trial/trial.html ] || scripts/check-page.py target/trial/trial.html || [ $$? -eq 77 ]

test:
	@scripts/test.sh

soak:
	@scripts/soak.sh

miri:
	@scripts/miri.sh

fuzz:
	@scripts/fuzz.sh $(FUZZ)

mutants:
	@scripts/mutants.sh $(MUTANTS)

evidence:
	@scripts/evidence.sh $(EVIDENCE)

# Only the bench has the null cipher, so it is built by a separate call: cargo unites features.
bench:
	@scripts/deps.sh system
	@scripts/bench-peers.sh
	cargo build --locked --release --package qvpn-daemon --package qvpn-ctl --package kme-sim
	cargo build --locked --release --package benches --features null-cipher
	cargo build --locked --release --package tests --bin lab-flood --bin lab-capture
	target/release/bench $(BENCH)

hub:
	@scripts/deps.sh system
	cargo build --locked --release --package qvpn-daemon --package qvpn-ctl --package kme-sim
	cargo build --locked --release --package tests --bin qvpn-hub
	target/release/qvpn-hub $(HUB)

bench-parts:
	cargo bench --locked --package benches --features micro --bench aead --bench parts -- $(PARTS)

build:
	cargo build --locked --release --workspace --bins

packages:
	@scripts/deps.sh release
	@scripts/packages.sh

reproducible:
	@scripts/deps.sh release
	@scripts/reproducible.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

fmt:
	cargo fmt --all

deps:
	@scripts/deps.sh
