"""GET, POST and DELETE /v1/voices: the voices there are, and cloning one from a clip."""
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from engine.api.service import Service
from engine.realtime_events import decode_base64


class NewVoice(BaseModel):
    """consent: whose voice it is has agreed."""
    model_config = ConfigDict(extra="ignore")
    name: str = Field(min_length=1, max_length=128)
    audio: str = Field(description="an encoded file (wav, flac, ogg or mp3) in base64, 1 to 30 s of speech")
    consent: Literal[True] = Field(description="the person whose voice it is has agreed to its being cloned")


def make_router(service: Service) -> APIRouter:
    router = APIRouter(prefix="/v1/voices")

    @router.get("")
    async def list_voices():
        """Names, the default first; kind is built-in, unseen (in training) or cloned."""
        return {"object": "list", "data": [{"id": name, "kind": voice.kind} for name, voice in service.chat.voices.items()]}

    @router.post("", status_code=201)
    async def enrol(body: NewVoice):
        """Clone a voice from a clip, which is checked for length, level, clipping and noise, and is not kept."""
        clip = decode_base64(body.audio, "audio")
        voice = await service.encode(service.enrol, body.name, clip)
        return {"id": voice.name, "kind": voice.kind}

    @router.delete("/{name}")
    async def delete(name: str):
        """Delete a cloned voice for good."""
        await service.encode(service.delete_voice, name)
        return {"id": name, "deleted": True}

    return router
