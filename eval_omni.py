"""Talk to MiniMind-O on the command line: text, speech and pictures in, streamed text and 24 kHz speech out.

- Without arguments: every suite the shipped nano pack can run. `--prompt` asks one question, `--interactive` holds a conversation.
- `--load_from model` talks to the released model (weights in out/, tokenizer and frozen modules in model/), `--load_from FOLDER` to
  another pack or to a Transformers folder of MiniMind-O (frozen modules in it, or in model/).
- Speech is decoded while it is generated; each reply's times, WAV and a results.json are kept in --output_dir: of all that was answered,
  when a question cannot be asked or Ctrl-C ends it, too.
- Exit codes: 0 done, 2 wrong input or a missing module (one line on stderr says which and the remedy), 130 interrupted.

    python eval_omni.py --prompt "What color is the sky?"
    python eval_omni.py --suite text clone
    python eval_omni.py --interactive
"""
import argparse
import math
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.chat import (CAMPPLUS, MIMI, SENSEVOICE, SIGLIP, VOICES, Answer, Chat, ReplyFailed, find_weights, listen, pick_device,
                         read_image, released_config, require_part)
from engine.generate import GenerationParams
from engine.precision import DTYPES
from engine.voices import NO_VOICE, Voice, pick_voice
from evals.cases import SUITES, Case, cases_for, parse_suites
from model.audio import read_audio, write_wav
from model.checkpoint import save_json
from model.config import INPUT_RATE, SAMPLE_RATE, OmniConfig
from model.refusal import INPUT_ERRORS, one_line, refuse
from model.transformers_folder import is_transformers_folder

ROOT = Path(__file__).resolve().parent
NANO_PACK, RELEASED, RELEASED_WEIGHTS = ROOT / "model" / "nano", ROOT / "model", ROOT / "out"
NEEDS = {"audio": (SENSEVOICE,), "image": (SIGLIP,), "mix": (SENSEVOICE, SIGLIP), "clone": (VOICES,)}  # parts of the pack, per suite
CONVERSATION = "cli"  # key of what the engine keeps between turns: there is one conversation at a time
HELP = """/audio FILE  ask by voice          /image FILE  show a picture with the next question
/voice NAME  speak with this voice /clone FILE   speak like this clip
/voice       list the voices
/reset       forget what was said  /exit         leave"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message} (see --help)\n")


def number(kind, low, high=math.inf, *, open_low=False):
    """An argparse type: a finite number in [low, high], or ]low, high]."""
    def convert(text):
        value = kind(text)
        if not low <= value <= high or (open_low and value == low) or not math.isfinite(value):
            raise argparse.ArgumentTypeError(f"{text} must be a number {'above' if open_low else 'at least'} {low}"
                                             + (f" and at most {high}" if high < math.inf else ""))
        return value
    convert.__name__ = kind.__name__
    return convert


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say which model is loaded, and where; see load_chat."""
    model = parser.add_argument_group("model")
    model.add_argument("--load_from", help="'model' for the released model, or a pack's or Transformers folder (default: model/nano)")
    model.add_argument("--save_dir", help="folder of the weights (default: the pack itself; out/ for the released model)")
    model.add_argument("--weight", help="weights' name without size, e.g. sft_omni (default: the one the folder has)")
    model.add_argument("--use_moe", type=int, choices=(0, 1), help="1: the mixture-of-experts weights")
    model.add_argument("--hidden_size", type=number(int, 8), help="Thinker's width, when it cannot be told from the file")
    model.add_argument("--num_hidden_layers", type=number(int, 1), help="Thinker's layers of weights that have no .json beside them")
    model.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    model.add_argument("--dtype", choices=DTYPES, default="auto", help="number format of the weights (default: the best for the device)")
    model.add_argument("--use_compile", type=int, choices=(0, 1), default=0, help="1: faster steps, once they have been compiled: minutes "
                       "the first time on a machine, seconds later")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__.splitlines()[0], allow_abbrev=False)
    add_model_arguments(parser)
    ask = parser.add_argument_group("what to ask")
    ask.add_argument("--prompt", help="ask this one question")
    ask.add_argument("--audio", help="ask with this sound file")
    ask.add_argument("--image", help="show this picture")
    ask.add_argument("--interactive", action="store_true", help="hold a conversation; type /help inside")
    ask.add_argument("--suite", nargs="+", metavar="NAME", help=f"bundled questions: {', '.join(SUITES)}, or all")
    ask.add_argument("--mode", help="the same by number, as in the original: -1 all, 0 text ... 5 mix; lists like 0,2")
    ask.add_argument("--examples_dir", help="sounds and pictures of the suites (default: <pack>/examples)")
    how = parser.add_argument_group("how to answer")
    how.add_argument("--voice", help="voice from the pack's voices.pt or voices_unseen.pt, or 'none' (default: the first)")
    how.add_argument("--clone", metavar="FILE", help="speak like this clip (1-30 s)")
    how.add_argument("--temperature", type=number(float, 0), help="of the text; 0 is greedy (default: the pack's, 0.1 nano; 0.7 released)")
    how.add_argument("--top_p", type=number(float, 0, 1, open_low=True), help="default: the pack's, else 0.9")
    how.add_argument("--max_new_tokens", type=number(int, 1), default=512, help="longest reply, in steps of 80 ms of speech")
    how.add_argument("--transcript", type=int, choices=(0, 1, 2), help="spoken questions are 0: heard, 1: heard and read as the pack's ear "
                     "writes them down, 2: read (default: the pack's)")
    how.add_argument("--open_thinking", type=int, choices=(0, 1), default=0, help="1: reason before answering")
    how.add_argument("--decode_audio", type=int, choices=(0, 1), default=1, help="0: text only, no codec needed")
    how.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=0)
    how.add_argument("--output_dir", default=str(ROOT / "out" / "eval"), help="where WAVs and results.json go")
    return parser


@dataclass
class Session:
    """One conversation with everything that shapes its replies."""
    chat: Chat
    params: GenerationParams
    voice: Voice
    generator: torch.Generator
    output_dir: Path
    messages: list[dict] = field(default_factory=list)

    def ask(self, name: str, text: str, audio: Path | None = None, image: Path | None = None, voice: Voice | None = None) -> dict:
        """Ask, print the reply as it comes, save its WAV as <name>.wav; returns the record for results.json."""
        wav = None if audio is None else read_audio(audio, INPUT_RATE)
        images = [] if image is None else [read_image(image)]
        voice = voice or self.voice
        messages = self.chat.fit([*self.messages, {"role": "user", "content": text}], self.params, wav, len(images))
        answer = listen(lambda: self.chat.reply(messages, self.params, voice, wav, images, self.generator, CONVERSATION), self.params,
                        on_text=lambda piece: print(piece, end="", flush=True))
        print()
        heard = self.chat.transcribe(wav) if wav is not None else ""
        # later turns know a spoken question by its words: only the newest turn can be heard
        turn = {"role": "user", "content": "\n\n".join(filter(None, (text, heard)))}
        self.messages = [*messages[:-1], turn, {"role": "assistant", "content": answer.text}]
        path = None
        if len(answer.wav):
            path = self.output_dir / f"{name}.wav"
            write_wav(path, answer.wav, SAMPLE_RATE)
        if heard:
            print(f"  (heard: {heard})")
        print(f"  {figures(answer, bool(self.chat.mimi))}" + (f" -> {shown(path)}" if path else ""), flush=True)
        return {"name": name, "prompt": text, "audio": audio and str(audio), "image": image and str(image), "heard": heard,
                "voice": voice.name, "reply": answer.text, "thinking": answer.thinking, "ended": answer.ended,
                "wav": path and str(path), "audio_s": answer.audio_s, "ttft_s": answer.ttft_s, "ttfa_s": answer.ttfa_s, "rtf": answer.rtf}


def figures(answer: Answer, audible: bool) -> str:
    """The times of one reply in one line."""
    parts = [f"TTFT {answer.ttft_s * 1000:.0f} ms" if answer.ttft_s else "no text"]
    if answer.rtf:
        parts += [f"TTFA {answer.ttfa_s * 1000:.0f} ms", f"RTF {answer.rtf:.2f}", f"{answer.audio_s:.1f} s of speech"]
    elif audible:
        parts.append("no speech")
    if not answer.ended:
        parts.append("cut off by --max_new_tokens")
    return ", ".join(parts)


def shown(path: Path) -> str:
    """A path as short as it can be written from here."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def locate(text: str) -> Path:
    """A path as given, else the same from the repository root; so that commands work from any folder."""
    path = Path(text).expanduser()
    return path if path.exists() or not (ROOT / path).exists() else ROOT / path


def transformers_folder(args) -> Path | None:
    """The folder in Transformers format that --load_from names, if it is one."""
    if args.load_from in (None, "model"):
        return None
    folder = locate(args.load_from)
    return folder if is_transformers_folder(folder) else None


def pack_folder(args) -> Path:
    if args.load_from is None:
        if not NANO_PACK.is_dir():
            raise FileNotFoundError(f"the nano pack {shown(NANO_PACK)} is missing: restore it with git, or build it as nano/README.md says")
        return NANO_PACK
    folder = RELEASED if args.load_from == "model" else locate(args.load_from)
    if not folder.is_dir():
        raise FileNotFoundError(f"--load_from {args.load_from}: no such folder; give 'model' or the folder of a pack")
    return RELEASED if transformers_folder(args) and not (folder / MIMI).is_dir() else folder


def check_inputs(args, folder: Path) -> None:
    """Refuse missing files and missing parts of the pack before anything slow is loaded."""
    if args.voice is not None and args.clone is not None:
        raise ValueError("choose one of --voice and --clone")
    for flag, parts in (("audio", (SENSEVOICE,)), ("image", (SIGLIP,)), ("clone", (CAMPPLUS, MIMI))):
        file = getattr(args, flag)
        if file is not None:
            if not locate(file).is_file():
                raise FileNotFoundError(f"--{flag} {file}: no such file")
            for part in parts:
                require_part(folder, part, f"--{flag}")
    if args.decode_audio:
        require_part(folder, MIMI, "speech (--decode_audio 1)")
    if args.prompt is not None and not args.prompt.strip() and args.audio is None and args.image is None:
        raise ValueError("--prompt is empty: give a question, --audio or --image")


def chosen_suites(args, folder: Path) -> list[str]:
    """Suites to run, each checked for what it needs. Without a choice: those that the pack has the parts for."""
    names = [*(args.suite or []), *([args.mode] if args.mode is not None else [])]
    if names:
        suites = parse_suites(names)
        for suite in suites:
            for part in NEEDS.get(suite, ()):
                require_part(folder, part, f"suite {suite}")
        return suites
    return [suite for suite in SUITES if all((folder / part).exists() for part in NEEDS.get(suite, ()))]


def load_chat(args, folder: Path, decode_audio: bool = True, slots: int = 1) -> tuple[Chat, str]:
    """The model that the flags of add_model_arguments name; returns it and the world ("nano" or "general") its prompts come from."""
    released = folder == RELEASED
    weights_dir = locate(args.save_dir) if args.save_dir else RELEASED_WEIGHTS if released else folder
    use_moe = None if args.use_moe is None else bool(args.use_moe)
    weights = transformers_folder(args) or find_weights(weights_dir, args.weight, args.hidden_size, use_moe)
    device = pick_device(args.device)
    config = released_config(weights, args.num_hidden_layers)
    chat = Chat.load(folder, weights, config, device, decode_audio=decode_audio, dtype=args.dtype, slots=slots,
                     compiled=bool(args.use_compile))
    chat.use_few_threads()
    if args.max_new_tokens >= chat.engine.max_length:
        raise ValueError(f"--max_new_tokens {args.max_new_tokens}: question and reply together have {chat.engine.max_length} positions in "
                         f"{shown(weights)}; give less")
    return chat, world_of(chat)


def world_of(chat: Chat) -> str:
    """Whose prompts a model knows: "nano" or "general"."""
    return "nano" if chat.config.vocab_size < OmniConfig.vocab_size else "general"


def load_session(args, folder: Path) -> tuple[Session, str]:
    """Load the pack; returns the session and its world, as load_chat."""
    chat, world = load_chat(args, folder, bool(args.decode_audio))
    if args.use_compile:
        print("compiling the model's step: minutes the first time on a machine, seconds later", flush=True)
        chat.engine.warm_up()  # now, not in the time to the first reply's first word
    params = chat.settings(max_new_tokens=args.max_new_tokens, top_p=args.top_p, temperature=args.temperature,
                           thinking=bool(args.open_thinking), transcript=args.transcript)
    voice = chat.clone(locate(args.clone)) if args.clone else pick_voice(chat.voices, args.voice)
    generator = torch.Generator().manual_seed(args.seed)
    return Session(chat, params, voice, generator, Path(args.output_dir)), world


def run_cases(session: Session, cases: list[Case], seed: int, records: list[dict]) -> int:
    """Ask every case as a conversation of its own; the same seed each, so that a case does not depend on its neighbours.

    Appends to `records`. One that cannot be asked is a line on stderr, and the next follows; returns the exit code.
    """
    code = 0
    for case in cases:
        session.messages = []
        session.generator.manual_seed(seed)
        try:
            voice = pick_voice(session.chat.voices, case.voice) if case.voice else None
            for i, text in enumerate(case.turns, 1):
                last = i == len(case.turns)
                name = case.name if len(case.turns) == 1 else f"{case.name}-{i}"
                print(f"[{name}] > " + " + ".join(filter(None, (text, *(f"({p.name})" for p in (case.audio, case.image) if p and last)))))
                record = session.ask(name, text, case.audio if last else None, case.image if last else None, voice)
                records.append({"suite": case.suite, **record})
        except (ValueError, OSError, ReplyFailed) as error:
            print(flush=True)
            code = refuse(error, f" [{case.name}]")
    return code


def interactive(session: Session, records: list[dict]) -> None:
    """Read questions and /commands from stdin until it ends; a wrong command or file is one line and the talk goes on.

    Appends to `records`. A picture waits for a question that is answered.
    """
    image = None
    typed = sys.stdin.isatty()
    print(f"Talking with voice {session.voice.name!r}. /help lists the commands.", flush=True)
    while True:
        try:
            line = input("you> " if typed else "").strip()
            command, _, argument = line.partition(" ")
            argument = argument.strip()
            if not line:
                continue
            if command in ("/exit", "/quit"):
                return
            if command == "/help":
                print(HELP)
            elif command == "/reset":
                session.messages, image = [], None
                print("(forgotten)")
            elif command in ("/audio", "/clone", "/image") and not argument:
                print(f"usage: {command} FILE")
            elif command == "/voice" and not argument:
                print(f"voices: {', '.join([*session.chat.voices, NO_VOICE.name])}")
            elif command == "/voice":
                session.voice = pick_voice(session.chat.voices, argument)
                print(f"(voice {session.voice.name})")
            elif command == "/clone":
                session.voice = session.chat.clone(locate(argument))
                print(f"(voice {session.voice.name})")
            elif command == "/image":
                require_part(session.chat.folder, SIGLIP, "/image")
                read_image(locate(argument))  # refuse it now rather than with the question
                image = locate(argument)
                print(f"({image.name} goes with the next question)")
            elif command.startswith("/") and command != "/audio":
                print(f"unknown command {command}; /help lists them")
            else:
                audio = locate(argument) if command == "/audio" else None
                records.append(session.ask(f"turn-{len(records) + 1:02d}", "" if audio else line, audio, image))
                image = None
        except EOFError:
            return
        except (ValueError, OSError, ReplyFailed) as error:
            print(f"error: {one_line(error)}", flush=True)
        except KeyboardInterrupt:
            print("\n(stopped; /exit leaves)", flush=True)


def run(args) -> int:
    """Do what the arguments say; returns the exit code."""
    folder = pack_folder(args)
    single = any(value is not None for value in (args.prompt, args.audio, args.image))
    if single + args.interactive + (args.suite is not None or args.mode is not None) > 1:
        raise ValueError("choose one of --prompt/--audio/--image, --suite/--mode and --interactive")
    suites = [] if single or args.interactive else chosen_suites(args, folder)
    check_inputs(args, folder)
    Path(args.output_dir).mkdir(parents=True, exist_ok=True)
    session, world = load_session(args, folder)
    if single:
        cases = [Case("prompt", "prompt", (args.prompt or "",), *(path and locate(path) for path in (args.audio, args.image)))]
    elif not args.interactive:
        examples_dir = locate(args.examples_dir) if args.examples_dir else folder / "examples"
        cases = [case for suite in suites for case in cases_for(suite, world, examples_dir, list(session.chat.voices))]
        print(f"suites: {' '.join(suites)} ({len(cases)} conversations)")
    records, code = [], 0
    try:
        if args.interactive:
            interactive(session, records)
        else:
            code = run_cases(session, cases, args.seed, records)
    finally:
        if records or not single:
            results = session.output_dir / "results.json"
            save_json({"settings": vars(args), "results": records}, results)
            print(f"results in {shown(results)}")
    return code


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    try:
        return run(args)
    except INPUT_ERRORS as error:
        return refuse(error)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")  # a terminal or pipe in another encoding must not end a conversation
    sys.exit(main())
