"""The real server on a free port, in a thread: for tests that talk to it as clients do."""
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import uvicorn
from tiny_folders import make_tiny_sensevoice, make_tiny_siglip

from engine.api.app import create_app
from engine.api.limits import Limits
from engine.api.service import Service
from engine.chat import SENSEVOICE, SIGLIP, Chat, find_weights
from engine.generate import GenerationParams

NANO = Path(__file__).resolve().parents[1] / "model" / "nano"


def make_service(chat: Chat, voices_dir: Path | None = None, models: dict | None = None, transcript: int | None = None,
                 **limits) -> Service:
    defaults = chat.settings(temperature=0, transcript=transcript)
    return Service(chat, "minimind-o-test", defaults, Limits(**limits), models=models, voices_dir=voices_dir)


def load_chat(folder: Path, slots: int = 4) -> Chat:
    chat = Chat.load(folder, find_weights(folder), slots=slots)
    torch.set_num_threads(1)
    return chat


def load_nano_with_senses(folder: Path) -> Chat:
    """The nano pack with untrained SenseVoice and SigLIP2, which it does not ship yet, put together in `folder`."""
    for path in NANO.iterdir():
        (folder / path.name).symlink_to(path)
    chat = load_chat(folder)
    if not (folder / SENSEVOICE).exists():
        make_tiny_sensevoice(folder / SENSEVOICE, output_size=chat.config.audio_hidden_size)
    if not (folder / SIGLIP).exists():
        make_tiny_siglip(folder / SIGLIP, hidden_size=chat.config.image_hidden_size)
    return chat


@contextmanager
def serve(service: Service, **guard):
    """Yields "127.0.0.1:PORT" while the server runs. guard: further arguments of create_app."""
    config = uvicorn.Config(create_app(service, **guard), port=0, log_level="error", ws_max_size=service.limits.message_bytes,
                            timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
        time.sleep(0.01)
    try:
        yield "127.0.0.1:%d" % server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive(), "the server did not stop"


def speak(chat: Chat, text: str) -> np.ndarray:
    """(S,) at 24 kHz: `text` read aloud by the model itself, always the same. Only while no server uses the chat."""
    params = GenerationParams(newline_id=chat.newline_id, temperature=0, max_new_tokens=100)
    request = chat.request([{"role": "user", "content": f"Say after me: {text}"}], params, next(iter(chat.voices.values())),
                           generator=torch.Generator().manual_seed(0), say=text)
    chat.engine.admit(request)
    pieces = []
    while chat.engine.busy:
        pieces += [frame.wav for frame in chat.engine.step() if frame.wav is not None]
    return np.concatenate(pieces)
