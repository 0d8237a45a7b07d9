"""The web page: a chat with text, pictures and sound, the phone page in a tab, and the cloning of voices. Mounted in the server at /.

- Text streams into the chat, speech into the player (static/player.js), one 80 ms frame at a time; the whole reply can then be
  replayed and downloaded below it, beside its figures.
- It asks the Service as every protocol does: the same limits, the same errors, which it shows as part of the talk.
- A visitor's conversation is what the page's State holds; the engine keeps its turns under the conversation's id.
"""
import base64
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import gradio as gr

from engine.api.page_texts import CHINESE, ENGLISH
from engine.api.service import Question, Reply, Service
from engine.chat import CAMPPLUS, SENSEVOICE, SIGLIP
from engine.realtime_events import MAX_TEXT, ProtocolError
from engine.voices import NO_VOICE
from model.audio import encode_audio, from_pcm16
from model.config import FRAME_SAMPLES, SAMPLE_RATE

STATIC = Path(__file__).parent / "static"
EXAMPLES = ("What color is the sky?", "What is the opposite of hot?", "How much is seven plus three?", "Say after me: the moon is round.")
SOUNDS = (".wav", ".flac", ".ogg", ".mp3", ".opus")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")
CSS = """
.gradio-container { max-width: 60rem !important; margin: auto; }
#player .line { display: flex; gap: .6rem; align-items: center; font-variant-numeric: tabular-nums; font-size: .85rem; opacity: .8; }
#player .track { flex: 1; height: .4rem; border-radius: 1rem; overflow: hidden; background: var(--background-fill-secondary); }
#player .bar { height: 100%; transform: scaleX(0); transform-origin: left; background: var(--color-accent); }
#phone iframe { width: 100%; height: min(46rem, 80dvh); border: 0; border-radius: 1rem; }
.gradio-container input[type=checkbox] { border: 1px solid var(--body-text-color-subdued); }
#talk [aria-label=Share], #talk [title=Share] { display: none; }  /* it would send the talk to a public site */
footer { display: none !important; }
"""
PLAYER = '<div class="line"><div class="track"><div class="bar"></div></div><span class="clock">0.0 s</span></div>'
PHONE = '<iframe src="phone" title="phone" allow="microphone; camera; autoplay" loading="lazy"></iframe>'
PRIVATE = {"api_visibility": "private"}  # the page's own routes: programs use the OpenAI protocols


@dataclass
class Talk:
    """One visitor's conversation: messages as Chat.reply wants them, and as the page shows them.

    stopped: the reply that is going on is not wanted any more. over: another talk has taken this one's place.
    """
    id: str = ""  # given with the first question: every visitor starts with a copy of the same Talk
    messages: list[dict] = field(default_factory=list)
    shown: list[dict] = field(default_factory=list)
    stopped: bool = False
    over: bool = False


def figures(reply: Reply, ttft: float | None, ttfa: float | None, total: float) -> str:
    """The times of one reply in one line."""
    parts = [f"TTFT {1000 * ttft:.0f} ms"] if ttft is not None else []
    if ttfa is not None:
        seconds = reply.frames * FRAME_SAMPLES / SAMPLE_RATE
        parts += [f"TTFA {1000 * ttfa:.0f} ms", f"RTF {total / seconds:.2f}", f"{seconds:.1f} s"]
    return " · ".join(parts)


def sorted_files(paths: list[str], max_bytes: int) -> tuple[list[bytes], list[bytes]]:
    """Contents of the sounds and the pictures among files that Gradio has put in its upload folder."""
    sounds, pictures = [], []
    for path in map(Path, paths):
        if path.stat().st_size > max_bytes:
            raise ProtocolError(f"a file has at most {max_bytes} bytes")
        if path.suffix.lower() not in SOUNDS + PICTURES:
            raise ProtocolError(f"{path.suffix or 'a file without ending'} cannot be taken; use {', '.join(SOUNDS + PICTURES)}")
        (sounds if path.suffix.lower() in SOUNDS else pictures).append(path.read_bytes())
    return sounds, pictures


class Page:
    """The page's callbacks around a Service."""

    def __init__(self, service: Service):
        self.service = service

    # ---- a turn

    async def answer(self, asked: dict, talk: Talk, voice: str, temperature: float, speak: bool):
        """Yields (what is shown, player's value, talk, box), as the reply comes. A question that is not taken stays in its box."""
        text, files = (asked.get("text") or "").strip(), asked.get("files") or []
        if not text and not files:
            yield (gr.skip(),) * 4
            return
        talk.shown += [{"role": "user", "content": {"path": path}} for path in files]
        if text:
            talk.shown.append({"role": "user", "content": text})
        yield talk.shown, gr.skip(), talk, gr.MultimodalTextbox(value=None)
        began, talk.stopped, talk.id = time.perf_counter(), False, talk.id or uuid.uuid4().hex
        try:
            question, heard = await self.service.encode(self._question, text, files, talk, voice, temperature)
            if heard is not None:
                talk.shown.append({"role": "user", "content": f"🎤 {heard or '…'}", "metadata": {"title": "heard"}})
            reply = await self.service.answer(self.service.request, question, speak, began)
        except ProtocolError as error:
            talk.shown.append({"role": "assistant", "content": f"⚠️ {error}"})
        else:
            talk.messages = [*question.messages[:-1], {"role": "user", "content": "\n\n".join(filter(None, (text, heard)))},
                             {"role": "assistant", "content": ""}]
            async for shown, value in self._listen(reply, talk, began):
                yield shown, value, gr.skip(), gr.skip()
        if not talk.over:  # else the page shows another talk by now
            yield talk.shown, gr.skip(), talk, gr.skip()

    def _question(self, text: str, files: list[str], talk: Talk, voice: str, temperature: float) -> tuple[Question, str | None]:
        """What is asked, and the words of a spoken question; to be run in the encoders' thread."""
        service = self.service
        if len(text) > MAX_TEXT:
            raise ProtocolError(f"a question has at most {MAX_TEXT} characters")
        sounds, pictures = sorted_files(files, service.limits.message_bytes)
        if len(sounds) > 1:
            raise ProtocolError("one recording at a time can be heard")
        service.check_images(len(pictures))
        question = Question([*talk.messages, {"role": "user", "content": text}], voice=voice or NO_VOICE.name,
                            temperature=temperature, conversation=talk.id)
        question.images = [service.read_picture(data, "the picture") for data in pictures]
        heard = None
        if sounds:
            question.wav = service.read_wav(sounds[0], "the recording")
            heard = service.transcribe(question.wav)
        return question, heard

    async def _listen(self, reply: Reply, talk: Talk, began: float):
        """Pass a reply on, piece by piece; then show its sound as a whole and its figures. The talk remembers what was shown of it."""
        said, line, turn = talk.messages[-1], {"role": "assistant", "content": ""}, uuid.uuid4().hex[:8]
        talk.shown.append(line)
        ttft = ttfa = None
        sound, failure = [], ""
        try:
            async for text, pcm in reply:
                if talk.stopped:
                    break
                if text:
                    ttft = ttft or time.perf_counter() - began
                    line["content"] += text
                    said["content"] = line["content"]
                if pcm:
                    ttfa = ttfa or time.perf_counter() - began
                    sound.append(pcm)
                value = {"turn": turn, "seq": len(sound), "pcm": base64.b64encode(pcm).decode()} if pcm else gr.skip()
                yield talk.shown if text else gr.skip(), value
        except ProtocolError as error:
            failure = f"⚠️ {error}"
        finally:
            reply.close()
        total = time.perf_counter() - began
        if sound:
            talk.shown.append({"role": "assistant", "content": self._recording(b"".join(sound))})
        talk.shown.append({"role": "assistant", "content": f"<small>{failure or figures(reply, ttft, ttfa, total)}</small>"})

    def _recording(self, pcm: bytes) -> gr.Audio:
        """The whole reply, to replay and download; Gradio's cache deletes its file after an hour."""
        path = Path(gr.utils.get_upload_folder()) / f"reply-{uuid.uuid4().hex[:12]}" / "reply.wav"
        path.parent.mkdir(parents=True)
        path.write_bytes(encode_audio(from_pcm16(pcm), SAMPLE_RATE, "wav"))
        return gr.Audio(str(path), show_label=False, buttons=["download"])

    def stop(self, talk: Talk):
        talk.stopped = True

    def forget(self, talk: Talk):
        """A new talk in the place of this one."""
        self.left(talk)
        return [], Talk()

    def left(self, talk: Talk) -> None:
        """Nothing more comes of this talk."""
        talk.stopped = talk.over = True
        self.service.worker.forget(talk.id)

    # ---- menus

    def menus(self):
        """What is in the menus now: (voices, temperature, models, cloned voices, what the pack lacks)."""
        service = self.service
        names = [(name if voice.kind == "built-in" else f"{name} ({voice.kind})", name) for name, voice in service.chat.voices.items()]
        names.append((NO_VOICE.name, NO_VOICE.name))
        cloned = [name for name, voice in service.chat.voices.items() if voice.kind == "cloned"]
        return (gr.Dropdown(names, value=names[0][1]), gr.Slider(value=service.defaults.temperature),
                gr.Dropdown([service.model_id, *(n for n in service.models if n != service.model_id)], value=service.model_id),
                gr.Dropdown(cloned, value=None), self.lacks())

    def lacks(self) -> str:
        """One line about the senses that this pack does not have."""
        missing = [what for what, part in (("hear / 听", SENSEVOICE), ("see / 看", SIGLIP), ("clone voices / 克隆", CAMPPLUS))
                   if not (self.service.chat.folder / part).exists()]
        return f"<small>⚠️ {self.service.model_id} cannot: {', '.join(missing)}</small>" if missing else ""

    async def change_model(self, name: str, talk: Talk):
        try:
            await self.service.change_model(name)
        except ProtocolError as error:
            gr.Warning(str(error))
        return [*self.menus(), *self.forget(talk)]

    async def enrol(self, name: str, clip: str | None, consent: bool):
        service = self.service
        try:
            if not consent:
                raise ProtocolError("the consent of the person is needed")
            if clip is None:
                raise ProtocolError("record a clip, or choose a file")
            (data,), _ = sorted_files([clip], service.limits.message_bytes)
            voice = await service.encode(service.enrol, name, data)
        except (ProtocolError, ValueError) as error:
            return (f"⚠️ {error}", *self.menus()[:1], *self.menus()[3:4])
        voices, _, _, cloned, _ = self.menus()
        return f"✅ {voice.name}", gr.Dropdown(voices.choices, value=voice.name), cloned

    async def delete(self, name: str | None):
        try:
            await self.service.encode(self.service.delete_voice, name or "")
            told = f"🗑️ {name}"
        except ProtocolError as error:
            told = f"⚠️ {error}"
        return told, self.menus()[0], self.menus()[3]


def build(page: Page, t) -> gr.Blocks:
    """The page's layout. t(key): a word of page_texts."""
    with gr.Blocks(title="MiniMind-O", analytics_enabled=False, delete_cache=(600, 3600)) as blocks:
        talk = gr.State(Talk(), time_to_live=3600, delete_callback=page.left)
        gr.Markdown("## MiniMind-O")
        lacks = gr.Markdown()
        with gr.Tab(t("chat")):
            history = gr.Chatbot(label=t("talk"), show_label=False, height="52dvh", feedback_options=None, elem_id="talk", buttons=["copy"])
            player = gr.HTML({}, html_template=PLAYER, js_on_load=(STATIC / "player.js").read_text(encoding="utf-8"), elem_id="player")
            box = gr.MultimodalTextbox(sources=["upload", "microphone"], file_types=[*PICTURES, *SOUNDS], file_count="multiple",
                                       placeholder=t("ask"), show_label=False, elem_id="question")
            with gr.Row():
                stop = gr.Button(t("stop"), variant="stop", size="sm", min_width=80, elem_id="stop")
                new = gr.Button(t("new"), size="sm", min_width=80, elem_id="new")
            with gr.Accordion(t("settings"), open=False):
                with gr.Row():
                    voice = gr.Dropdown(label=t("voice"), elem_id="voice")
                    temperature = gr.Slider(0, 2, step=0.05, label=t("temperature"))
                    model = gr.Dropdown(label=t("model"), elem_id="model")
                speak = gr.Checkbox(True, label=t("speak"), elem_id="speak")
            gr.Examples([[{"text": text, "files": []}] for text in EXAMPLES], box, label=t("examples"))
        with gr.Tab(t("phone")):
            gr.HTML(PHONE, elem_id="phone")
        with gr.Tab(t("voices")):
            clip = gr.Audio(sources=["microphone", "upload"], type="filepath", label=t("clip"), elem_id="clip")
            name = gr.Textbox(label=t("name"), max_lines=1, elem_id="voice-name")
            consent = gr.Checkbox(label=t("consent"), elem_id="consent")
            enrol = gr.Button(t("enrol"), variant="primary", elem_id="enrol")
            told = gr.Markdown(elem_id="told")
            with gr.Row():
                cloned = gr.Dropdown(label=t("cloned"))
                delete = gr.Button(t("delete"), variant="stop")

        menus = [voice, temperature, model, cloned, lacks]
        blocks.load(page.menus, None, menus, **PRIVATE)
        box.submit(page.answer, [box, talk, voice, temperature, speak], [history, player, talk, box], concurrency_limit=None,
                   show_progress="hidden", **PRIVATE)
        stop.click(page.stop, talk, None, js="(talk) => { window.minimindPlayer.stop(); return talk; }", concurrency_limit=None, **PRIVATE)
        new.click(page.forget, talk, [history, talk], js="(talk) => { window.minimindPlayer.stop(); return talk; }", **PRIVATE)
        history.clear(page.left, talk, None, **PRIVATE).then(Talk, None, talk, **PRIVATE)
        model.input(page.change_model, [model, talk], [*menus, history, talk], **PRIVATE)
        enrol.click(page.enrol, [name, clip, consent], [told, voice, cloned], **PRIVATE)
        delete.click(page.delete, cloned, [told, voice, cloned], **PRIVATE)
    return blocks


async def fetch_nothing(url: str, cache_dir: str) -> str:
    """In the place of Gradio's download of an address that a visitor names instead of a file."""
    raise gr.Error("addresses are not fetched: upload the file")


def mount_page(app, service: Service) -> None:
    """Serve the page at the application's /, behind whatever guards it."""
    i18n = gr.I18n(en=ENGLISH, zh=CHINESE, **{"zh-CN": CHINESE})
    blocks = build(Page(service), i18n)
    blocks.has_launched = True  # mounted ones are not launched, and before that Gradio serves any file of this machine that is named
    gr.processing_utils.async_ssrf_protected_download = fetch_nothing
    blocks.queue(max_size=service.limits.waiting)
    theme = gr.themes.Soft(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # fetch no fonts from elsewhere
    gr.mount_gradio_app(app, blocks, path="/", i18n=i18n, theme=theme, css=CSS, ssr_mode=False, show_error=False,
                        max_file_size=service.limits.message_bytes, footer_links=[])
