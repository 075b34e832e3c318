#!/usr/bin/env bash
# What needs a GPU, in under 8 minutes: bash notebooks/lab/on_gpu.sh FOLDER
# FOLDER gets card.csv, tests.txt, run/ (README's first command), table_2.csv.
# Where nothing can be downloaded, wheels of gymnasium, pettingzoo and mujoco (with glfw, pyopengl, mujoco-core,
# farama-notifications) may lie in .whl at the top of the repository.
set -uo pipefail
mkdir -p "$1"
out=$(cd "$1" && pwd)
cd "$(dirname "$0")/../.."
if [ -d .whl ]; then
    site=$(mktemp -d)
    python3 -m pip install --quiet --no-index --no-deps --target "$site" .whl/*.whl
    export PYTHONPATH=$site
fi
nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv | tee "$out/card.csv"
OMP_NUM_THREADS=2 timeout 200 python3 -m pytest -q -p no:cacheprovider --durations=5 -k "cuda or gpu" test_om2p.py 2>&1 |
    tee "$out/tests.txt" | tail -20
work=$(mktemp -d)
(cd "$work" && time timeout 280 python3 "$OLDPWD/om2p.py" --env world --data expert.npz --out run) 2>&1 | tail -12
mkdir -p "$out/run" && cp "$work"/run/{config.json,metrics.csv,curve.png,rollout.gif} "$out/run/"
# a tenth of the 10,000 steps, scaled
timeout 100 python3 notebooks/lab/benchmark.py --table 2 --steps 1000 --only om2p --device cuda --out "$out"
