#!/usr/bin/env bash
# Starts verl on this folder: ./run.sh, in verl's environment (verl[vllm] or verl[sglang], with verl[verl-core]).
# Further overrides may follow: ./run.sh trainer.total_epochs=1
# With more than one node, start Ray on all of them first (`ray start --head`, `ray start --address=HEAD:6379`) and this
# script on the head. The folder must lie at the same path on every node, and so must whet's interpreter (reward.json;
# WHET_PYTHON names another).
set -euo pipefail
folder="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export VERL_FILE_LOGGER_PATH="${VERL_FILE_LOGGER_PATH:-$folder/metrics.jsonl}"
overrides=()
while IFS= read -r line; do overrides+=("$line"); done <"$folder/overrides.txt"
cd "$folder"
exec "${PYTHON:-python3}" -m verl.trainer.main_ppo "${overrides[@]}" "$@"
