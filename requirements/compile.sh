#!/usr/bin/env bash
# Compiles the pinned, hash-checked requirement files from the pyproject.toml of each package: `make requirements`.
set -euo pipefail
cd "$(dirname "$0")/.."
uv="${UV:-.venv/bin/uv}"
ours=()
for file in libs/*/pyproject.toml services/*/pyproject.toml clients/python/pyproject.toml deploy/local/pyproject.toml; do
    ours+=(--no-emit-package "$(sed -n 's/^name = "\(.*\)"/\1/p' "$file" | head -n 1)")
done

compile() { "$uv" pip compile --quiet --python-version 3.11 --generate-hashes --no-header --no-annotate --no-emit-index-url "${ours[@]}" "$@"; }

# Everything a developer needs. The others are held to its versions, so that what is tested is what is shipped.
compile --universal requirements/dev.in {libs,services}/*/pyproject.toml clients/python/pyproject.toml deploy/local/pyproject.toml \
    --extra cpu --extra testing -o requirements/dev.txt
for service in gateway dicom-worker export-worker scheduler; do
    compile --universal -c requirements/dev.txt "services/$service/pyproject.toml" -o "requirements/$service.txt"
done
compile --universal -c requirements/dev.txt clients/python/pyproject.toml -o requirements/client.txt
compile --universal -c requirements/dev.txt services/ml-worker/pyproject.toml --extra cpu -o requirements/ml-worker-cpu.txt
# The CUDA wheels exist for x86-64 alone.
compile --python-platform x86_64-manylinux_2_28 -c requirements/dev.txt services/ml-worker/pyproject.toml --extra gpu -o requirements/ml-worker-gpu.txt
# What builds our wheels inside the images.
compile --universal -c requirements/dev.txt requirements/build.in -o requirements/build.txt
# NVIDIA's client, which wants an older protobuf: tests run it in an environment of its own.
compile --universal requirements/tritonclient.in -o requirements/tritonclient.txt
