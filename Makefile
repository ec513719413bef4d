# Every target prepares what it needs first; `make` alone lists them.
setup := bin/setup
python := .venv/bin/python
java := JAVA_HOME="$$PWD/.venv/java"
# Processes that share the tests, a file at a time: much of the time a test waits for a JVM to start.
workers := 2

.DEFAULT_GOAL := help
.PHONY: help demo test test-s3 test-faults test-airflow scale check format clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo:  ## rerank the bundled lake and show the lists before and after
	@$(setup) demo
	@rm -rf out/demo
	@$(java) $(python) jobs/rerank.py --config conf/demo.yaml --run-id demo
	@$(java) $(python) jobs/evaluate.py --config conf/demo.yaml --run-id demo

test:  ## run the tests; ARGS="tests/model -k images" for some of them, workers=0 for one process
	@$(setup) dev
	$(java) $(python) -m pytest -n $(workers) --dist loadfile --no-loadscope-reorder $(ARGS)

test-s3:  ## run what touches storage against a real S3 server: Ceph's gateway, installed on Debian and Ubuntu
	@$(setup) dev
	@$(python) tests/servers/radosgw.py --install
	LAKERANK_TEST_S3=radosgw $(java) $(python) -m pytest -m s3 $(ARGS)

test-faults:  ## kill drivers, workers and executors, fill disks, disturb the network: every fault test, an hour or less
	@$(setup) dev
	LAKERANK_TEST_FAULTS=1 $(java) $(python) -m pytest tests/faults $(ARGS)

test-airflow:  ## the DAGs under a real scheduler, with killed tasks, a failed audit and a backfill
	@$(setup) dev
	@$(setup) airflow
	$(java) $(python) -m pytest tests/airflow_dags/scheduler.py $(ARGS)

scale:  ## plan, rank and fetch at scale, and a second night: seconds, shuffle bytes and memory, half an hour
	@$(setup) dev
	$(java) $(python) tests/scale/plan_scale.py 100_000 1_000_000 10_000_000
	$(java) $(python) tests/scale/fetch_scale.py
	$(java) $(python) tests/scale/incremental.py

check:  ## formatting, lint, types and the layers between the rooms
	@$(setup) dev
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy
	$(python) -c 'from importlinter.cli import lint_imports_command as lint; lint()'

format:  ## rewrite files as `make check` wants them
	@$(setup) dev
	$(python) -m ruff format .
	$(python) -m ruff check --fix .

clean:  ## remove output and caches
	rm -rf out build dist spark-warehouse metastore_db derby.log .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

distclean: clean  ## remove .venv and .venv-airflow as well
	rm -rf .venv .venv-airflow
