#!/usr/bin/env bash
# Measures this machine's GPU in at most eight minutes, without a network: benchmarks/gpu.sh [WHEELS] [OPTIONS]
#
# WHEELS is a folder of wheels for this machine's Python (3.11 or newer); what they lack may be installed already, such as
# a PyTorch with CUDA. Fill it elsewhere: pip download --dest WHEELS -c constraints.txt . pytest pytest-timeout hypothesis
# Without WHEELS, the .venv of this checkout is used, or the Python that PYTHON names (python3). OPTIONS are those of
# benchmarks/gpu.py: --out, --seconds, --section, --tiny. Results are in out/gpu: gpu.json, gpu.md, a log of each section.
set -euo pipefail
began=$(date +%s)
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}

if [[ $# -gt 0 && $1 != -* ]]; then
  wheels=$(cd "$1" && pwd)
  shift
  environment=$(mktemp -d)
  trap 'rm -rf "$environment"' EXIT
  "$python" -m venv --system-site-packages "$environment"
  python=$environment/bin/python
  mapfile -t needed < <("$python" - "$root/pyproject.toml" <<'END'
import sys, tomllib
print("\n".join([*tomllib.load(open(sys.argv[1], "rb"))["project"]["dependencies"], "pytest", "pytest-timeout", "hypothesis"]))
END
  )
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" "${needed[@]}"
elif [[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
fi

cd "$root"
spent=$(($(date +%s) - began))
PYTHONPATH=$root "$python" benchmarks/gpu.py --seconds $((470 - spent)) "$@"
