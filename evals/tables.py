"""The published tables as functions: each takes a loaded model and gives a `Table`, or raises Skipped with the reason.

- I   consistency   does the Talker say what the Thinker wrote? By Talker width and length of the reply
- II  cloning       does it speak in the voice it was given? By speaker, seen and unseen in training, by two speaker encoders
- III t2a           English questions: errors of the speech, by length of the reply
- IV  pictures      the same for questions about pictures
- latency           time to the first word and the first sound
- a2a               spoken questions: how often the reply is the expected answer
"""
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from engine.chat import CAMPPLUS, SENSEVOICE, SIGLIP, MissingPart, read_image, require_part
from engine.voices import Voice, load_voices, pick_voice
from evals import published
from evals.cases import AUDIO_SUFFIXES, IMAGE, IMAGE_SUFFIXES, T2A_ENGLISH, TEXT, examples
from evals.codec_wer import flite
from evals.eval_nano import HELDOUT, read_questions
from evals.eval_senses import read_rows, turns_of
from evals.eval_voices import decode_references, similarities
from evals.metrics import HAN, percentiles
from evals.results import Row, Skipped, Table, mean, ratio
from evals.samples import Examinee, Sample
from evals.speakers import load_speaker_encoder
from model.audio import read_audio, resample, write_wav
from model.config import INPUT_RATE, SAMPLE_RATE

TITLES = {"consistency": "I. Thinker-Talker consistency by Talker width", "cloning": "II. Voice cloning",
          "t2a": "III. English questions, answered aloud", "pictures": "IV. Questions about pictures, answered aloud",
          "latency": "Latency", "a2a": "A2A: spoken questions"}
BUCKETS = {"nano": ((1, 7), (8, 10), (11, 15)), "general": (*published.T2A_BUCKETS, (31, None))}  # words of a reply
UNSEEN_FILE, UNSEEN_FLITE = "voices_unseen.pt", "kal16"  # a voice that no nano training has heard
ASKERS = ("slt", "awb", UNSEEN_FLITE)
UNSEEN_SENTENCES = "The sky is blue because air scatters short wavelengths of light. Cats like to chase mice."


@dataclass
class Plan:
    """What is asked, and where it comes from. variant: dense or moe; data: folder of the nano world's held-out sets."""
    n: int
    clone_n: int
    pack: Path
    variant: str
    data: Path
    examples_dir: Path
    released: bool


def questions(examinee: Examinee, plan: Plan, english_only: bool) -> list[tuple[str, str | None]]:
    """(question, expected answer or None): the pack's held-out ones, or those of evals/cases.py for the released model."""
    if examinee.world == "nano":
        return [(item["question"], item["answer"]) for item in read_questions(plan.pack / HELDOUT, plan.n, examinee.seed)]
    chinese = [] if english_only else [question for question in TEXT["general"] if HAN.search(question)]
    return [(question, None) for question in (*T2A_ENGLISH, *chinese)][:plan.n]


def ask_all(examinee: Examinee, plan: Plan, title: str, english_only: bool = False) -> list[Sample]:
    asked = questions(examinee, plan, english_only)
    return [examinee.ask(i, question, answer=answer) for i, (question, answer) in enumerate(tqdm(asked, desc=title, mininterval=5))]


def error_rows(samples: list[Sample], buckets, label: str = "", overall: dict | None = None, by_bucket=()) -> list[Row]:
    """Rows of CER and WER: all, then by the length of the reply."""
    def row(group, chosen, known):
        return Row(f"{label}{group}", len(chosen), {"CER": ratio(s.character_errors for s in chosen),
                                                    "WER": ratio(s.word_errors for s in chosen)}, known or {})

    rows = [row("all", samples, overall)]
    for i, (low, high) in enumerate(buckets):
        chosen = [s for s in samples if low <= s.length <= (high or s.length)]
        if chosen:
            known = by_bucket[i] if i < len(by_bucket) else None
            rows.append(row(f"{low}-{high} words" if high else f"{low} words and more", chosen, known))
    return rows


def answered(samples: list[Sample]) -> list[Row]:
    """How often the text is the expected answer, to the letter; nothing where no answer is known."""
    known = [s for s in samples if s.answer is not None]
    return [Row("the text is the expected answer", len(known), {"share": mean(s.text == s.answer for s in known)})] if known else []


def consistency(examinee: Examinee, plan: Plan) -> Table:
    width = examinee.chat.config.talker_hidden_size
    samples = ask_all(examinee, plan, "I consistency")
    known = published.CONSISTENCY_CER.get((plan.variant, width)) if plan.released else None
    rows = error_rows(samples, BUCKETS[examinee.world], f"Talker {width}: ", {"CER": known} if known else None)
    return Table("consistency", TITLES["consistency"], "Errors of the speech, as recognised, against the reply's "
                 "own text; length in words (Chinese: characters).", rows, samples, clips=[("Talker " + str(width), samples)])


def english(examinee: Examinee, plan: Plan) -> Table:
    samples = ask_all(examinee, plan, "III English T2A", english_only=True)
    names, values = ("CER", "WER"), published.T2A["MiniMind-O"]
    by_bucket = [dict(zip(names, pair)) for pair in values] if plan.released else ()
    rows = error_rows(samples, BUCKETS[examinee.world], by_bucket=by_bucket) + answered(samples)
    if plan.released:
        rows += [Row(f"{system}, {low}-{high} words (published)", 20, {}, dict(zip(names, pair)))
                 for system in ("Mini-Omni", "Mini-Omni2") for (low, high), pair in zip(published.T2A_BUCKETS, published.T2A[system])]
    return Table("t2a", TITLES["t2a"], "As in table I.", rows, samples, clips=[("replies", samples)])


def latency(examinee: Examinee, plan: Plan) -> Table:
    samples = ask_all(examinee, plan, "latency")
    rows = []
    for group, name in (("first text", "ttft_s"), ("first audio", "ttfa_s")):
        times = [1000 * value for value in (getattr(s, name) for s in samples) if value is not None]
        ms = percentiles(times)
        rows.append(Row(f"{group}, ms", len(times), {"p50": f"{ms['p50']:.0f}", "p95": f"{ms['p95']:.0f}"},
                        {"p50": published.LATENCY_MS[group]} if plan.released else {}))
    factors = percentiles([s.rtf for s in samples if s.rtf is not None])
    rows.append(Row("computing per second of speech, s", len(samples), {"p50": f"{factors['p50']:.2f}", "p95": f"{factors['p95']:.2f}"}))
    rows.append(Row("ended by itself", len(samples), {"share": mean(s.ended for s in samples)}))
    note = "From the typed question to the first piece of the reply, one session; the published times start at the end of a spoken turn."
    return Table("latency", TITLES["latency"], note, rows, samples)


# ---- voices

def unseen_voices(examinee: Examinee, plan: Plan) -> dict[str, Voice]:
    """Voices that training has not heard: the pack's file, or one cloned from flite; {} when there is no way to get one."""
    if (plan.pack / UNSEEN_FILE).is_file():
        return load_voices(plan.pack / UNSEEN_FILE, examinee.chat.config)
    if examinee.world != "nano" or not shutil.which("flite") or not (plan.pack / CAMPPLUS).is_dir():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / f"{UNSEEN_FLITE}.wav"
        write_wav(clip, flite(UNSEEN_SENTENCES, UNSEEN_FLITE, SAMPLE_RATE), SAMPLE_RATE)
        return {UNSEEN_FLITE: examinee.chat.clone(clip)}


def speaker_encoders(pack: Path) -> tuple[dict, list[str]]:
    """The encoders there are, and a sentence on each that is missing."""
    encoders, missing = {}, []
    for name in ("campplus", "resemblyzer"):
        try:
            encoders[name] = load_speaker_encoder(name, pack)
        except (ImportError, FileNotFoundError) as error:
            missing.append(f"No {name}: {error}.")
    return encoders, missing


def cloning(examinee: Examinee, plan: Plan) -> Table:
    chat = examinee.chat
    if not chat.voices:
        raise Skipped(f"no voices.pt in {plan.pack}")
    encoders, missing = speaker_encoders(plan.pack)
    if not encoders:
        raise Skipped(" ".join(missing))
    unseen = unseen_voices(examinee, plan)
    voices = {**chat.voices, **unseen}
    asked = questions(examinee, plan, english_only=True)[:plan.clone_n]
    samples = {name: [examinee.ask(i, question, voice, answer) for i, (question, answer) in enumerate(tqdm(asked, desc=f"II {name}"))]
               for name, voice in voices.items()}
    references = decode_references(chat, voices)
    spoken = {name: [resample(s.wav, SAMPLE_RATE, INPUT_RATE) for s in replies] for name, replies in samples.items()}
    scores = {encoder: similarities(model, references, spoken) for encoder, model in encoders.items()}

    def row(group, names):
        figures = {}
        for encoder, by_voice in scores.items():
            own = {name: list(voices).index(name) for name in names}
            figures[f"{encoder} cosine"] = mean(np.concatenate([by_voice[name][:, own[name]] for name in names]))
            right = [by_voice[name].argmax(1) == own[name] for name in names]
            silent = sum(len(samples[name]) - len(by_voice[name]) for name in names)  # too short to judge: wrong
            figures[f"{encoder} nearest is right"] = mean([*np.concatenate(right), *[False] * silent])
        known = {"campplus cosine": published.CLONING_COSINE[plan.variant]} if plan.released and group == "all seen" else {}
        return Row(group, sum(len(samples[name]) for name in names), figures, known)

    rows = [row("all seen", [name for name in voices if name not in unseen]), *([row("all unseen", list(unseen))] if unseen else []),
            *(row(f"{name} ({'unseen' if name in unseen else 'seen'})", [name]) for name in voices)]
    if not unseen:
        missing.append(f"No unseen voice: {plan.pack / UNSEEN_FILE} is missing (nano: flite and CAM++ make one).")
    clips = [(question, [reference_sample(name, references[name]) for name in voices] + [samples[name][i] for name in voices])
             for i, (question, _) in enumerate(asked)]
    note = ("Each voice answers the same questions; compared with its own voice prompt as the codec decodes it. campplus is what the model "
            "was conditioned on, resemblyzer is independent of it.")
    return Table("cloning", TITLES["cloning"], " ".join([note, *missing]), rows, [s for replies in samples.values() for s in replies],
                 clips=clips[:2])


def reference_sample(name: str, wav: np.ndarray) -> Sample:
    """A voice prompt (S,) at 16 kHz, to be heard beside the replies."""
    return Sample("voice prompt", "", name, "", "", None, True, None, None, None, resample(wav, INPUT_RATE, SAMPLE_RATE))


# ---- pictures and spoken questions

def require(plan: Plan, part: str, wanted_by: str) -> None:
    """Skipped unless the pack has the frozen module."""
    try:
        require_part(plan.pack, part, wanted_by)
    except MissingPart as error:  # its remedy is the released module, which does not fit another pack
        lacking = f"{wanted_by} needs {plan.pack / part}, which this pack does not have; nano/README.md says how it is trained"
        raise Skipped(str(error) if plan.released else lacking) from error


def pictures(examinee: Examinee, plan: Plan) -> Table:
    require(plan, SIGLIP, "table IV")
    asked = list(picture_questions(examinee, plan))
    voice = pick_voice(examinee.chat.voices, None)
    samples = [examinee.reply(i, question, voice, answer, images=[image], name=name)
               for i, (name, image, question, answer) in enumerate(tqdm(asked, desc="IV pictures", mininterval=5))]
    rows = error_rows(samples, BUCKETS[examinee.world])
    rows += answered(samples)
    return Table("pictures", TITLES["pictures"], "As in table I, for questions about pictures.", rows, samples,
                 clips=[("replies", samples)])


def picture_questions(examinee: Examinee, plan: Plan) -> Iterator[tuple]:
    """(name, PIL picture, question, expected answer or None): the nano world's held-out rows, or the example pictures."""
    path = plan.data / "i2t_heldout"
    if examinee.world == "nano" and path.is_dir():
        for i, row in enumerate(read_rows(path, plan.n)):
            question = turns_of(row, "user")[-1].replace("<image>", "").strip()
            yield f"row {i}", read_image(row["image_bytes"][0]), question, turns_of(row, "assistant")[-1]
        return
    try:
        files = examples(plan.examples_dir, "image", IMAGE_SUFFIXES)
    except FileNotFoundError as error:
        raise Skipped(str(error)) from error
    for file in files[:plan.n]:
        yield file.stem, read_image(file), IMAGE[examinee.world], None


def spoken(examinee: Examinee, plan: Plan) -> Table:
    require(plan, SENSEVOICE, "A2A")
    voice = pick_voice(examinee.chat.voices, None)
    samples, heard, groups = [], [], []
    for i, (group, question, wav, answer) in enumerate(tqdm(list(spoken_questions(examinee, plan)), desc="A2A", mininterval=5)):
        samples.append(examinee.reply(i, question, voice, answer, audio=wav))
        heard.append(Sample("", "", "", question, examinee.chat.transcribe(wav), None, True, None, None, None, wav))
        groups.append(group)
    rows = []
    for group in dict.fromkeys(groups):
        chosen = [i for i, name in enumerate(groups) if name == group]
        figures = {"question's WER as heard": ratio(heard[i].word_errors for i in chosen),
                   "question's CER as heard": ratio(heard[i].character_errors for i in chosen),
                   "CER of the speech": ratio(samples[i].character_errors for i in chosen)}
        if all(samples[i].answer is not None for i in chosen):
            figures = {"answer is right": mean(samples[i].text == samples[i].answer for i in chosen), **figures}
        rows.append(Row(group, len(chosen), figures))
    return Table("a2a", TITLES["a2a"], "The reply's text against the expected answer, to the letter; what SenseVoice hears of the "
                 "question against its words; the speech against the reply's own text.", rows, samples, clips=[("replies", samples)])


def spoken_questions(examinee: Examinee, plan: Plan) -> Iterator[tuple]:
    """(group, question, (S,) at 16 kHz, expected answer or None): held-out rows, held-out questions by flite, or the example clips."""
    files = {"voices heard in training": "a2a_heldout", "the same in 10 dB noise": "a2a_noisy", "unseen voice": "a2a_unseen"}
    if examinee.world == "nano":
        there = {group: plan.data / name for group, name in files.items() if (plan.data / name).is_dir()}
        for group, path in there.items():
            for row in read_rows(path, plan.n):
                yield group, turns_of(row, "user")[-1], read_audio(row["question_audios"][-1], INPUT_RATE), turns_of(row, "assistant")[-1]
        if there:
            return
        if not shutil.which("flite"):
            raise Skipped(f"no spoken questions: neither {plan.data}/a2a_heldout nor flite is there (apt-get install flite)")
        for i, (question, answer) in enumerate(questions(examinee, plan, english_only=True)):
            voice = ASKERS[i % len(ASKERS)]
            yield f"flite {voice}{' (unseen)' * (voice == UNSEEN_FLITE)}", question, flite(question, voice, INPUT_RATE), answer
        return
    try:
        clips = examples(plan.examples_dir, "audio", AUDIO_SUFFIXES)
    except FileNotFoundError as error:
        raise Skipped(str(error)) from error
    for clip in clips[:plan.n]:  # their names are what is said in them
        words = clip.stem.partition("_")[2].replace("_", " ")
        yield "Chinese" if HAN.search(words) else "English", words, read_audio(clip, INPUT_RATE), None


TABLES: dict[str, Callable[[Examinee, Plan], Table]] = {"consistency": consistency, "cloning": cloning, "t2a": english,
                                                        "pictures": pictures, "latency": latency, "a2a": spoken}
