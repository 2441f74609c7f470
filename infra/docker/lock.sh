#!/usr/bin/env bash
# Write requirements/*.txt: what each image installs, with versions and hashes. Run it after a change of pyproject.toml
# or constraints.txt. It needs uv (`pip install uv`) and the network.
set -euo pipefail
cd "$(dirname "$0")/../.."
# The page that links torch's wheels without CUDA; another folder or page for machines that have a mirror.
TORCH_CPU_WHEELS=${TORCH_CPU_WHEELS:-https://download.pytorch.org/whl/cpu/torch/}
folder=infra/docker/requirements

lock() {
    local name=$1
    shift
    uv pip compile "$@" --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
        --generate-hashes --no-annotate --custom-compile-command infra/docker/lock.sh \
        --output-file "$folder/$name.txt"
}

work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
grep -v '^torch==' constraints.txt >"$work/constraints.txt"
echo 'torch==2.13.0+cpu' >"$work/torch-cpu.txt"
# vLLM 0.32 wants an older transformers than the rest of Warren (docs/compatibility.md), and other versions than CI's.
echo 'transformers>=5.16.1,<5.20' >"$work/vllm.txt"

echo 'hatchling' | lock build -
# The demo's data. What it asks for is what Warren has, or not needed.
grep '^easy-vqa==' constraints.txt | lock demo - --no-deps
lock train pyproject.toml --extra trackers --constraint constraints.txt
lock cpu pyproject.toml --extra trackers --extra demo --constraint "$work/constraints.txt" --constraint "$work/torch-cpu.txt" \
    --find-links "$TORCH_CPU_WHEELS" --no-emit-package torch
lock serve pyproject.toml --extra vllm --override "$work/vllm.txt"
