#!/usr/bin/env bash
# The table of RESULTS.md: every head on all of Fashion-MNIST. About 40 minutes on two CPU cores.
# Usage: benchmarks/fashion_mnist.sh OUTPUT_FOLDER
set -euo pipefail
out=$1
probe() { difflens probe --data fashion-full --seed 0 --out "$out/$1" "${@:2}"; }

probe linear --head linear
probe pixels --backbone pixels:1x28 --head linear
probe random-linear --backbone random:fashion --head linear
probe attention --head attention --width 128 --epochs 15
probe diffeed --head diffeed --width 128 --epochs 2
probe difformer --head difformer --width 128 --epochs 6
