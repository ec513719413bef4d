#!/usr/bin/env bash
# Tells Spark which GPUs an executor may use: {"name": "gpu", "addresses": ["0", "1"]}.
# nvidia-smi lists every GPU it can see, so each executor must see its own only (YARN isolation, a Kubernetes container)
# or the cluster manager must hand them out (a standalone worker does).
set -euo pipefail
addresses=$(nvidia-smi --query-gpu=index --format=csv,noheader | sed 's/.*/"&"/' | paste -s -d , -)
printf '{"name": "gpu", "addresses": [%s]}\n' "$addresses"
