"""AddressSanitizer and UndefinedBehaviorSanitizer over every op and ISA: `tilewright check` on a sanitized build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _sanitizer_runtime(name: str) -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return None
    path = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if os.path.isabs(path) else None


def test_no_access_outside_a_tensor(tmp_path):
    runtimes = [_sanitizer_runtime("libasan.so"), _sanitizer_runtime("libubsan.so")]
    assert all(runtimes), "the compiler's sanitizer runtimes are missing: install g++'s libasan and libubsan"
    environment = dict(os.environ, TILEWRIGHT_SANITIZE="1", PYTHONPATH=str(tmp_path))
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    ignore = shutil.ignore_patterns("*.so", "_build.py", "__pycache__")
    shutil.copytree(ROOT / "python" / "tilewright", tmp_path / "tilewright", ignore=ignore, dirs_exist_ok=True)

    # Torch itself is not instrumented and keeps its caches: leaks are not ours to judge. Its allocations are
    # intercepted, so every tensor has guard zones.
    environment |= {
        "LD_PRELOAD": " ".join(str(path) for path in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
    run = subprocess.run(
        [sys.executable, "-m", "tilewright", "check"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if run.returncode != 0:
        pytest.fail(f"exit status {run.returncode}\n{run.stdout[-6000:]}\n{run.stderr[-6000:]}")
