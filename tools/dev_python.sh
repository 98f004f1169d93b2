# SPDX-License-Identifier: Apache-2.0
# The steps of ./dev that concern the Python package; read by it.

# The Python of the package: frameworks and tools of python/requirements.txt, in build/python-venv.
package_python=build/python-venv/bin/python
need_package_python() {
  need python3-venv
  if ! python3 - <<'END'
import pathlib, sysconfig
raise SystemExit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())
END
  then need python3-dev; fi
  cmp -s python/requirements.txt build/python-venv/installed.txt && return
  step "frameworks for the Python tests" make_package_python
}
make_package_python() {
  local requirements=python/requirements.txt
  python3 -m venv build/python-venv
  $package_python -m pip install --disable-pip-version-check "$(grep '^torch==' $requirements)"
  $package_python -m pip install --disable-pip-version-check -r $requirements
  cp $requirements build/python-venv/installed.txt
}

with_clang() {
  if command -v clang++-19 >/dev/null; then
    env CC=clang-19 CXX=clang++-19 "$@"
  else
    "$@"
  fi
}

# The wheel as users get it, in build/wheelhouse: built with the tools of build/python-venv, its
# platform tag proved by auditwheel.
build_wheel() {
  local built=build/python/dist
  rm -rf $built build/wheelhouse
  with_clang $package_python -m pip wheel . --no-deps --no-build-isolation -w $built \
    --disable-pip-version-check
  PATH=$PWD/build/python-venv/bin:$PATH $package_python -m auditwheel repair \
    --plat "manylinux_2_34_$(uname -m)" -w build/wheelhouse $built/*.whl
}

# The suite against the installed wheel, never against the sources.
python_tests() {
  local results=$PWD/build/python/test-results
  rm -f python/attentile/_core.abi3.so  # a link that ./dev python leaves
  $package_python -m pip install --disable-pip-version-check --force-reinstall --no-deps \
    build/wheelhouse/*.whl
  rm -rf "$results"
  mkdir -p "$results"
  $package_python -m pytest tests/python -q -p no:cacheprovider --durations=15 \
    --junit-xml="$results/pytest.xml" "$@"
}

# The same wheel on other CPythons, where there are any, with NumPy alone.
python_elsewhere() {
  local other ran=
  for other in python3.10 python3.12 python3.13 \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/python3.1[0-9]; do
    $other -c 'import venv' 2>/dev/null || continue
    rm -rf build/python/other-venv
    $other -m venv build/python/other-venv || continue
    build/python/other-venv/bin/python -m pip install --quiet --disable-pip-version-check \
      build/wheelhouse/*.whl
    build/python/other-venv/bin/python -m attentile info
    ran=$(build/python/other-venv/bin/python -c 'import platform, numpy
print(platform.python_version(), "with NumPy", numpy.__version__)')
    echo "notice: the wheel runs on CPython $ran"
  done
  [ -n "$ran" ] || echo "notice: no other CPython is installed: not tried"
}

wheel_checks() {
  $package_python tools/check_wheel.py build/wheelhouse/*.whl
}

mypy_check() { $package_python -m mypy; }

command_python() {
  need "${packages_build[@]}"
  need_clang
  need_package_python
  stop_if_failed 3
  step "extension module" build_extension
  stop_if_failed
  echo "PYTHONPATH=$root/python $root/$package_python"
}

# For work on the package: the extension module beside the sources.
build_extension() {
  with_clang cmake -S . -B build/python/dev -G Ninja -DCMAKE_BUILD_TYPE=Release \
    -DATTENTILE_BUILD_PYTHON=ON -DATTENTILE_BUILD_CLI=OFF -DATTENTILE_BUILD_TESTS=OFF \
    -DATTENTILE_BUILD_EXAMPLES=OFF -DATTENTILE_INSTALL=OFF \
    -DPython_EXECUTABLE="$PWD/$package_python" \
    -Dnanobind_DIR="$($package_python -m nanobind --cmake_dir)"
  cmake --build build/python/dev --parallel "$jobs" --target _core
  ln -sf ../../build/python/dev/python/binding/_core.abi3.so python/attentile/_core.abi3.so
}
