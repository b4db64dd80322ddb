#!/bin/sh
# All that a GPU is measured by, in at most ten minutes, most needed first: sh bench/gpu.sh FOLDER
# A line per part says whether it ended. PYTHON names the interpreter; .venv's is the default.
mkdir -p "${1:?usage: sh bench/gpu.sh FOLDER}" && out=$(cd "$1" && pwd) && cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
end=$(($(date +%s) + 590))
status=0

part() { # name, most seconds, command: what it prints goes to FOLDER/name.txt
    left=$((end - $(date +%s)))
    seconds=$(($2 < left ? $2 : left))
    name=$1
    shift 2
    if [ "$seconds" -lt 10 ]; then
        echo "$name: no time left"
        status=1
    elif timeout -k 5 "$seconds" "$python" "$@" >"$out/$name.txt" 2>&1; then
        echo "$name: done"
    else
        echo "$name: failed or longer than $seconds s, see $out/$name.txt"
        status=1
    fi
}

part tests 150 -m pytest -q tests/fast/test_gpu.py
part decode 150 bench/decode.py --device cuda --parts gpu --against none --repeats 3 --prompt 512 --large-new 24 \
    --json "$out/decode.json"
for shape in 0.5B 1.5B 7B; do
    part "rollout-$shape" 60 bench/rollout.py --device cuda --parts gpu --against none --repeats 3 \
        --gpu-shape $shape --json "$out/rollout-$shape.json"
done
for tokens in 2048 16384; do
    part "grpo-step-$tokens" 60 bench/grpo_step.py --device cuda --against none --repeats 3 \
        --micro-tokens $tokens --json "$out/grpo-step-$tokens.json"
done
exit $status
