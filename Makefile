# make help lists the commands. The environment lives in .venv and is made on demand.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SITE := _build/html
PYTEST := $(BIN)/python -m pytest

.PHONY: help book test serve lab execute url clean
help:  ## list these commands
	@sed -n 's/^\([a-z]*\):.*  ## /make \1|/p' Makefile | awk -F'|' '{printf "%-14s %s\n", $$1, $$2}'

$(READY): requirements.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or newer is needed: sudo apt install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 11) and sys.exit("got Python %d.%d, expected 3.11 or newer: make PYTHON=python3.12 book" % v[:2])'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { $(PYTHON) -c 'import sys; print("The venv module is missing: sudo apt install python%d.%d-venv" % sys.version_info[:2])'; exit 1; }
	@echo "Setting up .venv with the pinned packages. The first time takes minutes."
	$(PYTHON) -m venv .venv
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --quiet --index-url $(TORCH_INDEX) $(shell grep '^torch==' requirements.txt))
	$(BIN)/python -m pip install --quiet --requirement requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	@touch $@

book: $(READY)  ## build the site; warnings are errors; prints the file to open
	@rm -rf $(SITE)
	$(BIN)/jupyter-book build book --all --quiet --path-output . --config $(CURDIR)/_config.yml --toc $(CURDIR)/_toc.yml -W -n --keep-going
	@$(BIN)/python -m tools.site $(SITE)
	@echo "Open $(CURDIR)/$(SITE)/index.html"

test: $(READY)  ## prove everything: style, laws, mutants, every chapter, every page
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(PYTEST) -n 2 -m "not site and not live"
	$(MAKE) book
	$(PYTEST) -n 2 -m site
	$(BIN)/python -m tools.solutions _build/nbval
	$(BIN)/python -m tools.stranger _build/stranger
	rm -f _build/claims.jsonl
	FLOWTEXT_CLAIMS=$(CURDIR)/_build/claims.jsonl FLOWTEXT_MODELS=$(CURDIR)/book/models _build/stranger/bin/python -m pytest -o addopts= -n 2 --dist loadfile --nbval-lax --nbval-cell-timeout 600 _build/nbval
	FLOWTEXT_CLAIMS=$(CURDIR)/_build/claims.jsonl $(PYTEST) -m live

serve: book  ## build, then serve the site on this machine
	$(BIN)/python -m http.server --bind 127.0.0.1 --directory $(SITE) 8000

lab: $(READY)  ## open the chapters in JupyterLab
	$(BIN)/jupyter lab book

execute: $(READY)  ## run stale chapters, two side by side; NB=path runs that one
	$(BIN)/python -m tools.execute $(NB)

url: $(READY)  ## move the book to another repository: make url URL=https://github.com/me/book
	$(BIN)/python -m tools.url $(URL)

clean:  ## remove the site and the environment
	rm -rf _build .venv *.egg-info
