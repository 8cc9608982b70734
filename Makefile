# Every target gets what it needs first (.ci/setup): Debian packages when root, and the Python environment in .venv.
.DEFAULT_GOAL := help
.PHONY: help setup tools demo test check cluster bench crds chart lock clean
BIN := .venv/bin

help: ## Show the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 16

setup:
	@.ci/setup

tools:
	@.ci/setup tests

demo: setup ## The story in one minute, in a network namespace, no cluster (needs root)
	@$(BIN)/conntrack-operator demo

test: tools ## The whole suite on real parts, in four processes; builds its Kubernetes once (10 to 15 minutes)
	@$(BIN)/python -m tests.lab.kube >/dev/null
	@$(BIN)/python -m tests.lab.helm >/dev/null
	@$(BIN)/python -m tests.lab.containerd >/dev/null
	@$(BIN)/python -m tests.lab.image >/dev/null
	@$(BIN)/python -m tests.lab.side_by_side

check: tools ## Format, lint, types, import contracts, unit tests, generated files in step
	@.ci/check

cluster: tools ## A Kubernetes on this machine with the operator on it, to look around in (needs root); Ctrl-C ends it
	@$(BIN)/python -m tests.lab.make_cluster

bench: tools ## Print the measurements: memory, time from spec to kernel, CPU of a sample, pause of a resize
	@for bench in tests/bench/bench_*.py; do $(BIN)/python -m "tests.bench.$$(basename "$$bench" .py)" || exit 1; done

crds: setup ## Write crds/ and docs/api.md from the models
	@$(BIN)/conntrack-operator crds --directory crds
	@$(BIN)/python -m tests.lab.reference

chart: tools crds ## Write what is generated around the chart: README's table, its CRDs, manifests/install.yaml
	@$(BIN)/python -m tests.lab.chart

lock: setup ## Renew the lock files
	@.ci/lock

clean: ## Remove what was made here (the test control plane stays in ~/.cache/conntrack-operator)
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache operator/*.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
