"""Prompts and suites of the command line as data.

- A suite is a list of cases; a case is one conversation, its questions asked in order.
- Two worlds: "nano" asks what the small offline model was taught, "general" asks the released model (English and Chinese).
- The inputs of the audio, image and mix suites are example files found by name (`audio-*`, `image-*`, `img-*`) in a folder.
"""
from dataclasses import dataclass
from pathlib import Path

SUITES = ("text", "multi", "audio", "clone", "image", "mix")  # their order is the numbering of the original's --mode
ALL = "all"
AUDIO_SUFFIXES = (".wav", ".mp3", ".flac", ".ogg")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Case:
    """turns: the typed questions in order ('' = nothing typed). audio and image (files) and voice belong to the last turn."""
    suite: str
    name: str
    turns: tuple[str, ...]
    audio: Path | None = None
    image: Path | None = None
    voice: str | None = None  # None: the voice chosen for the run


TEXT = {
    "nano": (
        "What color is the sky?", "What is the capital of France?", "How much is seven plus three?", "What do cats like to eat?",
        "What is the opposite of hot?", "How many legs does a spider have?", "What does the doctor do?", "Which season comes after autumn?",
        "Why is the sky blue?", "Tell me a story about the brave spider.",
    ),
    "general": (
        "What do you usually like to eat?", "Why is the sky blue?", "Please introduce spring in one sentence.",
        "How can I study more efficiently?", "Tell me a short story about a little cat.",
        "你平时喜欢吃什么?", "为什么天空是蓝色的?", "请用一句话介绍一下春天。", "怎样才能提高学习效率?", "给我讲一个关于小猫的故事吧。",
    ),
}
MULTI = {
    "nano": (
        ("Good morning, I am Jennifer.", "What is the capital of France?"),
        ("What color is the spider?", "What is the opposite of hot?"),
    ),
    "general": (
        ("My name is Alex and I like tea.", "What do I like to drink?"),
        ("What is a black hole?", "Can we see one?"),
        ("我叫小明，今年十岁。", "我叫什么名字?"),
    ),
}
T2A_ENGLISH = (  # of the released model's table III: ten that ask for few words, ten for more
    "What is the capital of Japan?", "What color is grass?", "How many days are there in a week?", "What do bees make?",
    "Is the sun a star?", "What is the opposite of cold?", "Which season comes after winter?", "Name a fruit that is yellow.",
    "What do we use to cut paper?", "Say good morning to me.",
    "Why do leaves turn red in autumn?", "How can I fall asleep faster?", "What does a teacher do all day?",
    "Please describe the sea in two sentences.", "How do plants get their food?", "Why should we drink enough water?",
    "Tell me about your favorite animal.", "What is the difference between tea and coffee?", "How does a bicycle work?",
    "What would you do on a rainy day?",
)
CLONE = {"nano": "What color is the sky?", "general": "Please introduce spring in one sentence."}
IMAGE = {"nano": "What is in the picture?", "general": "Please describe this image."}


def parse_suites(names: list[str]) -> list[str]:
    """Suite names in the order given; accepts names, numbers 0-5, -1 or "all", and comma lists of them.

    ValueError names what is not a suite.
    """
    suites: list[str] = []
    for name in (part.strip().lower() for item in names for part in item.split(",")):
        if name in ("-1", ALL):
            chosen = SUITES
        elif name in SUITES:
            chosen = (name,)
        elif name.isdecimal() and int(name) < len(SUITES):
            chosen = (SUITES[int(name)],)
        else:
            raise ValueError(f"unknown suite {name!r}; choose from {', '.join(SUITES)}, {ALL}, or the numbers -1 to {len(SUITES) - 1}")
        suites += [suite for suite in chosen if suite not in suites]
    return suites


def examples(folder: Path, prefix: str, suffixes: tuple[str, ...]) -> list[Path]:
    """Example files `<prefix>-*` of a folder, sorted. FileNotFoundError when there are none."""
    found = sorted(path for path in Path(folder).glob(f"{prefix}-*") if path.suffix.lower() in suffixes)
    if not found:
        raise FileNotFoundError(f"no example inputs {prefix}-*{suffixes[0]} in {folder}: point --examples_dir at a folder that has them")
    return found


def cases_for(suite: str, world: str, examples_dir: Path, voices: list[str]) -> list[Case]:
    """The cases of one suite. FileNotFoundError when it needs example files that are absent."""
    if suite == "text":
        return [Case(suite, f"text-{i:02d}", (question,)) for i, question in enumerate(TEXT[world], 1)]
    if suite == "multi":
        return [Case(suite, f"multi-{i:02d}", turns) for i, turns in enumerate(MULTI[world], 1)]
    if suite == "clone":
        return [Case(suite, f"clone-{voice}", (CLONE[world],), voice=voice) for voice in voices]
    if suite == "audio":
        return [Case(suite, path.stem, ("",), audio=path) for path in examples(examples_dir, "audio", AUDIO_SUFFIXES)]
    images = examples(examples_dir, "image", IMAGE_SUFFIXES)
    if suite == "image":
        return [Case(suite, path.stem, (IMAGE[world],), image=path) for path in images]
    spoken = examples(examples_dir, "img", AUDIO_SUFFIXES)
    return [Case(suite, f"mix-{path.stem}", ("",), audio=spoken[i % len(spoken)], image=path) for i, path in enumerate(images)]
