#!/usr/bin/env bash
# Measures this machine's GPU in at most eight minutes, without a network: benchmarks/gpu.sh [WHEELS] [OPTIONS]
#
# WHEELS is a folder of wheels for this machine's Python, 3.11 or newer. What is installed already, such as a PyTorch with
# CUDA, needs none. Fill it elsewhere: pip download --dest WHEELS -c constraints.txt . pytest pytest-timeout hypothesis
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
  "$python" -m venv "$environment"
  installed=$("$python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
  python=$environment/bin/python
  "$python" -m pip uninstall --quiet --yes setuptools # Python 3.11 adds one that is too old for PyTorch
  # Packages of the outer Python are found behind those of the new environment.
  "$python" - "$installed" <<'END'
import pathlib, sys, sysconfig
folder = pathlib.Path(sysconfig.get_path("purelib"))
(folder / "outer.pth").write_text(f"import site; site.addsitedir({sys.argv[1]!r})\n")
END
  mapfile -t needed < <("$python" - "$root/pyproject.toml" <<'END'
import sys, tomllib
with open(sys.argv[1], "rb") as file:
    print(*tomllib.load(file)["project"]["dependencies"], "pytest", "pytest-timeout", "hypothesis", sep="\n")
END
  )
  "$python" -m pip install --quiet --disable-pip-version-check --no-index --find-links "$wheels" "${needed[@]}"
elif [[ -z ${PYTHON:-} && -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
fi

cd "$root"
spent=$(($(date +%s) - began))
PYTHONPATH=$root "$python" benchmarks/gpu.py --seconds $((470 - spent)) "$@"
