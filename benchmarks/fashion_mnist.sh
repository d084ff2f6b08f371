#!/usr/bin/env bash
# The tables of Fashion-MNIST in RESULTS.md: where to read, and every head with all and with few labels, three seeds.
# About three hours on two CPU cores.
# Usage: benchmarks/fashion_mnist.sh OUTPUT_FOLDER
set -euo pipefail
out=$1

difflens sweep --data fashion-full --noise-steps 1 5 10 20 50 100 200 400 --budget 12000 --out "$out/sweep"

for seed in 0 1 2; do
  probe() { difflens probe --data fashion-full --seed "$seed" --out "$out/$1-$seed" "${@:2}"; }
  raw=(--normalise none)  # the table reads features as they are
  # read once for all heads; the same features as without a store
  store=$out/store-$seed
  difflens extract --data fashion-full --blocks 18 20 --noise-steps 5 20 --pool 4 --seed "$seed" --out "$store"
  for fraction in 0.01 0.1; do
    few=(--label-fraction "$fraction")
    probe "pixels-$fraction" --backbone pixels:1x28 --head linear "${raw[@]}" "${few[@]}"
    probe "untrained-$fraction" --backbone random:fashion --head linear "${raw[@]}" "${few[@]}"
    for head in knn linear; do
      probe "$head-$fraction" --store "$store" --head "$head" "${raw[@]}" "${few[@]}"
    done
    for head in attention difformer; do
      probe "$head-$fraction" --store "$store" --head "$head" "${few[@]}"
    done
    probe "diffeed-$fraction" --head diffeed "${few[@]}"
  done
  probe pixels-1 --backbone pixels:1x28 --head linear "${raw[@]}"
  probe untrained-1 --backbone random:fashion --head linear "${raw[@]}"
  probe knn-1 --store "$store" --head knn "${raw[@]}"
  probe linear-1 --store "$store" --head linear "${raw[@]}"
  probe grid-1 --store "$store" --head linear "${raw[@]}" --grid
  probe attention-1 --store "$store" --head attention --width 128 --epochs 15
  probe difformer-1 --store "$store" --head difformer --width 128 --epochs 6
  probe diffeed-1 --head diffeed --width 128 --epochs 2
done
python "$(dirname "$0")/summarise.py" "$out"
