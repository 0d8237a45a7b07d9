"""The phone page's own logic, run in Node without a browser: what is queued, cut, sent up and shown. See phone_probe.js."""
import shutil
import subprocess
from pathlib import Path

import pytest

PROBE = Path(__file__).with_name("phone_probe.js")


@pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed")
def test_the_phone_page_does_what_it_should():
    done = subprocess.run(["node", str(PROBE)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr
