# Every target prepares what it needs first; `make` alone lists them.
setup := bin/setup
python := .venv/bin/python
java := JAVA_HOME="$$PWD/.venv/java"
# Test processes. Files are distributed over them; tests spend much of their time waiting for a JVM.
workers := 2
pytest = $(python) -m pytest -n $(workers) --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo demo-text test test-slow test-s3 test-faults test-airflow fuzz cases scale check format clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo:  ## rerank the bundled lake and show the lists before and after
	@$(setup) demo
	@rm -rf out/demo
	@$(java) $(python) jobs/rerank.py --config conf/demo.yaml --run-id demo
	@$(java) $(python) jobs/evaluate.py --config conf/demo.yaml --run-id demo

demo-text:  ## find sections of Python's manual for questions of its FAQ: BM25, then minilm-en (73 MB, fetched once)
	@$(setup) demo
	@rm -rf out/demo-text
	@$(python) jobs/fetch.py minilm-en
	@$(java) $(python) jobs/candidates.py --config conf/demo-text.yaml --depth 20
	@$(java) $(python) jobs/rerank.py --config conf/demo-text.yaml --run-id demo-text
	@$(java) $(python) jobs/evaluate.py --config conf/demo-text.yaml --run-id demo-text

test:  ## run all tests but the slow ones; ARGS="tests/model -k images" for some of them, workers=0 for one process
	@$(setup) dev
	$(java) $(pytest) -m "not nightly" $(ARGS)

test-slow:  ## run what is slow by nature: a Spark cluster, killed drivers, README's commands, the wheel, a DAG
	@$(setup) dev
	$(java) $(pytest) -m nightly $(ARGS)

test-s3:  ## run the storage tests against a real S3 server: Ceph's gateway, installed on Debian and Ubuntu
	@$(setup) dev
	@$(python) tests/servers/radosgw.py --install
	LAKERANK_TEST_S3=radosgw $(java) $(python) -m pytest -m s3 $(ARGS)

test-faults:  ## every fault test: killed drivers, workers and executors, full disks, a bad network; an hour or less
	@$(setup) dev
	LAKERANK_TEST_FAULTS=1 $(java) $(python) -m pytest tests/faults $(ARGS)

fuzz:  ## damage images, checkpoints, requests, ids and Parquet files for a minute each; ARGS="--seconds 600"
	@$(setup) dev
	@$(python) tests/fuzz $(ARGS)

cases:  ## inputs of public bug reports, a line for each: what came of it
	@$(setup) dev
	@$(python) tests/cases $(ARGS)

test-airflow:  ## test the DAGs under a real scheduler, with killed tasks, a failed audit and a backfill
	@$(setup) dev
	@$(setup) airflow
	$(java) $(python) -m pytest tests/airflow_dags/scheduler.py $(ARGS)

scale:  ## measure planning, ranking and fetching at scale, and an incremental run; half an hour
	@$(setup) dev
	$(java) $(python) tests/scale/plan_scale.py 100_000 1_000_000 10_000_000
	$(java) $(python) tests/scale/fetch_scale.py
	$(java) $(python) tests/scale/incremental.py

check:  ## check formatting, lint, types and import layers
	@$(setup) dev
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy
	$(python) -c 'from importlinter.cli import lint_imports_command as lint; lint()'

format:  ## reformat files for `make check`
	@$(setup) dev
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

clean:  ## remove output and caches
	rm -rf out build dist spark-warehouse metastore_db derby.log .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

distclean: clean  ## remove .venv, .venv-airflow and fetched weights as well
	rm -rf .venv .venv-airflow .cache
