# The project's everyday commands.  Each makes what it needs, beginning with the environment in .venv.
.PHONY: help test lint fuzz demo lab lab-down bench-overlay bench-sip bench-peering clean

PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
LAB ?= .lab
PEERS ?= 8
FUZZ_SECONDS ?= 600

help:
	@echo "make demo           two phones call each other over an overlay of $(PEERS) peers on this machine"
	@echo "make demo-peering   two overlays that are two domains: calls between them, by address and by number"
	@echo "make lab            the same overlay, left running (make lab-down ends it)"
	@echo "make test           everything that is checked: style, types, walls between packages, tests"
	@echo "make fuzz           the SIP core under coverage-guided fuzzing, $(FUZZ_SECONDS) s, new finds in .fuzz/"
	@echo "make bench-overlay  the overlay's figures, side by side with other implementations"
	@echo "make bench-sip      registrar, proxy and redirector beside Kamailio (QUICK=1: a short look)"
	@echo "make bench-peering  direct peering beside Kamailio, calls to other domains, look-ups (QUICK=1: a short look)"

$(VENV)/.run: setup.cfg setup.py pyproject.toml scripts/make-venv.sh
	@sh scripts/make-venv.sh "$(VENV)" "" "$(PYTHON)"
	@touch $@

$(VENV)/.test: $(VENV)/.run
	@sh scripts/make-venv.sh "$(VENV)" test "$(PYTHON)"
	@touch $@

$(VENV)/.bench: $(VENV)/.run
	@sh scripts/make-venv.sh "$(VENV)" bench "$(PYTHON)"
	@touch $@

demo: $(VENV)/.run
	@$(BIN)/p2psip demo --peers $(PEERS)

demo-peering: $(VENV)/.run
	@sh scripts/install-test-programs.sh knotd
	@$(BIN)/p2psip demo-peering

# Only a number of peers that was asked for is passed on: a lab that has another is refused then.
lab: $(VENV)/.run
	@$(BIN)/p2psip lab up $(if $(filter file,$(origin PEERS)),,--peers $(PEERS)) --dir $(LAB)

lab-down: $(VENV)/.run
	@$(BIN)/p2psip lab down --dir $(LAB)

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

test: $(VENV)/.test
	@sh scripts/install-test-programs.sh
	@$(MAKE) --no-print-directory lint
	@$(BIN)/python -m pytest

fuzz: $(VENV)/.test
	@for target in parser stream transaction digest; do mkdir -p .fuzz/$$target; $(BIN)/python tests/fuzz/fuzz.py $$target \
	    -max_total_time=$(FUZZ_SECONDS) -max_len=8192 -dict=tests/fuzz/sip.dict -artifact_prefix=.fuzz/$$target- -verbosity=0 \
	    .fuzz/$$target tests/fuzz/corpus/$$target tests/vectors/sip/rfc4475 & pids="$$pids $$!"; done; \
	failed=0; for pid in $$pids; do wait $$pid || failed=1; done; exit $$failed

bench-overlay: $(VENV)/.bench
	@$(BIN)/python -m bench.overlay

bench-sip: $(VENV)/.run
	@sh scripts/install-test-programs.sh
	@$(BIN)/python -m bench.sip $(if $(QUICK),--quick)

bench-peering: $(VENV)/.test
	@sh scripts/install-test-programs.sh
	@$(BIN)/python -m bench.peering $(if $(QUICK),--quick)

clean:
	rm -rf build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
