#!/usr/bin/env bash
# What the bundled backbone's features are like, as in RESULTS.md: which blocks and noise steps represent images alike,
# and where DifFormer and a linear probe look.
# Usage: benchmarks/insight.sh OUTPUT_FOLDER
set -euo pipefail
out=$1
places=(--blocks 9 13 18 20 --noise-steps 5 50 200)

difflens cka --data fashion --limit 2000 --noise-steps 5 20 50 100 200 400 --out "$out/cka"
difflens cka --backbone random:fashion --data fashion --limit 2000 --noise-steps 5 --out "$out/cka-untrained"
for head in difformer linear; do
  raw=()
  [ "$head" = linear ] && raw=(--normalise none)
  difflens probe --data fashion --head "$head" "${raw[@]}" "${places[@]}" --out "$out/$head"
  difflens explain --run "$out/$head" --out "$out/explain-$head"
done
