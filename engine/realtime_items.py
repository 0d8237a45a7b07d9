"""The items of a Realtime conversation: made of what a client sends, and read as the question that a reply answers."""
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.realtime_events import NewItem, ProtocolError, decode_base64
from engine.realtime_mic import BYTES_PER_MS, MAX_UTTERANCE_S

MAX_PICTURES = 4  # of a question, the last ones
KINDS = {"user": ("input_text", "input_audio", "input_image"), "system": ("input_text",), "assistant": ("output_text", "output_audio")}


@dataclass
class Content:
    """One part of an item. pcm: 24 kHz speech of the user; image: an encoded picture; audio_ms: how long the model spoke."""
    type: str
    text: str = ""
    pcm: bytes = b""
    image: bytes = b""
    audio_ms: float = 0.0

    def as_dict(self) -> dict:
        if self.type == "input_audio":
            return {"type": self.type, "transcript": self.text or None}  # the Agents SDK wants the key, whatever it holds
        if self.type == "input_image":
            return {"type": self.type}
        return {"type": self.type, "transcript" if self.type == "output_audio" else "text": self.text}


@dataclass
class Item:
    """A message of the conversation."""
    id: str
    role: str
    content: list[Content] = field(default_factory=list)
    status: str = "completed"

    @property
    def text(self) -> str:
        return "\n\n".join(part.text for part in self.content if part.text)

    @property
    def num_bytes(self) -> int:
        """Of sound and pictures."""
        return sum(len(part.pcm) + len(part.image) for part in self.content)

    def become_words(self) -> None:
        """Forget sound and pictures."""
        for part in self.content:
            part.pcm = part.image = b""

    def as_dict(self) -> dict:
        return {"id": self.id, "object": "realtime.item", "type": "message", "status": self.status, "role": self.role,
                "content": [part.as_dict() for part in self.content]}


def decode_image_url(url: str, param: str) -> bytes:
    """The bytes of a data URL; nothing else is ever opened. ProtocolError naming `param`."""
    head, comma, data = url.partition(",")
    if not (comma and head.startswith("data:image/") and head.endswith(";base64")):
        raise ProtocolError(f"{param} must be a data URL: data:image/png;base64,...", param=param)
    return decode_base64(data, param)


def build_item(new: NewItem, item_id: str, name: str = "item") -> Item:
    """The Item that a client asked for. ProtocolError, in which it is `name`, when a part does not fit its role or lacks its data."""
    item = Item(item_id, new.role)
    for i, part in enumerate(new.content):
        where = f"{name}.content.{i}"
        kind = "output_text" if part.type == "text" else part.type
        if kind not in KINDS[new.role]:
            raise ProtocolError(f"{where}: a {new.role} message has no {part.type}", param=where)
        given = {"input_audio": part.audio, "input_image": part.image_url, "output_audio": part.transcript}.get(kind, part.text)
        if given is None:
            raise ProtocolError(f"{where}: {part.type} has no data", "missing_required_parameter", where)
        content = Content(kind)
        if kind == "input_audio":
            content.pcm = decode_base64(given, f"{where}.audio")
            if len(content.pcm) % 2 or not content.pcm:
                raise ProtocolError(f"{where}.audio: pcm16 needs an even number of bytes, at least 2", "invalid_audio", f"{where}.audio")
        elif kind == "input_image":
            content.image = decode_image_url(given, f"{where}.image_url")
        else:
            content.text = given
        item.content.append(content)
    return item


def history(items: Sequence[Item], instructions: str, wanted: str = "") -> tuple[list[dict], bytes, list[bytes]]:
    """Everything said in `items`, as messages; sound and pictures of what the user has said since the last reply.

    Where the user has said nothing, a system's message at the end or the instructions that are `wanted` of this reply ("Greet the caller.")
    are what is answered. ProtocolError when there is nothing to answer.
    """
    messages = [{"role": "system", "content": instructions}] if instructions else []
    parts: list[Content] = []
    for item in items:
        if item.role == "assistant" and not item.text:
            continue  # interrupted before it had begun
        if messages and messages[-1]["role"] == item.role:
            messages[-1]["content"] = "\n\n".join(filter(None, (messages[-1]["content"], item.text)))
        else:
            messages.append({"role": item.role, "content": item.text})
            parts = []
        parts += item.content
    if messages and messages[-1]["role"] == "system":
        messages.append({"role": "user", "content": messages.pop()["content"]})
    elif wanted and messages[-1]["role"] == "assistant":
        messages.append({"role": "user", "content": wanted})
        parts = []
    if not messages or messages[-1]["role"] != "user":
        raise ProtocolError("there is nothing to answer: the conversation must end with a user's item", "nothing_to_answer")
    pcm = b"".join(part.pcm for part in parts)[-1000 * MAX_UTTERANCE_S * BYTES_PER_MS:]
    if pcm:  # it hears the words: they are not to be read as well
        messages[-1]["content"] = "\n\n".join(part.text for part in parts if part.text and part.type == "input_text")
    return messages, pcm, [part.image for part in parts if part.image][-MAX_PICTURES:]


def heard_share(text: str, share: float) -> str:
    """The first part of `text`, a share of 0 to 1 of its characters, in whole words where it has any."""
    cut = text[:round(len(text) * share)]
    if len(cut) < len(text) and " " in text and not text[len(cut)].isspace():
        cut = cut.rpartition(" ")[0]
    return cut.rstrip()
