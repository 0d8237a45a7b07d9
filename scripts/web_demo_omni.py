"""Serve MiniMind-O: a web page to talk to it at /, one to call it at /phone, OpenAI's Realtime and chat-completions protocols.

- Without arguments: the nano pack on http://127.0.0.1:7860. The model is chosen as in eval_omni.py; the page's menu has others.
- Nobody but this machine can connect unless --host says so; then set --api-key or --auth, which guard every route.
- Browsers give a page the microphone only on this machine's own address or over https: --ssl-certfile and --ssl-keyfile.

    python -m scripts.web_demo_omni
    python -m scripts.web_demo_omni --host 0.0.0.0 --auth me:SECRET --ssl-certfile cert.pem --ssl-keyfile key.pem
"""
import argparse
import logging
import socket
import ssl
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
import uvicorn

from engine.api.app import create_app
from engine.api.limits import Limits
from engine.api.service import Service
from engine.chat import Chat, pick_device, released_config
from engine.model_menu import scan
from eval_omni import (NANO_PACK, RELEASED, RELEASED_WEIGHTS, ROOT, Parser, add_model_arguments, load_chat, locate, number,
                       pack_folder)
from model.refusal import INPUT_ERRORS, refuse

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_model_arguments(parser)
    serve = parser.add_argument_group("server")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all of this machine's")
    serve.add_argument("--port", type=number(int, 0, 65535), default=7860)
    serve.add_argument("--api-key", help="let nobody in without this key")
    serve.add_argument("--auth", metavar="USER:PASSWORD", help="let nobody in without this, or the key")
    serve.add_argument("--allow-origin", nargs="*", default=[], metavar="URL", help="pages of other servers that may use this one")
    serve.add_argument("--ssl-certfile", help="certificate, for https")
    serve.add_argument("--ssl-keyfile", help="its private key")
    serve.add_argument("--slots", type=number(int, 1, 256), default=8, help="replies generated at the same time")
    serve.add_argument("--max-calls", type=number(int, 1), default=Limits.calls, help="Realtime sessions at the same time")
    serve.add_argument("--max_new_tokens", type=number(int, 1), default=Limits.new_tokens, help="longest reply, in steps of 80 ms")
    serve.add_argument("--temperature", type=number(float, 0), help="of the text, where a client names none")
    serve.add_argument("--models-dir", nargs="*", default=[], metavar="FOLDER", help="more folders with weights, for the page's menu")
    serve.add_argument("--voices-dir", default=str(ROOT / "out" / "voices"), help="where cloned voices are kept")
    serve.add_argument("--page", action=argparse.BooleanOptionalAction, default=True, help="the web page")
    serve.add_argument("--log-transcripts", action="store_true", help="log what is said; otherwise it is not")
    return parser


def build_app(args):
    """The application for parsed arguments. FileNotFoundError and ValueError name what is missing or wrong, and the remedy."""
    for flag, file in (("--ssl-certfile", args.ssl_certfile), ("--ssl-keyfile", args.ssl_keyfile)):
        if file is not None and not Path(file).is_file():
            raise FileNotFoundError(f"{flag} {file}: no such file")
    if (args.ssl_certfile is None) != (args.ssl_keyfile is None):
        raise ValueError("https needs both --ssl-certfile and --ssl-keyfile")
    if args.api_key is not None and (not args.api_key.strip() or not args.api_key.isascii()):
        raise ValueError("--api-key must be plain characters, and some")
    if args.auth is not None and not all(args.auth.partition(":")):
        raise ValueError("--auth must be USER:PASSWORD")
    folder = pack_folder(args)
    check_address(args)
    chat, _ = load_chat(args, folder, slots=args.slots)
    limits = Limits(calls=args.max_calls, new_tokens=args.max_new_tokens)
    service = Service(chat, f"minimind-o-{chat.config.hidden_size}", chat.settings(temperature=args.temperature), limits,
                      args.log_transcripts, find_models(args, folder), args.voices_dir)
    hosts = LOOPBACK if args.host in LOOPBACK else None
    return create_app(service, args.page, api_key=args.api_key, auth=args.auth, hosts=hosts, origins=frozenset(args.allow_origin))


def check_address(args) -> None:
    """Raise OSError or ValueError unless the server can listen where it is told to, with the certificate that it is given."""
    if args.ssl_certfile is not None:
        try:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(args.ssl_certfile, args.ssl_keyfile)
        except OSError as error:  # what is wrong with a certificate is one, too
            raise ValueError(f"--ssl-certfile {args.ssl_certfile} and --ssl-keyfile {args.ssl_keyfile} are not a certificate and its own "
                             f"key in PEM format ({error})") from error
    try:
        socket.create_server((args.host, args.port), family=socket.AF_INET6 if ":" in args.host else socket.AF_INET).close()
    except OSError as error:
        raise OSError(f"cannot listen on --host {args.host} --port {args.port} ({error.strerror or error}): choose others, or stop what "
                      "listens there") from error


def find_models(args, folder: Path) -> dict:
    """The models for the page's menu, each with a function that loads it: those of the packs, of out/, of this folder, of --models-dir."""
    choices = scan([RELEASED_WEIGHTS, ROOT, *map(locate, args.models_dir)], [folder, NANO_PACK, RELEASED])

    def loader(choice):
        def load():
            chat = Chat.load(choice.pack, choice.weights, released_config(choice.weights), pick_device(args.device), dtype=args.dtype,
                             slots=args.slots, compiled=bool(args.use_compile))
            return chat, chat.settings(temperature=args.temperature)
        return load
    return {name: loader(choice) for name, choice in choices.items()}


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        app = build_app(args)
    except INPUT_ERRORS as error:
        return refuse(error)
    if args.host not in LOOPBACK and args.api_key is None and args.auth is None:
        print("warning: anybody who can reach this machine can use the server; set --api-key or --auth", file=sys.stderr)
    scheme = "https" if args.ssl_certfile else "http"
    print(f"MiniMind-O on {scheme}://{args.host}:{args.port}" + ("" if args.page else "/phone"), flush=True)
    uvicorn.run(app, host=args.host, port=args.port, ws_max_size=Limits.message_bytes, ssl_certfile=args.ssl_certfile,
                ssl_keyfile=args.ssl_keyfile, log_level="warning", timeout_graceful_shutdown=5)
    return 0


if __name__ == "__main__":
    sys.exit(main())
