# The commands of the project. `make help` lists them.

# Where rustup puts cargo; not every shell has been told.
export PATH := $(PATH):$(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

.PHONY: up
up: release ## build conman and run a fleet of three hosts here, until Ctrl-C; more by ARGS='--hosts 5'
	exec target/release/conman up $(ARGS)

.PHONY: release
release: ## build conman, with its console where node and npm are to be had
	scripts/setup build
	@$(MAKE) --no-print-directory console || echo "make: conman is built without its console" >&2
	cargo build --release --locked --package conman

.PHONY: console
console: console/dist/index.html.gz ## build the page that conman serves at /; fails above 300 kB compressed

console/dist/index.html.gz: $(wildcard console/src/* console/*.json console/build.mjs)
	scripts/setup console
	cd console && npm ci --no-audit --no-fund && npm run lint && npm run build

.PHONY: test-console
test-console: console ## the console in a real browser, Debian's Chromium: two pages on one repl, and its host lost
	scripts/setup browser
	cargo build --locked --package conman
	cd console && node test/browser.mjs ../target/debug/conman

.PHONY: test
test: lint ## everything that a change must pass
	scripts/docker-engine run scripts/etcd run cargo nextest run --workspace --locked
	scripts/mutants --short
	scripts/differential-stuck --short
	python3 -m unittest discover --quiet scripts/chaoslib
	scripts/chaos --witness --conman target/debug/conman
	SECONDS=15 scripts/chaos --short --conman target/debug/conman

.PHONY: test-clients
test-clients: ## the clients in clients/ against a fleet of processes that loses hosts: some seconds
	cargo build --locked --package conman
	scripts/test-clients

.PHONY: test-observing
test-observing: ## the rules, every panel's query and the alerts, with Debian's Prometheus and Alertmanager: half a minute
	scripts/setup observing
	cargo build --locked --package conman
	scripts/test-observing

.PHONY: drill
drill: release ## waves of preemptions and crashes under hundreds of sessions for SECONDS (600), as Prometheus and the report see it; figures in target/figures/drill.json
	scripts/setup observing
	cargo build --release --locked --package testserver
	scripts/drill-stuck --seconds $(or $(SECONDS),600) $(ARGS)

.PHONY: lint
lint: setup-test ## layout, lints, documentation, dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked
	scripts/deny

.PHONY: setup-test
setup-test:
	scripts/setup test

.PHONY: doctor
doctor: release ## what this machine offers, and what each missing thing costs
	target/release/conman doctor

.PHONY: bench
bench: ## what a user waits for, beside docker run; figures in target/figures/bench.json
	scripts/bench

.PHONY: bench-destroy
bench-destroy: ## two hundred containers destroyed at once: docker kill, conman reap, a drain, a bare kernel; figures in target/figures/bench-destroy.json
	scripts/bench-destroy

.PHONY: prove
prove: release ## every layer of the proof in its long form, for SECONDS (3600); figures in target/figures/prove.json and docs/proof.md
	cargo build --release --locked --package testserver
	SECONDS=$(or $(SECONDS),3600) scripts/prove $(LAYERS)

.PHONY: mutants
mutants: ## remove each rule of the protocol in turn, and show what notices; figures in target/figures/mutants.json
	scripts/mutants

.PHONY: bench-gateway
bench-gateway: ## the gateway as a proxy, beside HAProxy and nginx; figures in target/figures/bench-gateway.json
	scripts/bench-gateway

.PHONY: bench-preempt
bench-preempt: ## what users see of a machine that goes, with notice and without; figures in target/figures/bench-preempt.json
	scripts/bench-preempt

.PHONY: conformance
conformance: release ## Autobahn's WebSocket suite straight and through the gateway, with a Python 2.7 (PYTHON2); figures in target/figures/conformance.json
	cargo build --release --locked --package testserver
	scripts/conformance

.PHONY: bench-stuck
bench-stuck: ## the stuck report beside DuckDB, jq, mtail, grep and wc
	scripts/bench-stuck

.PHONY: install
install: ## what was built, with its units and documentation, below DESTDIR for PREFIX (/usr/local); first make release
	scripts/install

.PHONY: deb
deb: release ## the Debian package, in target/deb
	scripts/deb

.PHONY: test-vm
test-vm: ## the native runtime and the keeper on systemd and pure cgroup v2, in a virtual machine: some ten minutes
	scripts/test-vm

.PHONY: drill-systemd
drill-systemd: release ## the package on a real systemd that shuts down under 200 repls; figures in target/figures/systemd.json; in a virtual machine by ARGS=--vm
	scripts/drill-systemd $(ARGS)

.PHONY: differential-stuck
differential-stuck: ## the stuck report against DuckDB on a million lines of every format
	scripts/differential-stuck

.PHONY: chaos
chaos: release ## break a real fleet of four nodes and three members of etcd, over and over, for SECONDS (1500), all from SEED (1); figures in target/figures/chaos.json
	scripts/setup fleet
	cargo build --release --locked --package testserver
	SECONDS=$(or $(SECONDS),1500) SEED=$(or $(SEED),1) scripts/chaos $(ARGS)

.PHONY: drill-fleet
drill-fleet: release ## three nodes, etcd and a load balancer in namespaces: upgrades, nodes, certificates, members, a restore; figures in target/figures/fleet.json
	scripts/setup fleet
	cargo build --release --locked --package testserver
	scripts/drill-fleet

.PHONY: chaos-clocks
chaos-clocks: ## the same for SECONDS (600) in a virtual machine, whose clocks are stepped and slewed; figures in target/figures/chaos-clocks.json
	SECONDS=$(or $(SECONDS),600) SEED=$(or $(SEED),1) scripts/chaos-clocks

.PHONY: differential-store
differential-store: ## many more traces on memory, SQLite and etcd than make test has; SEED=7 for others
	CONMAN_TEST_DIFFERENTIAL_CASES=500 CONMAN_TEST_SEED=$(or $(SEED),1) scripts/etcd run cargo nextest run --package conman --lib --locked differential
