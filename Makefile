# Thin aliases of dev.py. `make test ARGS="-k lora -x"` passes arguments on; `make PYTHON=python3.12 setup` takes another Python.
PYTHON ?= python3
N ?= 10000
DEV = $(PYTHON) dev.py

.PHONY: help setup demo test test-slow lint types wheels smoke new-plugin fuzz known clean

help:
	@$(DEV)

setup demo test test-slow lint types wheels smoke known clean:
	@$(DEV) $@ $(ARGS)

new-plugin:
	@$(DEV) $@ $(if $(NAME),$(NAME),$(error NAME is missing: make new-plugin NAME=acme KIND=logger)) --kind $(if $(KIND),$(KIND),$(error KIND is missing: make new-plugin NAME=acme KIND=logger)) $(ARGS)

fuzz:
	@$(DEV) $@ --inputs $(N) $(ARGS)
