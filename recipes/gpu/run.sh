#!/usr/bin/env bash
# Speed on a GPU: decoding and whole dialogues on 7B-like shapes in bf16, and how many dialogues fit.
#
#   ./run.sh           on a CUDA device, some 20 minutes
#   ./run.sh rehearse  the same commands on a CPU with the default model, about a minute
#
# decode.py alone: steps of an 8B shape with recorded graphs, one layer's ways to be read, 150 seconds.
#
# Results: results/*.json, decode.jsonl and results/*.txt; figures worth keeping go into docs/performance.md with the hardware.
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p results

if [ "${1:-}" = rehearse ]; then
  device=(--device cpu)
  toy=(--toy)
  shapes=("")
  long=(--length 1024 --max-batch 4 --steps 2)
  dialogue=(--lengths 512 --user-tokens 64 --reply-tokens 16 --repetitions 1)
else
  device=(--device cuda --dtype bfloat16)
  toy=()
  shapes=(qwen2.5-7b llama-8b)
  long=(--length 32768 --max-batch 64)
  dialogue=(--lengths 4096 8192 16384 32768 --user-tokens 448 --reply-tokens 64 --repetitions 3)
fi

python decode.py "${toy[@]}"
for shape in "${shapes[@]}"; do
  named=(${shape:+--shape "$shape"})
  name=${shape:-default}
  # tokens/s at 1, 2, 4 … 64 rows, and the largest batch that fits, for full context and three ratios
  sonic-kv bench batch "${device[@]}" "${named[@]}" "${long[@]}" | tee "results/batch-$name.txt"
  # first token, decode step, closing and bytes over a whole dialogue, also with memory in four bits
  sonic-kv bench dialogue "${device[@]}" "${named[@]}" "${dialogue[@]}" --bits 0 4 --json \
    > "results/dialogue-$name.json"
done
