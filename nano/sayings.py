"""Sentences to be copied or picked apart: a small grammar over the whole vocabulary.

- `say_after_me`: the model repeats any sentence. It knows nothing about the sentence beforehand, so the Talker has to learn to read
  aloud, and every word meets many neighbours: this is what makes pronunciation general.
- `reading`: a sentence or two, then a question whose answer stands in them.
- `quoting`: facts inside other sentences, used to bring rare words up to their minimum number of sentences.
Fillers that were used least are preferred, so that all words come up about equally often.
"""
import re
from collections import Counter

from nano import world as w
from nano.forms import ask, article, sentence

PERSON_WORDS = ("happy sad young old strong friendly clever famous brave careful tired hungry thirsty angry proud lonely nervous "
                "quiet rich poor funny lazy beautiful surprised").split()
SLOTS = {
    "name": [row["name"] for row in w.NAMES],
    "relative": w.RELATIVES,
    "job": [row["name"] for row in w.JOBS],
    "jobs": [row["plural"] for row in w.JOBS],
    "animal": [row["name"] for row in w.ANIMALS],
    "animals": [row["plural"] for row in w.ANIMALS],
    "thing": [row["name"] for row in w.OBJECTS],
    "things": [row["plural"] for row in w.OBJECTS],
    "foods": [row["some"] for row in w.FOODS] + [row["name"] for row in w.STUFF],
    "place": [row["name"] for row in w.PLACES],
    "do": [row["do"] for row in w.PLACES] + [row["use"] for row in w.OBJECTS + w.BODY if not {"my", "our"} & set(row["use"].split())],
    "vehicle": [row["name"] for row in w.VEHICLES],
    "country": [row["name"] for row in w.COUNTRIES],
    "city": [row["capital"] for row in w.COUNTRIES],
    "language": sorted({row["language"] for row in w.COUNTRIES}),
    "person": PERSON_WORDS,
    "size": "big small little long short heavy round old new broken beautiful expensive cheap wooden clean strange".split(),
    "color": [color for color in w.COLORS if color != "red"],  # heard as "read": kept to the facts that need it
    "day": w.DAYS,
    "month": w.MONTHS,
    "season": w.SEASONS,
    "number": w.NUMBERS[2:],
    "ordinal": w.ORDINALS,
    "weather": [row["name"] for row in w.WEATHER] + "hot cold warm cool wet dry dangerous wonderful terrible".split(),
    "room": "kitchen office bedroom bathroom garage garden".split() + ["living room"],
    "went": "walked went came".split(),
    "did": "bought sold found lost forgot carried wanted painted needed opened remembered".split(),
    "said": "said thought knew remembered".split(),
    "how": "slowly quickly quietly carefully happily suddenly".split(),
    "where": "near,behind,across from,in front of,next to,far from".split(","),
    "when": "yesterday,this morning,last night,every evening,last week,this afternoon,on the weekend,long ago".split(","),
    "topic": [row["a"] for row in w.DEFINITIONS],
    "feeling": [row["name"] for row in w.FEELINGS],
    "body": [row["name"] for row in w.BODY],
    "color_thing": [row["name"] for row in w.THINGS],
    "opposite": sorted({x for row in w.OPPOSITES for x in row.values()}),
}
PATTERNS = """
the {person} {job} {went} {where} the {place} {when}.
my {relative} {did} the {size} {thing} {when}.
{name} and {name2} want to {do} in {month}.
we saw {number} {color} {animals} {where} the {place}.
please put the {size} {thing} {where} the {thing2}.
do not forget your {color} {thing} when you go to the {place}.
in {month} the weather in {country} is very {weather}.
the {job} {said} that the {animal} was {person}.
{name} would like to travel to {city} by {vehicle} next {season}.
every {day} my {relative} enjoys {foods} and {foods2}.
the {color} {vehicle} is waiting {where} the {place}.
{name} speaks {language}, but {name2} speaks {language2}.
I have never seen the {size} {animal} in {city}.
the {ordinal} {animal} was {color} and the other was {color2}.
there are {number} {things} and {number2} {things2} in the {room}.
on {day} the {jobs} will {do} at the {place}.
{name} {did} {number} {foods_count} for the {relative} {when}.
the {animal} {how} {went} {where} the {thing}.
my {relative} is the most {person} {job} in {country}.
can you help the {job} to {do}?
why is the {relative} of {name} so {feeling} today?
tomorrow will be another {weather} day in {city}.
the book about {topic} is {where} the {thing}.
{name} {said} that {foods} and {foods2} are delicious.
when I was {person}, I {went} to the {place} every {season}.
the {size} {thing} in the {room} belongs to my {relative}.
one {person} {animal} {went} {how} into the {room}.
take the {vehicle} from the {place} to the {place2}.
{name} told us many stories about {topic} {when}.
the {job} and the {job2} {went} {how} to {city}.
I think {color_thing} is more beautiful than {color_thing2}.
the word {opposite} is not the same as the word {opposite2}.
my {body} and my {body2} feel strange {when}.
the {jobs} feel very {feeling} when they see the {animal}.
nobody in {country} {did} the {color} {thing} {when}.
is the {animal} {where} the {place} really {color}?
""".strip().splitlines()
LEADS = ["say after me: {x} => {x}", "repeat after me: {x} => {x}", "please say: {x} => {x}", "read this sentence: {x} => {x}",
         "now you say: {x} => {x}"]
QUOTES = ["my {relative} said that {x}", "{name} told me that {x}", "the {job} is sure that {x}", "{name} told us that {x}",
          "I remember that {x}", "the {person} {job} knew that {x}", "my {relative} from {city} thinks that {x}"]


class Filler:
    """Draws slot values, the least used first among a few random ones; equal seeds draw the same sentences."""

    def __init__(self, rng):
        self.rng = rng
        self.used = Counter()

    def draw(self, slot, taken=()):
        """A value of SLOTS[slot] that is not in `taken`."""
        options = [value for value in SLOTS[slot] if value not in taken]
        some = self.rng.sample(options, min(4, len(options)))
        value = min(some, key=lambda option: self.used[slot, option])
        self.used[slot, value] += 1
        return value

    def fill(self, pattern):
        """The pattern with every {slot} drawn; {slot2} differs from {slot}."""
        values = {}
        for field in re.findall(r"{(\w+)}", pattern):
            slot = "foods" if field == "foods_count" else field.rstrip("2")
            value = self.draw(slot, taken=values.values())
            while field == "foods_count" and not value.endswith("s"):
                value = self.draw(slot)
            values[field] = value
        return sentence(pattern.format(**values))


TRIES = 1000  # sentences in a row that a pattern may repeat


def say_after_me(filler, count):
    """`count` distinct Pairs of kind "say after me". ValueError when the patterns do not give so many."""
    found, fruitless, used_up = {}, 0, 0
    while len(found) < count:
        text = filler.fill(PATTERNS[(len(found) + used_up) % len(PATTERNS)])
        new = 4 <= len(text.split()) <= 14 and text not in found
        if 4 <= len(text.split()) <= 14:
            found[text] = ask("say after me", None, filler.rng.choice(LEADS), x=text)
        fruitless = 0 if new else fruitless + 1
        if fruitless and fruitless % TRIES == 0:  # this pattern has said all it can: the next one's turn
            used_up += 1
        if fruitless > TRIES * len(PATTERNS):
            raise ValueError(f"the patterns give {len(found)} distinct sentences, not {count}: write more of them")
    return list(found.values())


def repeated(filler, sentences):
    """A Pair of kind "say after me" for each of the sentences."""
    return [ask("say after me", None, filler.rng.choice(LEADS), x=text) for text in sentences]


ORDERS = ("Tell", "Take", "Listen,", "Then", "Not")  # first words of answers that would sound odd after "that"


def bare(answer):
    return re.sub("^(Yes|No), ", "", answer)


def quotable(answer):
    """Whether an answer is a plain sentence that leaves room for "my sister said that"."""
    return answer.endswith(".") and ". " not in answer and answer.split()[0] not in ORDERS and len(bare(answer).split()) <= 10


def quoting(filler, answers, tries=200):
    """A Pair that repeats one of the sentences `answers` inside another, at most 14 words; None when none is short enough."""
    answers = list(filter(quotable, answers))
    for _ in range(tries):
        inner = bare(filler.rng.choice(answers))
        first = inner.split()[0]
        keep = first in KEEP_CAPITAL or first.rstrip(",") in KEEP_CAPITAL
        inner = inner if keep else inner[0].lower() + inner[1:]
        text = filler.fill(filler.rng.choice(QUOTES).replace("{x}", "@")).replace("@", inner)
        if len(text.split()) <= 14:
            return ask("say after me", None, filler.rng.choice(LEADS), x=text)
    return None


KEEP_CAPITAL = {"I", *SLOTS["name"], *w.DAYS, *w.MONTHS, *SLOTS["country"], *(city.split()[0] for city in SLOTS["city"])}


def reading(filler, each):
    """At most `each` Pairs of every little story: the answer stands in the question, or follows from it by one known fact."""
    rng, found = filler.rng, {}
    for form in READING_FORMS:
        made = 0
        for _ in range(3 * each):  # a story with few variants gives fewer
            if made == each:
                break
            who, other = rng.sample(w.NAMES, 2)
            a, b = rng.sample(range(2, 11), 2)
            if a <= b:
                a, b = b, a
            job, country = rng.choice(w.JOBS), rng.choice(w.COUNTRIES)
            feeling = rng.choice([row for row in w.FEELINGS if "your" not in row["do"]])
            cells = {slot: filler.draw(slot) for slot in ("place", "day", "relative", "city", "thing", "color", "room", "foods", "animal")}
            cells |= {slot + "2": filler.draw(slot, taken=(cells[slot],)) for slot in ("thing", "color", "room", "foods", "relative")}
            fruit = rng.choice(w.FOODS)["some"]
            pair = ask("reading", None, form, x=who["name"], he=who["he"], his=who["his"], y=other["name"], job=article(job["name"]),
                       job_place=job["place"], country=country["name"], language=country["language"], feeling=feeling["name"],
                       do=feeling["do"], fruit=fruit, a=w.NUMBERS[a], b=w.NUMBERS[b], sum=w.NUMBERS[a + b], rest=w.NUMBERS[a - b], **cells)
            made += pair.question not in found
            found[pair.question] = pair
    return list(found.values())


READING_FORMS = [
    "{x} went to the {place} on {day}. where did {he} go? => on {day} {x} went to the {place}.",
    "{x} has the {color} {thing} and the {color2} {thing2}. what color is the {thing2}? => the {thing2} of {x} is {color2}.",
    "{x} put the {thing} in the {room} and the {thing2} in the {room2}. where is the {thing}? => {x} put the {thing} in the {room}.",
    "{x} likes {foods} but {y} likes {foods2}. who likes {foods2}? => {y} is the one that likes {foods2}.",
    "{x} is {job}. where does {he} work? => {x} is {job} and works {job_place}.",
    "{x} has {a} {fruit} and buys {b} more. how many {fruit} does {he} have? => then {x} has {sum} {fruit}.",
    "{x} has {a} {fruit} and eats {b} of them. how many {fruit} remain? => then {x} has only {rest} {fruit}.",
    "{x} visited {his} {relative} in {city}. whom did {x} visit? => in {city} {x} visited {his} {relative}.",
    "{x} lost the {thing} in the {place} on {day}. what did {x} lose? => on {day} {x} lost the {thing}.",
    "{x} feels {feeling}. what should {he} do? => if {x} feels {feeling}, {he} should {do}.",
    "{x} comes from {country}. what language does {he} speak? => {x} comes from {country} and speaks {language}.",
    "the {relative} of {x} saw the {color} {animal} near the {place}. what was {color}? => the {animal} near the {place} was {color}.",
    "first {x} went to the {place}, then to {city}. where is {x} now? => I think that {x} is in {city} now.",
]
