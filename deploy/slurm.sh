#!/bin/bash
# A command on Slurm, in a Ray cluster of all nodes of the job. In the checkout, on a file system
# that all nodes see:
#
#   sbatch --nodes=4 deploy/slurm.sh python -m pipelines.tune \
#       --features /shared/features --out /shared/runs/study --gpus 1
#
# Submitted again, the same command goes on where it stopped.
#SBATCH --job-name=cliptune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
set -euo pipefail

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
others=$((${#nodes[@]} - 1))
# This script runs on the first node. Ray's workers listen at ports 10002 to 19999.
ip=$(python -c 'import ray.util; print(ray.util.get_node_ip_address())')
port=$((20000 + SLURM_JOB_ID % 10000))
export RAY_ADDRESS="$ip:$port" RAY_USAGE_STATS_ENABLED=0
# Who has no token cannot give this cluster work; srun hands the environment on.
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token

on() { # nodes, then srun's choice of them, then the words of `ray start`
    local count=$1 which=$2
    shift 2
    env -u RAY_ADDRESS srun --nodes="$count" --ntasks="$count" "$which" \
        --cpus-per-task="$SLURM_CPUS_PER_TASK" \
        ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" --disable-usage-stats "$@" &
    steps+=($!)
}

steps=()
trap 'kill "${steps[@]}" 2>/dev/null || true; wait' EXIT

on 1 --nodelist="${nodes[0]}" --head --node-ip-address="$ip" --port="$port" \
    --temp-dir="/tmp/ray-$SLURM_JOB_ID"
until (exec 3<>"/dev/tcp/$ip/$port") 2>/dev/null; do
    kill -0 "${steps[0]}" || { echo "error: Ray's head did not start." >&2; exit 1; }
    sleep 1
done
if ((others)); then
    on "$others" --exclude="${nodes[0]}" --address="$RAY_ADDRESS"
fi
python - "${#nodes[@]}" <<'PYTHON'
import sys, time, ray

ray.init(logging_level="ERROR")
end = time.monotonic() + 300
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    if time.monotonic() > end:
        sys.exit(f"error: not all {sys.argv[1]} nodes joined Ray within 5 minutes.")
    time.sleep(1)
PYTHON

"$@" &
command=$!
trap 'kill -TERM "$command"' TERM INT # the search saves, and says how to go on
status=0
wait "$command" || status=$?
while kill -0 "$command" 2>/dev/null; do # only a signal woke us
    status=0
    wait "$command" || status=$?
done
exit "$status"
