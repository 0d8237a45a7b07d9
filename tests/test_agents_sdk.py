"""OpenAI's Agents SDK in Node against the real server: a spoken call with barge-in, no error, and a history of it.

Needs Node and its packages: npm install --prefix tests/node. Skipped, with the reason, where they are missing.
"""
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import load_nano_with_senses, make_service, serve, speak

from model.audio import to_pcm16

CLIENT = Path(__file__).parent / "node" / "agents_call.mjs"
KEY = "s3cret"
pytestmark = [pytest.mark.skipif(shutil.which("node") is None, reason="Node is not installed"),
              pytest.mark.skipif(not (CLIENT.parent / "node_modules").is_dir(), reason="run: npm install --prefix tests/node")]


def test_a_call_by_the_agents_sdk(tmp_path):
    (tmp_path / "pack").mkdir()
    chat = load_nano_with_senses(tmp_path / "pack")
    speech = tmp_path / "speech.pcm"
    speech.write_bytes(to_pcm16(speak(chat, "what is the color of the sky")))
    with serve(make_service(chat), api_key=KEY) as address:
        done = subprocess.run(["node", str(CLIENT), f"ws://{address}/v1/realtime", KEY, str(speech)], capture_output=True, text=True,
                              timeout=110)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == [] and "error" not in seen["types"]
    assert seen["interrupted"] >= 1 and seen["audioBytes"] >= 2 * 3840
    assert len(seen["statuses"]) == 2 and seen["statuses"][0] in (["cancelled", "turn_detected"], ["completed", None])
    # the ear is a random one: what the model makes of that need not come to an end
    assert seen["statuses"][1] in (["completed", None], ["incomplete", "max_output_tokens"])
    assert [role for role, *_ in seen["history"]] == ["user", "assistant"] * 2
