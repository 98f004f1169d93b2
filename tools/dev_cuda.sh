# SPDX-License-Identifier: Apache-2.0
# The steps of ./dev that concern CUDA; read by it.

# nvcc: the one on PATH or of /usr/local/cuda, else NVIDIA's packages from PyPI in
# build/cuda-toolkit, about 270 MB. Neither needs a GPU or a driver.
cuda_toolkit=build/cuda-toolkit
cuda_packages=(nvidia-cuda-nvcc nvidia-cuda-runtime nvidia-cuda-crt nvidia-nvvm nvidia-cuda-cccl)
cuda_version=13.0

find_nvcc() {
  local nvcc
  for nvcc in "$(command -v nvcc)" /usr/local/cuda/bin/nvcc \
    "$PWD/$cuda_toolkit"/nvidia/cu13/bin/nvcc; do
    [ -x "$nvcc" ] && echo "$nvcc" && return
  done
  return 1
}

need_nvcc() {
  find_nvcc >/dev/null && return
  need python3-venv
  step "nvcc $cuda_version from PyPI" make_toolkit
  [ ${#failed_steps[@]} = 0 ] && return
  echo "dev: nvcc: not found; install the CUDA toolkit, 12.8 or later, and have nvcc on PATH:" \
    "https://developer.nvidia.com/cuda-downloads" >&2
  exit 3
}

make_toolkit() {
  local package wanted=()
  for package in "${cuda_packages[@]}"; do wanted+=("$package==$cuda_version.*"); done
  rm -rf $cuda_toolkit
  python3 -m venv build/cuda-pip
  build/cuda-pip/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --target $cuda_toolkit "${wanted[@]}"
  ln -s lib $cuda_toolkit/nvidia/cu13/lib64  # where nvcc looks
  chmod +x $cuda_toolkit/nvidia/cu13/bin/* $cuda_toolkit/nvidia/cu13/nvvm/bin/*
  $cuda_toolkit/nvidia/cu13/bin/nvcc --version
}

# The program and libattentile_cuda.so, in build/cuda.
build_cuda() {
  local nvcc start=$SECONDS
  nvcc=$(find_nvcc)
  cmake --preset cuda -DCMAKE_CUDA_COMPILER="$nvcc"
  cmake --build build/cuda --parallel "$jobs"
  python3 tools/check_exports.py --backend build/cuda/libattentile_cuda.so
  echo "notice: libattentile_cuda.so: $(stat -c %s build/cuda/libattentile_cuda.so) bytes," \
    "$((SECONDS - start)) s"
}
