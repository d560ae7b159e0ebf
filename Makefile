# The commands of the project. `make help` lists them.

.PHONY: test
test: ## everything that a change must pass
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo nextest run --workspace --locked
