"""Training rows: parquet -> OmniSample -> OmniBatch.

- A row's random choices (turn cut, placements, augmentation, scheduled sampling) depend on (seed, epoch, index) only, so any row can
  be made again, whatever the number of workers or ranks.
- `Variants` names every random choice; `Variants.fixed()` makes none, which is what evaluation and the layout goldens use.
- Batches are padded to their longest row; the numbers are those of padding to max_length, with less waste.
- A broken row never raises: it becomes a BadRow, is logged with file and row index, and `collate` drops and counts it.
- It never sees an encoder: `audio_frames` says how many feature vectors a wav will give, and that many pads are written.
- Large data: iterate in `dataset.shuffled(epoch)` order (row groups stay cached); see parquet_rows.py.
"""
import io
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from dataset.augment import AugmentOptions, augment
from dataset.parquet_rows import ParquetRows, Row
from model.config import IGNORE, INPUT_RATE, NUM_STREAMS, OmniConfig
from model.sequence import build_training_row, encode_text, pad_inputs, pad_rows, template_is_plain, tokenize_turns

logger = logging.getLogger(__name__)

IMAGE_TAG = "<image>"
CUT_RESERVE = 100  # positions a cut conversation must leave free for the reply's speech
SYSTEM_PROMPTS = (
    "You are MiniMind-O, a small and helpful assistant.",
    "You are a helpful assistant.",
    "You are MiniMind-O, a small model that can listen, see and speak.",
    "Answer briefly and clearly.",
    "你是 MiniMind-O，一个小巧而有用的助手。",
    "你是一个乐于助人的助手，请简洁地回答。",
)


@dataclass(frozen=True)
class Variants:
    """The random choices of training, as probabilities."""
    system: float = 0.2  # add a system prompt to a conversation that has none
    system_prompts: tuple[str, ...] = SYSTEM_PROMPTS
    strip_think: float = 0.8  # remove empty think blocks from the rendered text
    random_cut: bool = True  # end at a random turn (or an earlier one that fits), else at the latest that fits
    drop_ref: float = 0.5  # leave out the reference codes, keep the speaker vector
    # a spoken question is put as: audio only, text only, audio then text, text then audio
    question_mix: tuple[float, float, float, float] = (0.4, 0.2, 0.2, 0.2)
    image_before: float = 0.5  # the picture stands before the question, else behind it
    image_blank_line: float = 0.5  # ... with a blank line between, else one newline
    scheduled_sampling: float = 0.05  # reply codes replaced by random ones in the input
    text_sampling: float = 0.05  # ... and reply text tokens
    # Of a row's reply, a share drawn between 0 and this of the positions lose all their codes in the input: what comes next then has to
    # be read from the text, where otherwise the speech so far tells most of it (word dropout: Bowman et al. 2016, section 3.1).
    history_dropout: float = 0.0
    speech: bool = True  # the reply's codes are in the row; a Thinker that learns alone is spared their positions, a third of all
    augment: AugmentOptions | None = field(default_factory=AugmentOptions)  # of the spoken question ...
    augment_share: float = 1.0  # ... in this share of the rows; in the others it stays as it is

    @classmethod
    def fixed(cls, **changes) -> "Variants":
        """No random choice: latest turn, text then audio, picture behind, everything kept and clean; `changes` on top."""
        plain = cls(system=0, strip_think=1, random_cut=False, drop_ref=0, question_mix=(0, 0, 0, 1), image_before=0,
                    image_blank_line=1, scheduled_sampling=0, text_sampling=0, augment=None)
        return replace(plain, **changes)


@dataclass
class OmniSample:
    input_ids: torch.Tensor  # (9, T) int64, text last
    text_labels: torch.Tensor  # (T,) int64, aligned with the logits
    audio_labels: torch.Tensor  # (8, T) int64, aligned with the logits
    spk_emb: torch.Tensor  # (spk_emb_size,) float32, zeros when there is none
    wav: torch.Tensor | None  # (S,) float32, 16 kHz: the spoken question
    audio_len: int  # feature vectors of wav = audio pads written, 0 without one
    images: list  # PIL images, RGB, in the order of their runs of pads
    config: OmniConfig
    letters: torch.Tensor | None = None  # (T,) float32, aligned with the labels: see OmniBatch
    spoken: torch.Tensor | None = None  # (S,) int64: tokens of what wav says; None without one, or when its words are not known


@dataclass
class BadRow:
    file: str
    row: int  # within the file
    reason: str
    config: OmniConfig


@dataclass
class OmniBatch:
    """B rows padded to the longest, T positions. B is 0 when every row was broken: check `len(batch)`."""
    input_ids: torch.Tensor  # (B, 9, T) int64
    text_labels: torch.Tensor  # (B, T) int64
    audio_labels: torch.Tensor  # (B, 8, T) int64
    spk_emb: torch.Tensor  # (B, spk_emb_size) float32
    audio_lens: torch.Tensor  # (B,) int64, audio pads per row
    wavs: list[torch.Tensor | None]  # 16 kHz float32 (S,)
    images: list[list]  # PIL images per row
    letters: torch.Tensor  # (B, T) float32: which letter of the reply the first codebook's label says, spaces not counted; NaN: not known
    spoken: torch.Tensor  # (B, S) int64: tokens of what the wavs say, IGNORE behind them and where that is not known
    num_skipped: int = 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def collate(samples: list[OmniSample | BadRow]) -> OmniBatch:
    """Pad to the longest row; broken rows are left out and counted in num_skipped."""
    good = [sample for sample in samples if isinstance(sample, OmniSample)]
    config = samples[0].config
    if not good:
        empty = torch.zeros(0, NUM_STREAMS, 0, dtype=torch.int64)
        return OmniBatch(empty, empty[:, -1], empty[:, :-1], torch.zeros(0, config.spk_emb_size), empty[:, 0, :].sum(-1), [], [],
                         torch.zeros(0, 0), empty[:, 0], len(samples))
    return OmniBatch(
        input_ids=pad_inputs([s.input_ids for s in good], config),
        text_labels=pad_rows([s.text_labels for s in good], IGNORE),
        audio_labels=pad_rows([s.audio_labels for s in good], IGNORE),
        spk_emb=torch.stack([s.spk_emb for s in good]),
        audio_lens=torch.tensor([s.audio_len for s in good]),
        wavs=_share_storage([s.wav for s in good]),
        images=[s.images for s in good],
        letters=pad_rows([torch.full(s.text_labels.shape, torch.nan) if s.letters is None else s.letters for s in good], torch.nan),
        spoken=pad_rows([torch.zeros(0, dtype=torch.int64) if s.spoken is None else s.spoken for s in good], IGNORE),
        num_skipped=len(samples) - len(good),
    )


def _share_storage(wavs: list[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """The same wavs as views of one tensor: a worker hands each storage over by a file descriptor, and those run out."""
    present = [wav for wav in wavs if wav is not None]
    views = iter(torch.cat(present).split([len(wav) for wav in present])) if present else iter(())
    return [None if wav is None else next(views) for wav in wavs]


class OmniDataset(torch.utils.data.Dataset):
    """Rows of the parquet files as OmniSample, or BadRow where a row is broken. Pass `collate` to the DataLoader.

    paths: file, folder, glob, comma-separated list, or a sequence of those. max_length: positions of the row before the shift.
    audio_frames: number of 16 kHz samples -> number of audio feature vectors; needed only for rows with spoken questions.
    Raises FileNotFoundError or ValueError for files that are absent or unreadable.
    """

    def __init__(self, paths, tokenizer, config: OmniConfig, max_length: int, variants: Variants = Variants(), seed: int = 0,
                 audio_frames: Callable[[int], int] | None = None, cache_bytes: int = 256 << 20):
        self.rows = ParquetRows(paths, config.num_codes, config.spk_emb_size, cache_bytes)
        self.tokenizer, self.config, self.max_length = tokenizer, config, max_length
        self.variants, self.seed, self.audio_frames = variants, seed, audio_frames
        self._plain_template = template_is_plain(tokenizer)
        special = set(tokenizer.get_added_vocab().values())
        self._plain_text = np.array([i not in special for i in range(config.vocab_size)])
        self._plain_ids = np.flatnonzero(self._plain_text)

    def __len__(self) -> int:
        return len(self.rows)

    def shuffled(self, epoch: int) -> np.ndarray:
        """Row indices (N,) in an order for this epoch that reads each row group once; the same on all ranks."""
        return self.rows.shuffled(self.seed, epoch)

    def __getitem__(self, index: int) -> OmniSample | BadRow:
        return self.sample(index, 0)

    def sample(self, index: int, epoch: int) -> OmniSample | BadRow:
        """Row `index` as it is in `epoch`: for loaders whose workers read ahead into the next epoch."""
        try:
            return self.build(self.rows[index], np.random.default_rng((self.seed, epoch, index)))
        except ValueError as error:
            file, row = self.rows.where(index)
            logger.warning("skipped broken row %d of %s: %s", row, file, error)
            return BadRow(str(file), row, str(error), self.config)

    def build(self, row: Row, rng: np.random.Generator) -> OmniSample:
        """Make a row's sample with the random choices of `rng`; ValueError when its audio or images cannot be decoded."""
        v, config = self.variants, self.config
        # drawn together and always, so that switching one choice off does not change the others
        system, strip, cut, drop, mix, before, blank = rng.random(7)
        messages = list(row.messages)
        if system < v.system and messages[0]["role"] != "system":
            messages.insert(0, {"role": "system", "content": self._system_prompt(messages, rng)})
        strip_think = bool(strip < v.strip_think)
        spoken = [codes.shape[1] > 0 for codes in row.answer_codes] if v.speech else []
        messages, ids = self._cut(messages, spoken, cut if v.random_cut else None, strip_think)
        num_turns = sum(m["role"] == "assistant" for m in messages)
        wav, num_pads, said = None, 0, None
        question = self._last_question(messages, row.question_audios)
        if question is not None:
            wav, num_pads = self._speech(question, rng)
            pads = config.audio_special_token * num_pads
            messages, words = put_speech(messages, pads, v.question_mix, mix, with_images=bool(row.images))
            if words is None:
                wav, num_pads = None, 0
            else:
                said = torch.tensor(encode_text(self.tokenizer, words), dtype=torch.int64)
        images = []
        if row.images:
            check_tags(row)
            separator = "\n\n" if blank < v.image_blank_line else "\n"
            messages, num_images = put_images(messages, config.image_special_token * config.image_token_len, before < v.image_before,
                                              separator)
            images = [decode_image(data) for data in row.images[:num_images]]
        if question is not None or row.images:
            ids = self._tokenize(messages, strip_think)
        codes = row.answer_codes[num_turns - 1] if v.speech and num_turns <= len(row.answer_codes) else None
        input_ids, text_labels, audio_labels = build_training_row(
            *ids, _codes_tensor(codes), None if drop < v.drop_ref else _codes_tensor(row.ref_codes), row.spk_emb is not None,
            self.max_length, config)
        if v.scheduled_sampling or v.text_sampling:
            input_ids = self._scheduled_sampling(input_ids, text_labels, audio_labels, rng)
        if v.history_dropout:
            input_ids = self._forget_history(input_ids, audio_labels, rng)
        spk_emb = torch.zeros(config.spk_emb_size) if row.spk_emb is None else torch.from_numpy(row.spk_emb.copy())
        known = row.answer_letters[num_turns - 1] if codes is not None and num_turns <= len(row.answer_letters) else ()
        letters = place_letters(known, audio_labels[0], config) if len(known) else None
        return OmniSample(input_ids, text_labels, audio_labels, spk_emb, wav, num_pads, images, config, letters, said)

    def _cut(self, messages: list[dict], spoken: list[bool], draw: float | None,
             strip_think: bool) -> tuple[list[dict], tuple[list[int], list[int]]]:
        """End the conversation at a turn whose text leaves room for speech, looking back from a random turn (or the last).

        spoken: which replies have speech; where only some have, the random turn is one of those. Returns the kept messages and their
        (prompt_ids, reply_ids).
        """
        ends = [i + 1 for i, m in enumerate(messages) if m["role"] == "assistant"]
        if draw is not None:
            ends = [end for end, has_speech in zip(ends, spoken) if has_speech] or ends
        last = len(ends) - 1 if draw is None else int(draw * len(ends))
        for end in reversed(ends[:last + 1]):
            ids = self._tokenize(messages[:end], strip_think)
            if len(ids[0]) + len(ids[1]) + CUT_RESERVE < self.max_length:
                break
        return messages[:end], ids  # the first turn when none fits

    def _system_prompt(self, messages: list[dict], rng: np.random.Generator) -> str:
        """One of the variants' prompts; an English conversation gets an English one (a small tokenizer may know no other script)."""
        prompts = self.variants.system_prompts
        if all(m["content"].isascii() for m in messages):
            prompts = [p for p in prompts if p.isascii()] or prompts
        return prompts[rng.integers(len(prompts))]

    def _tokenize(self, messages: list[dict], strip_think: bool) -> tuple[list[int], list[int]]:
        plain = self._plain_template and all(m["role"] != "tool" for m in messages)
        return tokenize_turns(self.tokenizer, messages, strip_think, plain)

    @staticmethod
    def _last_question(messages: list[dict], question_audios: list[bytes | None]) -> bytes | None:
        """Encoded audio of the last user turn that was kept, None when it is not spoken."""
        turn = sum(m["role"] == "user" for m in messages) - 1
        return (question_audios[turn] or None) if 0 <= turn < len(question_audios) else None

    def _speech(self, data: bytes, rng: np.random.Generator) -> tuple[torch.Tensor, int]:
        """(wav (S,) at 16 kHz, number of feature vectors). Decoded even if the question ends up as text: broken is broken."""
        from model.audio import read_audio
        if self.audio_frames is None:
            raise RuntimeError("a row has a spoken question: give OmniDataset audio_frames, the encoder's number of vectors per wav")
        wav = read_audio(data, INPUT_RATE, name="question_audios")
        if self.audio_frames(len(wav)) < 1:
            raise ValueError(f"the spoken question of {len(wav)} samples is too short for one feature vector")
        share = self.variants.augment_share  # at 1 nothing is drawn for it: rows are those of before there was a share
        if self.variants.augment is not None and (share == 1 or rng.random() < share):
            changed = augment(wav, rng, self.variants.augment)
            wav = changed if self.audio_frames(len(changed)) else wav  # speeding up a mere click may leave nothing
        return torch.from_numpy(np.ascontiguousarray(wav)), self.audio_frames(len(wav))

    def _scheduled_sampling(self, input_ids: torch.Tensor, text_labels: torch.Tensor, audio_labels: torch.Tensor,
                            rng: np.random.Generator) -> torch.Tensor:
        """Replace some inputs of the reply by random ones, as if the model had sampled badly; labels stay right.

        Only codes and ordinary text tokens of the reply: never the prompt, a stop token, or a special token such as a feature pad;
        no special token is put in either.
        """
        ids, text, codes = input_ids.numpy().copy(), text_labels.numpy(), audio_labels.numpy()
        first = int(np.argmax(text != IGNORE)) + 1  # labels at t are inputs at t + 1
        inputs = ids[:, first:]
        share = np.full((NUM_STREAMS, 1), self.variants.scheduled_sampling)
        share[-1] = self.variants.text_sampling
        chosen = rng.random(inputs.shape) < share
        chosen[:-1] &= (codes[:, first - 1:-1] != IGNORE) & (inputs[:-1] < self.config.num_codes)
        ended = np.logical_or.accumulate(inputs[-1] == self.config.eos_token_id)  # nor the "\n" behind
        chosen[-1] &= (text[first - 1:-1] != IGNORE) & self._plain_text[inputs[-1]] & ~ended
        inputs[:-1][chosen[:-1]] = rng.integers(self.config.num_codes, size=np.count_nonzero(chosen[:-1]))
        inputs[-1][chosen[-1]] = self._plain_ids[rng.integers(len(self._plain_ids), size=np.count_nonzero(chosen[-1]))]
        return torch.from_numpy(ids)

    def _forget_history(self, input_ids: torch.Tensor, audio_labels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Replace all codes of some positions of the reply by the pad, in the input only."""
        ids, length = input_ids.numpy().copy(), input_ids.shape[1]
        spoken = np.zeros((NUM_STREAMS - 1, length), bool)
        spoken[:, 1:] = audio_labels.numpy()[:, :-1] != IGNORE  # labels at t are inputs at t + 1
        lost = rng.random(length) < rng.random() * self.variants.history_dropout
        codes = ids[:-1]
        codes[spoken & lost & (codes < self.config.num_codes)] = self.config.audio_pad_token
        return torch.from_numpy(ids)


def place_letters(known: np.ndarray, labels: torch.Tensor, config: OmniConfig) -> torch.Tensor:
    """Letters (R,) of the reply's frames -> (T,), where `labels` (T,) of the first codebook has these frames, NaN elsewhere.

    ValueError when there are fewer letters than frames.
    """
    frames = (labels != IGNORE) & (labels != config.audio_stop_token)
    count = int(frames.sum())
    if len(known) < count:
        raise ValueError(f"answer_letters has {len(known)} numbers for {count} frames of speech")
    letters = torch.full(labels.shape, torch.nan)
    letters[frames] = torch.from_numpy(known[:count])
    return letters


def put_speech(messages: list[dict], pads: str, mix: tuple[float, ...], draw: float,
               with_images: bool) -> tuple[list[dict], str | None]:
    """Write the spoken form of the last user turn: audio only, text only, audio then text, or text then audio.

    `draw` in [0, 1) chooses by the weights `mix`; a turn without text is always audio only.
    Image tags keep out of this and stand behind. Returns new messages, and the words that the audio in them says (None: it is not in them).
    """
    turn = max(i for i, m in enumerate(messages) if m["role"] == "user")
    text, tags = messages[turn]["content"], ""
    if with_images:
        tags, text = IMAGE_TAG * text.count(IMAGE_TAG), text.replace(IMAGE_TAG, "").strip()
    choice = min(int(np.searchsorted(np.cumsum(mix), draw * sum(mix), side="right")), len(mix) - 1) if text else 0
    form = (pads, text, f"{pads}\n\n{text}", f"{text}\n\n{pads}")[choice]
    return [*messages[:turn], {"role": "user", "content": form + tags}, *messages[turn + 1:]], None if choice == 1 else text


def put_images(messages: list[dict], pads: str, before: bool, separator: str) -> tuple[list[dict], int]:
    """Replace the `<image>` tags of the user turns by runs of pads beside the stripped question.

    Runs of one turn are kept apart by a newline, so that the k-th run is the k-th image. Returns new messages and the number of runs.
    """
    out, total = [], 0
    for message in messages:
        count = message["content"].count(IMAGE_TAG) if message["role"] == "user" else 0
        if count:
            total += count
            question, runs = message["content"].replace(IMAGE_TAG, "").strip(), "\n".join([pads] * count)
            parts = [runs, question] if before else [question, runs]
            message = {"role": "user", "content": separator.join(part for part in parts if part)}
        out.append(message)
    return out, total


def decode_image(data: bytes):
    """Encoded image -> PIL image, RGB. ValueError when it cannot be decoded."""
    from PIL import Image, ImageOps
    try:
        with Image.open(io.BytesIO(data)) as image:
            return ImageOps.exif_transpose(image).convert("RGB")  # as the engine sees it
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises SyntaxError for a broken PNG
        raise ValueError(f"cannot decode image of {len(data)} bytes: {error}") from error


def check_tags(row: Row) -> None:
    """A conversation with images must name each of them, or pads and pictures would not match."""
    tags = sum(m["content"].count(IMAGE_TAG) for m in row.messages if m["role"] == "user")
    if tags != len(row.images):
        raise ValueError(f"{len(row.images)} images but {tags} {IMAGE_TAG} tags in the user turns")


def _codes_tensor(codes: np.ndarray | None) -> torch.Tensor | None:
    return None if codes is None else torch.from_numpy(codes.astype(np.int64))
