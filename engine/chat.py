"""A conversation with the model: a pack folder in, streamed text and speech out.

- `Chat.load` reads a pack: weights, tokenizer, voices, codec. Frozen encoders are loaded when a turn first needs them.
- `Chat.reply` yields `Delta`s: pieces of text (never half a character) and of speech, one 80 ms frame at a time, decoded exactly.
- Behind it is an engine, with one row unless more are asked for; who serves many callers at once takes `request` from here and
  steps the engine itself.
- `listen` runs such a stream to its end and measures time to first text, time to first audio and the real-time factor.
- One reply at a time, no threads, no printing.
"""
import hashlib
import io
import time
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from engine.engine import Engine
from engine.generate import GENERATION, GenerationParams, read_settings
from engine.session import Finish, PromptTooLong, Reason, Request
from engine.voices import NO_VOICE, Voice, clone_voice, load_voices
from model.audio import lfr_frames
from model.checkpoint import load_model, read_sidecar
from model.config import INPUT_RATE, NUM_CODEBOOKS, SAMPLE_RATE, OmniConfig
from model.mimi import Mimi
from model.sequence import build_prompt, encode_text, render_chat

MIMI, SENSEVOICE, SIGLIP, CAMPPLUS = "mimi", "SenseVoiceSmall", "siglip2-base-p32-256-ve", "campplus"
VOICES, UNSEEN_VOICES = "voices.pt", "voices_unseen.pt"
DEFAULT_WEIGHT = "sft_omni"
SMALL_WIDTH = 384  # Thinker width up to which one CPU thread is fastest
AUDIO_SECONDS = (0.1, 60.0)  # of one spoken question
MAX_PIXELS = 40_000_000  # of one picture: decoding is done before shrinking
KEPT_TRANSCRIPTS = 16  # of the last spoken questions
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # PIL knows others, some of which run programs


class MissingPart(FileNotFoundError):
    """A frozen module that the pack does not have. part: its name; wanted_by: what needs it."""

    def __init__(self, message: str, part: str, wanted_by: str):
        super().__init__(message)
        self.part, self.wanted_by = part, wanted_by


class ReplyFailed(RuntimeError):
    """A reply broke off by itself, through no fault of the question; the next one may be asked."""


@dataclass
class Delta:
    """A piece of a reply: text ('' when none), wav (S,) float32 at 24 kHz or None, codes (8,) of the frame or None.

    finish: with the last piece, why there will be no other.
    """
    text: str = ""
    wav: np.ndarray | None = None
    codes: list[int] | None = None
    finish: Finish | None = None


@dataclass
class Answer:
    """A whole reply. Times in seconds from the request; None where there was nothing to time."""
    text: str = ""  # without any thinking
    thinking: str = ""
    wav: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))  # (S,) at 24 kHz
    num_frames: int = 0
    num_steps: int = 0
    ended: bool = False  # by its own stop tokens, not by the length cap
    ttft_s: float | None = None
    ttfa_s: float | None = None
    total_s: float = 0.0

    @property
    def audio_s(self) -> float:
        return len(self.wav) / SAMPLE_RATE

    @property
    def rtf(self) -> float | None:
        """Seconds of computing per second of speech."""
        return self.total_s / self.audio_s if len(self.wav) else None


def download_command(folder: Path) -> str:
    return f"modelscope download --model gongjy/{folder.name} --local_dir {folder}"


def require_part(folder: str | Path, name: str, wanted_by: str) -> None:
    """Raise MissingPart naming the missing frozen module (or voices file) of a pack, who wants it and how to get it."""
    path = Path(folder) / name
    if path.exists():
        return
    remedy = "put a voices file there" if name == VOICES else f"get it with `{download_command(path)}`"
    raise MissingPart(f"{wanted_by} needs {path}, which is missing: {remedy}", name, wanted_by)


def find_weights(folder: str | Path, weight: str | None = None, hidden_size: int | None = None, use_moe: bool | None = None) -> Path:
    """The weights file `<weight>_<hidden>[_moe].pth` in `folder`; None leaves that part open (sft_omni and dense are preferred).

    FileNotFoundError lists what the folder has; ValueError when several sizes fit and none was asked for.
    """
    folder = Path(folder)
    found = []
    for path in sorted(folder.glob("*.pth")):
        stem, moe = path.stem.removesuffix("_moe"), path.stem.endswith("_moe")
        name, _, size = stem.rpartition("_")
        fits = name and size.isdigit() and weight in (None, name) and hidden_size in (None, int(size)) and use_moe in (None, moe)
        if fits:
            found.append((name != DEFAULT_WEIGHT, moe, path))
    if not found:
        wanted = f"{weight or '<weight>'}_{hidden_size or '<hidden>'}{'_moe' if use_moe else ''}.pth"
        there = [p.name for p in sorted(folder.glob("*.pth"))]
        raise FileNotFoundError(f"no weights {wanted} in {folder} (it holds {there or 'no .pth file'}): train some with "
                                "trainer/train_sft_omni.py, or choose with --load_from, --save_dir, --weight")
    best = [path for *rank, path in found if rank == list(min(f[:2] for f in found))]
    if len(best) > 1:
        raise ValueError(f"several weights fit in {folder}: {[p.name for p in best]}; choose with --weight and --hidden_size")
    return best[0]


def pick_device(name: str) -> torch.device:
    """The device called `name`; ValueError when there is none."""
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"--device {name!r} is not a device; use cpu or cuda") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"--device {name}: nothing here runs on that; use cpu or cuda")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise ValueError(f"--device {name}: this machine has no such GPU; use --device cpu")
    return device


def load_tokenizer(folder: str | Path):
    """The pack's tokenizer. FileNotFoundError without its files, ValueError when they cannot be read."""
    from transformers import PreTrainedTokenizerFast

    for name in ("tokenizer.json", "tokenizer_config.json"):
        if not (Path(folder) / name).is_file():
            raise FileNotFoundError(f"no tokenizer in {folder}: {name} is missing (--load_from takes a folder that has one)")
    try:
        return PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a broken file
        raise ValueError(f"the tokenizer in {folder} cannot be read ({error}); write it again") from error


def read_image(source: str | Path | bytes, name: str | None = None, max_pixels: int = MAX_PIXELS):
    """The picture in a file, or in an encoded file's bytes, as RGB (PIL); `name` stands for it in messages.

    FileNotFoundError without the file; ValueError for a broken or far too large picture.
    """
    from PIL import Image, ImageOps

    is_bytes = isinstance(source, bytes)
    name = name or (f"<{len(source)} bytes>" if is_bytes else str(source))
    if not is_bytes and not Path(source).is_file():
        raise FileNotFoundError(f"no picture at {name}")
    try:
        image = Image.open(io.BytesIO(source) if is_bytes else source, formats=IMAGE_FORMATS)
        if image.width * image.height > max_pixels:
            raise ValueError(f"picture {name} has {image.width} x {image.height} pixels; the limit is {max_pixels / 1e6:g} million")
        return ImageOps.exif_transpose(image).convert("RGB")  # as it was seen when it was taken
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL reports some broken PNGs as SyntaxError
        raise ValueError(f"cannot decode picture {name}: {error}; use png, jpg or webp") from error


class Chat:
    """A loaded pack. `voices` is {} without a voices file; `mimi` is None when speech is not decoded; `dtype` as in precision.py.

    compiled: torch.compile runs the steps, see stepper.py; the first reply, or `warm_up`, waits for the compiler.
    """

    def __init__(self, model, tokenizer, mimi: Mimi | None, voices: dict[str, Voice], folder: str | Path, dtype: str = "auto",
                 slots: int = 1, compiled: bool = False):
        self.tokenizer, self.mimi, self.voices, self.folder = tokenizer, mimi, voices, Path(folder)
        self.config: OmniConfig = model.config
        self.device = next(model.parameters()).device
        if mimi is not None and mimi.num_codes != self.config.num_codes:
            raise ValueError(f"the codec in {self.folder / MIMI} has {mimi.num_codes} codes, the model speaks {self.config.num_codes}: "
                             "they are not from the same pack")
        if len(tokenizer) > self.config.vocab_size:
            raise ValueError(f"the tokenizer in {tokenizer.name_or_path or self.folder} has {len(tokenizer)} ids, the model "
                             f"{self.config.vocab_size}: they are not from the same pack")
        self.written: dict[bytes, str] = {}  # the ear's last transcripts, by their sound
        self.newline_id = encode_text(tokenizer, "\n")[-1]
        self.generation = read_settings(self.folder / GENERATION)
        self.special_texts = sorted(tokenizer.get_added_vocab(), key=len, reverse=True)
        mode = None if not compiled else "compiled_graph" if self.device.type == "cuda" else "compile"
        self.engine = Engine(model, mimi, tokenizer, slots=slots, dtype=dtype, mode=mode)

    @classmethod
    def load(cls, folder: str | Path, weights: str | Path, config: OmniConfig | None = None, device="cpu",
             decode_audio: bool = True, dtype: str = "auto", slots: int = 1, compiled: bool = False) -> "Chat":
        """Load tokenizer, codec and voices from `folder`, the model from the file `weights` (`config` if it has no sidecar).

        FileNotFoundError and ValueError name the missing or broken file and the remedy.
        """
        folder = Path(folder)
        if decode_audio:
            require_part(folder, MIMI, "speech")
        tokenizer = load_tokenizer(weights if Path(weights).is_dir() else folder)  # a Transformers folder has its own
        model = load_model(weights, config=config, device=device)
        mimi = Mimi.load(folder / MIMI, device, encoder=False) if decode_audio else None
        voices = load_voices(folder / VOICES, model.config) if (folder / VOICES).exists() else {}
        if (folder / UNSEEN_VOICES).exists():
            unseen = load_voices(folder / UNSEEN_VOICES, model.config)
            voices = {**voices, **{name: replace(v, kind="unseen") for name, v in unseen.items() if name not in voices}}
        return cls(model, tokenizer, mimi, voices, folder, dtype, slots, compiled)

    def use_few_threads(self) -> None:
        """Let torch use one CPU thread if the model is small; for entry points, as it is a setting of the whole process.

        A step of the nano model is 9 ms of work in hundreds of operations: sharing each out between threads costs more than it
        saves, and twenty times as much when other programs keep the cores busy.
        """
        if self.device.type == "cpu" and self.config.hidden_size <= SMALL_WIDTH:
            torch.set_num_threads(1)

    def warm_up(self) -> None:
        """Do once, in small, what the first question would otherwise wait for: load the encoders there are, choose kernels, compile."""
        from PIL import Image

        self.engine.warm_up()
        silence, picture = np.zeros(INPUT_RATE, np.float32), Image.new("RGB", (256, 256))
        hears, sees = ((self.folder / part).exists() for part in (SENSEVOICE, SIGLIP))
        if hears:
            self.transcribe(silence)
        params = self.settings(max_new_tokens=NUM_CODEBOOKS + 4)  # a few frames of speech
        listen(lambda: self.reply([{"role": "user", "content": "hello"}], params, audio=silence if hears else None,
                                  images=[picture] * sees), params)

    def settings(self, **given) -> GenerationParams:
        """How to generate: as `given`; where that is None or silent as the pack wants it (generation_config.json), else by default."""
        given = {name: value for name, value in given.items() if value is not None}
        return GenerationParams(**{"newline_id": self.newline_id, **self.generation, **given})

    # ---- what the user gives

    @cached_property
    def sensevoice(self):
        from model.encoders import SenseVoice

        require_part(self.folder, SENSEVOICE, "spoken input")
        return SenseVoice.load(self.folder / SENSEVOICE, self.device)

    @cached_property
    def siglip(self):
        from model.encoders import SigLIP2

        require_part(self.folder, SIGLIP, "a picture")
        return SigLIP2.load(self.folder / SIGLIP, self.device)

    def clone(self, clip: str | Path | bytes, name: str | None = None) -> Voice:
        """A new voice from an audio file or its bytes; see voices.clone_voice for what is refused."""
        from model.encoders import CAMPPlus

        require_part(self.folder, CAMPPLUS, "cloning a voice")
        require_part(self.folder, MIMI, "cloning a voice")
        return clone_voice(clip, Mimi.load(self.folder / MIMI, self.device), CAMPPlus.load(self.folder / CAMPPLUS, self.device), name)

    def transcribe(self, audio: np.ndarray, features: torch.Tensor | None = None) -> str:
        """What was said in (S,) 16 kHz samples; '' when the pack's SenseVoice has no vocabulary to write it with.

        features: see SenseVoice.transcribe.
        """
        if not self.sensevoice.can_transcribe:
            return ""
        key = hashlib.blake2b(np.ascontiguousarray(audio)).digest()  # a call's turn is wanted twice: in the prompt and as a caption
        if key not in self.written:
            self.written[key] = self.sensevoice.transcribe(torch.as_tensor(audio), features)
            while len(self.written) > KEPT_TRANSCRIPTS:
                self.written.pop(next(iter(self.written)))
        return self.written[key]

    def plain(self, text: str) -> str:
        """User text with every spelled-out control token (such as <|im_end|>) taken out: words must not end turns or fake inputs."""
        before = None
        while text != before:
            before = text
            for token in self.special_texts:
                text = text.replace(token, " ")
        return text.strip()

    # ---- one reply

    def reply(self, messages: list[dict], params: GenerationParams, voice: Voice = NO_VOICE, audio: np.ndarray | None = None,
              images=(), generator: torch.Generator | None = None, conversation: Hashable | None = None) -> Iterator[Delta]:
        """Stream the answer to `messages` ({"role", "content"}, the last one from the user), one Delta per step.

        audio (S,) float at 16 kHz and images (PIL) belong to the last message, whose content may then be ''.
        conversation: a key under which the next turn finds what this one has read; the replies are the same with and without.
        Closing the iterator early cancels the reply. Raises ValueError for an empty question and when the conversation is too
        long for the model; when iterated, ReplyFailed if it breaks off, EngineFull while another reply is not finished or closed.
        """
        return self._stream(self.request(messages, params, voice, audio, images, generator, conversation))

    def request(self, messages: list[dict], params: GenerationParams, voice: Voice = NO_VOICE, audio: np.ndarray | None = None,
                images=(), generator: torch.Generator | None = None, conversation: Hashable | None = None,
                say: str | None = None) -> Request:
        """What `reply` would ask the engine for, checked; arguments and errors as there. say: words that the reply must consist of."""
        assert messages and messages[-1]["role"] == "user", messages
        features = self._encode_inputs(audio, images)
        if audio is not None and params.transcript and not messages[-1]["content"].strip():
            read = self.transcribe(audio, features["audio_features"])
            messages = [*messages[:-1], {**messages[-1], "content": read}]
            if params.transcript == 2 and self.plain(read):
                features = {name: value for name, value in features.items() if name not in ("audio_features", "audio_lens")}
        text_ids = self._prompt_ids(messages, features, len(images), params)
        room = self._room(params)
        if len(text_ids) > room:
            raise PromptTooLong(f"the conversation is {len(text_ids)} tokens long; with {params.max_new_tokens} new ones the model has "
                                f"room for {room}: shorten it or let the reply be shorter (max_new_tokens)")
        prompt = build_prompt(text_ids, voice.ref_codes, voice.spk_emb is not None, self.config)
        forced = None if say is None else [*encode_text(self.tokenizer, self.plain(say)), self.config.eos_token_id]
        request = Request(prompt, params, voice.spk_emb, generator=generator, conversation=conversation, forced_text=forced, **features)
        self.engine.check(request)
        return request

    def _stream(self, request: Request) -> Iterator[Delta]:
        slot = self.engine.admit(request)
        try:
            while self.engine.busy:
                for frame in self.engine.step():  # all of them are ours: only one caller may use `reply`
                    yield Delta(frame.text, frame.wav, frame.codes, frame.finish)
                    if frame.done and frame.finish.reason is Reason.FAILED:
                        raise ReplyFailed(f"the reply broke off after {frame.finish.steps} steps: {frame.finish.error}")
        finally:
            self.engine.cancel(slot)  # nothing when it has finished

    def _room(self, params: GenerationParams) -> int:
        """Tokens a prompt may have."""
        return self.engine.max_length - params.max_new_tokens

    def fit(self, messages: list[dict], params: GenerationParams, audio: np.ndarray | None = None, num_images: int = 0) -> list[dict]:
        """The conversation without its oldest turns, as many as must go for sound and pictures of the last one and the reply to have room.

        What the system says first stays.
        """
        reserve = num_images * self.config.image_token_len
        if audio is not None:
            reserve += (1 + lfr_frames(len(audio))) * (1 + bool(params.transcript))  # the ear writes one piece a frame at most
        head = messages[:1] if messages[0]["role"] == "system" else []
        turns = messages[len(head):]
        while len(turns) > 2 and len(encode_text(self.tokenizer, self._render(head + turns, params))) > self._room(params) - reserve:
            turns = turns[2:]
        return head + turns

    def _encode_inputs(self, audio, images) -> dict:
        """Features of the frozen encoders, as keyword arguments of a Request."""
        features = {}
        if audio is not None:
            seconds, (shortest, longest) = len(audio) / INPUT_RATE, AUDIO_SECONDS
            if not shortest <= seconds <= longest:
                raise ValueError(f"the spoken question is {seconds:.1f} s long; {shortest:g} to {longest:g} s can be heard")
            features["audio_features"], features["audio_lens"] = self.sensevoice.features([torch.as_tensor(audio)])
            self._check_width(SENSEVOICE, features["audio_features"], self.config.audio_hidden_size)
        if images:
            features["image_features"] = self.siglip(list(images))[None]
            self._check_width(SIGLIP, features["image_features"], self.config.image_hidden_size)
        return features

    def _check_width(self, name: str, features: torch.Tensor, width: int) -> None:
        if features.shape[-1] != width:
            raise ValueError(f"{self.folder / name} yields vectors of {features.shape[-1]}, the model wants {width}: "
                             "they are not from the same pack")

    def _prompt_ids(self, messages: list[dict], features: dict, num_images: int, params: GenerationParams) -> list[int]:
        """Token ids of the prompt, pads for audio and images placed after the words of the last message."""
        parts = [self.plain(messages[-1]["content"])]
        if "audio_lens" in features:
            parts.append(self.config.audio_special_token * int(features["audio_lens"][0]))
        parts += [self.config.image_special_token * self.config.image_token_len] * num_images
        content = "\n\n".join(part for part in parts if part)
        if not content:
            raise ValueError("the question is empty: give some text, --audio or --image")
        history = [{**m, "content": self.plain(m["content"])} for m in messages[:-1]]
        return encode_text(self.tokenizer, self._render([*history, {"role": "user", "content": content}], params))

    def _render(self, messages: list[dict], params: GenerationParams) -> str:
        return render_chat(self.tokenizer, messages, generation=True, thinking=params.thinking)


def listen(start: Callable[[], Iterator[Delta]], params: GenerationParams, on_text: Callable[[str], None] = lambda text: None,
           on_wav: Callable[[np.ndarray], None] = lambda wav: None) -> Answer:
    """Call `start` (which must return Chat.reply(...)), pass every piece on as it comes, and return the whole, timed."""
    answer, pieces, text = Answer(), [], ""
    began = time.perf_counter()
    for delta in start():
        answer.num_steps += 1
        answer.ended = delta.finish is not None and delta.finish.reason is Reason.ENDED
        answer.num_frames += delta.codes is not None
        if delta.text:
            answer.ttft_s = answer.ttft_s or time.perf_counter() - began
            text += delta.text
            on_text(delta.text)
        if delta.wav is not None:
            answer.ttfa_s = answer.ttfa_s or time.perf_counter() - began
            pieces.append(delta.wav)
            on_wav(delta.wav)
    answer.total_s = time.perf_counter() - began
    thinking, closed, rest = text.rpartition("</think>")
    answer.thinking, answer.text = (thinking.strip(), rest.strip()) if closed else ("", text.strip())
    if params.thinking and not closed:
        answer.thinking, answer.text = text.strip(), ""
    if pieces:
        answer.wav = np.concatenate(pieces)
    return answer


def released_config(weights: Path, num_hidden_layers: int | None = None) -> OmniConfig | None:
    """The config of weights without a sidecar: released sizes but for what the file's name and the caller say; None with one."""
    if read_sidecar(weights) is not None:
        return None
    sizes = {"hidden_size": int(weights.stem.removesuffix("_moe").rpartition("_")[2]), "use_moe": weights.stem.endswith("_moe")}
    if num_hidden_layers is not None:
        sizes["num_hidden_layers"] = num_hidden_layers
    return OmniConfig(**sizes)
