"""The environment in which Python loads libraries built with AddressSanitizer and UndefinedBehaviorSanitizer."""

import os
import shutil
import subprocess


def _runtime(name: str) -> str | None:
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        return None
    path = subprocess.run(
        [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    return path if os.path.isabs(path) else None


def sanitizer_environment() -> dict[str, str]:
    """Torch and Python are not instrumented and keep their caches: leaks are not ours to judge. Their allocations are
    intercepted, so every tensor has guard zones."""
    runtimes = [_runtime("libasan.so"), _runtime("libubsan.so")]
    assert all(runtimes), "the compiler's sanitizer runtimes are missing: install g++'s libasan and libubsan"
    return {
        "LD_PRELOAD": " ".join(str(path) for path in runtimes),
        "ASAN_OPTIONS": "detect_leaks=0:protect_shadow_gap=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }
