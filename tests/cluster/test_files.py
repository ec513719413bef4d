"""The container file, docs/clusters.md and the files of Spark properties against what is in the repository."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
CLUSTERS = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")


def test_image_copies_what_is_there_and_is_sent_to_the_builder() -> None:
    copied = {
        name for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE) for name in line.split()
    }
    assert copied >= {"lib", "jobs", "conf", "constraints.txt"}
    assert [name for name in copied if not (ROOT / name).exists()] == []
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent


def test_image_has_the_spark_of_the_pins() -> None:
    (spark,) = re.findall(r"^ARG SPARK=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert f"pyspark=={spark}\n" in (ROOT / "constraints.txt").read_text()


def test_kubernetes_finds_job_and_discovery_script_where_the_image_has_them() -> None:
    properties = (ROOT / "conf" / "spark-kubernetes.conf").read_text()
    home = "/opt/lakerank"
    assert f"WORKDIR {home}\n" in DOCKERFILE
    for path in re.findall(rf"{home}/([\w./-]+\w)", properties):
        assert (ROOT / path).exists(), path


def test_every_line_about_a_service_has_its_source() -> None:
    table = CLUSTERS[CLUSTERS.index("| service |") :].partition("\n\n")[0].splitlines()[2:]
    assert all(re.search(r"\[\d+\]", row) for row in table)
    listed = set(re.findall(r"^(\d+)\. ", CLUSTERS, re.MULTILINE))
    assert {number for row in table for number in re.findall(r"\[(\d+)\]", row)} == listed
    for entry in re.findall(r"^\d+\. .*(?:\n   .*)*", CLUSTERS, re.MULTILINE):
        assert "https://" in entry, entry


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("spark-*.conf")), ids=lambda path: path.name)
def test_gpu_properties_pass_the_jobs_own_check(path: Path) -> None:
    from lakerank.spark.runtime.session import check

    lines = path.read_text().splitlines()
    properties = dict(line.split(maxsplit=1) for line in lines if line and not line.startswith("#"))
    assert properties["spark.executor.resource.gpu.amount"] == "1"
    check(properties)


def test_gpu_discovery_says_what_nvidia_smi_lists(tmp_path: Path) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\nprintf '0\\n3\\n'\n")
    fake.chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    printed = subprocess.run([ROOT / "conf" / "discover-gpus.sh"], env=env, check=True, capture_output=True).stdout
    assert json.loads(printed) == {"name": "gpu", "addresses": ["0", "3"]}
