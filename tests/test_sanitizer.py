"""AddressSanitizer and UndefinedBehaviorSanitizer over every op and ISA: `tilewright check` on a sanitized build."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sanitizer import sanitizer_environment

ROOT = Path(__file__).parent.parent


def test_no_access_outside_a_tensor(tmp_path):
    environment = dict(os.environ, TILEWRIGHT_SANITIZE="1", PYTHONPATH=str(tmp_path))
    build = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", str(tmp_path)]
    built = subprocess.run(build, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout[-3000:] + built.stderr[-3000:]
    ignore = shutil.ignore_patterns("*.so", "_build.py", "__pycache__")
    shutil.copytree(ROOT / "python" / "tilewright", tmp_path / "tilewright", ignore=ignore, dirs_exist_ok=True)

    environment |= sanitizer_environment()
    run = subprocess.run(
        [sys.executable, "-m", "tilewright", "check"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    if run.returncode != 0:
        pytest.fail(f"exit status {run.returncode}\n{run.stdout[-6000:]}\n{run.stderr[-6000:]}")
