#!/bin/bash
# Made by `stereo-jobs render`: sbatch FILE
#SBATCH --job-name=stereo-jobs
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --mem=128G
#SBATCH --gpus-per-node=4
#SBATCH --partition=gpu
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@180
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

# Starts a Ray head on the first node, workers on the other nodes, and the run in this script. When the run ends, the
# cluster is stopped.
set -euo pipefail
umask 077
# shellcheck disable=SC1091
source "$HOME/stereo-jobs/.venv/bin/activate"

# A token for this job only. srun passes it on in the environment, which `scontrol show job` does not show.
if [ -z "${RAY_AUTH_TOKEN:-}" ]; then
  RAY_AUTH_TOKEN="$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')"
fi
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

folder="$(mktemp -d)"
cat >"$folder/job.yaml" <<'END_OF_JOB_SPEC'
# The job of the examples here: everything that it reads and writes is on S3.
manifest: s3://my-bucket/prompts/*.parquet
output: s3://my-bucket/stereo/first
recipe:
  models:
    stable_diffusion: {path: stable-diffusion-v1-5/stable-diffusion-v1-5, dtype: float16}
    depth: {path: depth-anything/Depth-Anything-V2-Small-hf}
  method: {preset: best}
  scale_percent: {min: 4, max: 10}
runtime:
  batch_size: 8
  shard_rows: 128
END_OF_JOB_SPEC

nodes="$(scontrol show hostnames "$SLURM_JOB_NODELIST")"
head="${nodes%%$'\n'*}"
# Each job has ports and folders of its own, so two jobs can share a node.
port=$((20000 + SLURM_JOB_ID * 2 % 20000))
start=(ray start --block --disable-usage-stats --num-cpus "$SLURM_CPUS_PER_TASK" --num-gpus 4)

# shellcheck disable=SC2329  # called by the trap
cleanup() {
  # By process id, so that only processes of this script are ended.
  kill "${steps[@]}" 2>/dev/null || true
  wait "${steps[@]}" 2>/dev/null || true
  rm -rf "$folder"
}
steps=()
trap cleanup EXIT

srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
  "${start[@]}" --head --port="$port" --ray-client-server-port=$((port + 1)) --include-dashboard=false \
  --temp-dir="/tmp/ray-$SLURM_JOB_ID" &
steps+=($!)
export RAY_ADDRESS="$head:$port"
for ((i = 1; ; i++)); do
  ray status --address "$RAY_ADDRESS" >/dev/null 2>&1 && break
  if ((i >= 60)); then
    echo "the Ray head on $head:$port did not come up" >&2
    exit 1
  fi
  sleep 5
done
if ((SLURM_JOB_NUM_NODES > 1)); then
  srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --overlap --exclude="$head" \
    "${start[@]}" --address="$RAY_ADDRESS" &
  steps+=($!)
fi

# Slurm sends TERM before the time limit and at preemption: the run then drains and exits with code 75.
stereo-jobs run "$folder/job.yaml" --set runtime.device=cuda --set 'runtime.actors={min: 4, max: 8}' --set runtime.start_timeout_s=3600 &
run=$!
stopped=0
trap 'stopped=1; kill -TERM "$run" 2>/dev/null || true' TERM INT
while true; do
  wait "$run" && code=0 || code=$?
  # A signal ends `wait` while the run is still draining: wait again.
  ((stopped)) || break
  stopped=0
done

if ((code == 75 && ${SLURM_RESTART_COUNT:-0} < 2)); then
  echo "interrupted; queued again, to resume where it left off"
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$code"
