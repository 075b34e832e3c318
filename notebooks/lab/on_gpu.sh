#!/usr/bin/env bash
# What needs a GPU, in under 8 minutes: bash notebooks/lab/on_gpu.sh FOLDER
# FOLDER gets card.csv, table_2.csv, tests.txt and the metrics of README's first command with three seeds.
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
# timed first, while nothing else runs
python3 notebooks/lab/benchmark.py --table 2 --steps 500 --device cuda --out "$out"
export OMP_NUM_THREADS=2
timeout 300 python3 -m pytest -q -p no:cacheprovider -k "cuda or gpu" test_om2p.py >"$out/tests.txt" 2>&1 &
work=$(mktemp -d)
for seed in 0 1 2; do
    mkdir "$work/$seed"
    (cd "$work/$seed" && timeout 400 python3 "$OLDPWD/om2p.py" --env world --data expert.npz --seed "$seed" --out run 2>&1 | tail -3) &
done
wait
for seed in 0 1 2; do cp "$work/$seed/run/metrics.csv" "$out/world-expert-$seed.csv"; done
tail -5 "$out/tests.txt"
