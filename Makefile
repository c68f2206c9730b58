# `make demo` and `make test` do all their own set-up on a Debian machine with a Rust toolchain.

CARGO ?= cargo
TARGET = $(or $(CARGO_TARGET_DIR),target)
# Tests wait more than they compute.
TEST_THREADS ?= 4
# Seconds for each fuzz target; minutes of soaking; rounds of crashing.
FUZZ_SECONDS ?= 60
SOAK_MINUTES ?= 30
CACHE_MINUTES ?= 5
CRASH_ROUNDS ?= 200
# Where things are installed: for everybody as root, else for oneself.
PREFIX ?= $(shell [ "$$(id -u)" = 0 ] && echo /usr/local || echo "$$HOME/.local")

.PHONY: help demo test deps lint pure doc bench bench-machines bench-dht bench-dht-sim bench-flood bench-swarm bench-reads bench-idle fuzz soak soak-cache crash bench-big-cache install deb try-package test-exports clean

help:
	@echo 'make demo      mounts a small torrent that it makes, on loopback'
	@echo 'make test      installs what the tests need, then checks and tests everything'
	@echo 'make test-exports  a mount given on by servers of NFS and SMB, which it installs (root)'
	@echo 'make bench     cold sequential read: p2pfs beside libtorrent and btfs'
	@echo 'make bench-machines   how long picker, choker and an event of a swarm take'
	@echo 'make bench-dht  1,000 DHT nodes on loopback: time to the first peer, beside mainline'
	@echo 'make bench-dht-sim  simulated DHTs, one after the other: a million nodes, ten million, all'
	@echo '               of them whole, and crowds around a hash (an hour; see DHT_SIM)'
	@echo 'make bench-flood  a DHT node under 100,000 datagrams of nonsense a second: memory, pings'
	@echo 'make bench-swarm  swarms of processes over capped uplinks, p2pfs beside libtorrent'
	@echo 'make bench-reads  reads over links with delay and losses, p2pfs beside others (root)'
	@echo 'make bench-idle  50 mounts with nothing to do: processor time, wakeups, memory'
	@echo 'make fuzz      every parser for FUZZ_SECONDS'
	@echo 'make soak      mounts, reads and kills for SOAK_MINUTES, and watches for leaks'
	@echo 'make soak-cache  ten torrents, five times their cache, read at random for CACHE_MINUTES'
	@echo 'make crash     kill -9, full disks, errors of the disk and power cuts, CRASH_ROUNDS of each (root)'
	@echo 'make bench-big-cache  how long mounting takes with 100 GB in the cache'
	@echo 'make install   programs, man pages, completions, units, mount helper below PREFIX'
	@echo 'make deb       the same as a Debian package'
	@echo 'make try-package  installs that in a Debian of its own, under systemd, and uses it (root)'

demo:
	@sh tests/install-deps --mount
	$(CARGO) build --release
	@sh tests/demo "$(TARGET)/release/p2pfs"

test: deps lint pure
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --no-fail-fast
	@$(MAKE) --no-print-directory doc

deps:
	@sh tests/install-deps

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --all-targets -- -D warnings

# The protocol core builds alone, without runtime, mount or mapping. Its test (tests/purity.rs)
# looks for clocks, sockets, files and threads in it.
pure:
	$(CARGO) check --no-default-features --lib

doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --lib --document-private-items

bench-machines:
	$(CARGO) bench --no-default-features --bench machines

bench-dht:
	$(CARGO) bench --bench dht_network -- $(BENCH_ARGS)

# Each run is printed with its command. All whole nodes take the longest.
DHT_SIM ?= "--nodes 1000000" "--nodes 1000000 --machines" "--nodes 10000000" \
	"--nodes 10000 --real --lookups 200" "--nodes 100000 --real --lookups 200" \
	"--nodes 1000000 --sybils 300" "--nodes 1000000 --sybils 300 --fitting" \
	"--nodes 1000000 --sybils 300 --machines" "--nodes 1000000 --sybils 300 --bits 14" \
	"--nodes 1000000 --sybils 300 --bits 13"
bench-dht-sim:
	$(CARGO) build --release
	@for args in $(DHT_SIM); do \
		echo "p2pfs sim dht $$args $(BENCH_ARGS)"; \
		"$(TARGET)/release/p2pfs" sim dht $$args $(BENCH_ARGS) || exit 1; \
	done

bench-flood:
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/dht_flood.py "$(TARGET)/release/p2pfs" $(BENCH_ARGS)

bench:
	@sh tests/install-deps --bench
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/cold_read.py "$(TARGET)/release/p2pfs" $(BENCH_ARGS)

bench-swarm:
	@sh tests/install-deps
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/swarm.py "$(TARGET)/release/p2pfs" $(BENCH_ARGS)

bench-reads:
	@sh tests/install-deps --bench
	$(CARGO) build --release
	$(CARGO) build --release --example wan_link
	/usr/bin/python3 tests/bench/reads.py "$(TARGET)/release/p2pfs" \
		"$(TARGET)/release/examples/wan_link" $(BENCH_ARGS)

bench-idle:
	@sh tests/install-deps
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/idle.py "$(TARGET)/release/p2pfs" $(BENCH_ARGS)

fuzz:
	@$(CARGO) +nightly --version >/dev/null 2>&1 || \
		rustup toolchain install nightly --profile minimal
	@$(CARGO) fuzz --version >/dev/null 2>&1 || $(CARGO) install --locked cargo-fuzz
	@for target in $$($(CARGO) +nightly fuzz list); do \
		echo "fuzzing $$target for $(FUZZ_SECONDS) s"; \
		$(CARGO) +nightly fuzz run "$$target" -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -print_final_stats=0 || exit 1; \
	done

soak:
	@sh tests/install-deps
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/soak.py "$(TARGET)/release/p2pfs" --minutes $(SOAK_MINUTES)

soak-cache:
	@sh tests/install-deps
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/soak_cache.py "$(TARGET)/release/p2pfs" --minutes $(CACHE_MINUTES)

crash:
	@sh tests/install-deps
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/crash.py "$(TARGET)/release/p2pfs" --rounds $(CRASH_ROUNDS) $(BENCH_ARGS)

bench-big-cache:
	@sh tests/install-deps
	$(CARGO) build --release
	/usr/bin/python3 tests/bench/big_cache.py "$(TARGET)/release/p2pfs" $(BENCH_ARGS)

install:
	$(CARGO) build --release --locked
	@sh packaging/install "$(TARGET)/release" "$(DESTDIR)" "$(PREFIX)"
	@echo "installed below $(DESTDIR)$(PREFIX)"

deb:
	$(CARGO) build --release --locked
	@sh packaging/deb "$(TARGET)/release" "$(TARGET)"

test-exports:
	@sh tests/install-deps --exports
	$(CARGO) test --test re_export

try-package:
	$(CARGO) build --release --locked
	tests/clean-root "$$(sh packaging/deb "$(TARGET)/release" "$(TARGET)")" $(CLEAN_ROOT)

clean:
	$(CARGO) clean
