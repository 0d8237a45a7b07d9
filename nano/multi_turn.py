"""Conversations in which the last question cannot be answered without an earlier turn.

- A family is a table of rows, some openings ("My name is Anna. => Hello Anna, ...") and some closings ("What is my name? => Your name is
  Anna."); every opening goes with every closing. Now and then an unrelated question of the corpus comes between.
- A share of the training conversations changes the subject ("apart"): the last question is one of the corpus and needs nothing before it.
- Some come after a long talk of other things, and what was asked before is, in a share of them, as an ear has written it down: so it is
  in a call.
- Closed vocabulary: a form whose reply has a word that the corpus does not teach the Talker is not used.
- Held out are whole last replies: no training conversation, and no training pair of the corpus, says such a sentence.
- An opening that is a question of the corpus, too, has the corpus's answer: two answers to one question leave a model to guess.
- The random.Random decides which of the many possible conversations are kept; the rest is fixed.
"""
from collections import defaultdict
from typing import NamedTuple

from nano import world as w
from nano.corpus import normalise, words
from nano.forms import article, sentence

HELD_OUT_SHARE = 0.04  # of a family's last replies, at least HELD_OUT_LEAST
HELD_OUT_LEAST = 6
FILLER_SHARE = 0.25  # of the conversations have an unrelated turn in between
APART_SHARE = 0.3  # of the training conversations change the subject
EARLIER_TURNS = 8  # about other things, at most, come before such a question ...
PRECEDED_SHARE = 0.2  # ... and before this share of the other training conversations
HEARD_SHARE = 0.4  # of the training conversations have their earlier questions without case and punctuation
FILLER_KINDS = ("animals", "colors", "foods", "opposites", "countries", "tools", "order")
ROOMS = ("kitchen", "bedroom", "bathroom", "garage", "garden", "office", "studio", "living room")
PEOPLE = {"mother": "she", "father": "he", "sister": "she", "brother": "he", "grandmother": "she", "grandfather": "he", "uncle": "he",
          "aunt": "she", "daughter": "she", "son": "he"}
REMEMBERED = "thank you, I will remember that."
# {kind: (openings, closings)}, for training only: with its few forms alone a family is learnt by heart, and what needs a fact fails.
FURTHER = {
    "animal": (["{a} is in my garden. => then you can look at the {name}.", "I think about {a}. => the {name} is very interesting.",
                "do you know {a}? => yes, I know the {name} well."],
               ["which food does it like? => it likes {food}.", "what should I give it? => give the {name} {food}.",
                "where can I find it? => you can find the {name} {home}.", "where does it sleep? => it can sleep {home}.",
                "which color does it have? => its color is {color}.", "what does it like to do? => it likes to {move}.",
                "what is on its body? => there is {cover} on the {name}.", "tell me about its legs. => it has {legs} legs, I know."]),
    "thing": (["my friend needs {a}. => I hope that your friend will find it.", "this is my new {name}. => I like your new {name}.",
               "I found {a}. => I hope that you like the {name}."],
              ["which material is it? => it is made of {material}.", "why do I need it? => you need it to {use}.",
               "how can I use it? => you can {use} with it.", "in which room does it belong? => it belongs in the {room}."]),
    "sum": (["I have {a} and get {b} more. => now you have {c}.", "what is {a} plus {b}? => {a} plus {b} is {c}.",
             "tell me the sum of {a} and {b}. => I know that the sum of {a} and {b} is {c}."],
            ["and {d} more? => {d} more and you have {more}.", "and plus {d}? => {c} plus {d} is {more}.",
             "now add {d}. => when I add {d}, I get {more}.", "I get {d} more. => then you have {more}.",
             "and minus {d}? => {c} minus {d} is {less}.", "I lose {d} of them. => then you have {less}.",
             "take {d} from it. => when you take {d} from {c}, {less} will remain.", "how much was it? => it was {c}."]),
    "home": (["I come from {capital}. => I like the city of {capital}.", "my home is {capital}. => I would like to visit {capital}.",
              "I was born in {capital}. => then you know {capital} very well."],
             ["which city is my home? => your home is the city of {capital}.", "which country is my home? => {name} is your home.",
              "what is my country? => your country is {name}.", "is my home in {continent}? => yes, your home is in {continent}.",
              "what do people speak in my city? => in your city people speak {language}.",
              "which language do I speak? => you speak {language}.", "to which continent does it belong? => it belongs to {continent}.",
              "what do we call the people of my country? => we call them {people}."]),
    "country": (["I will travel to {name}. => I hope that you will enjoy {name}.", "do you know {name}? => yes, I know {name} well.",
                 "I read about {name}. => {name} is a beautiful country.", "I like {name}. => yes, {name} is beautiful."],
                ["which city is the capital? => the capital is {capital}.", "tell me the capital. => I know that it is {capital}.",
                 "on which continent is it? => it is in {continent}.", "where is it? => you will find it in {continent}.",
                 "which language should I learn? => you should learn {language}.", "what do the people speak? => they speak {language}.",
                 "who lives there? => the {people} people live there.", "which city should I see there? => you should see {capital}."]),
    "job": (["my {r} is a good {name}. => I believe that your {r} is very good.", "I saw {a} today, my {r}. => I like your {r}."],
            ["where is {he} now? => I think your {r} is {place}.", "where can I find {he}? => you will find your {r} {place}.",
             "what is the work of my {r}? => everybody knows that {a} {work}.", "what did {he} forget? => {he} forgot {tool}.",
             "what should I bring? => you should bring {tool}."]),
    "day": (["it is {x}. => yes, it is {x}.", "this is {x}. => I like {x} very much.", "do you like {x}? => yes, I like {x}.",
             "I work on {x}. => then {x} is an important day.", "my birthday is on {x}. => I will remember your {x}."],
            ["which day is next? => the next day is {y}.", "what comes after that? => after {x} comes {y}.",
             "what comes before that? => before {x} comes {z}.", "and the next day? => {y} is the next day.",
             "and the day before? => {z} is the day before.", "what day comes after it? => I know that {y} comes after {x}.",
             "which day is before it? => {z} is before {x}.", "tell me the next day. => listen, the next day is {y}.",
             "tell me the day before. => listen, the day before is {z}.", "which day did I say? => you said {x}."]),
}


class Family(NamedTuple):
    rows: list  # of dicts: the cells of the forms
    openings: list  # "question => reply"
    closings: list
    pause: bool = True  # may an unrelated question come in between?


def families(rng):
    """{kind: Family}; `rng` picks from the larger tables. The kind "again" is made by `build`, out of the corpus."""
    names = [row["name"] for row in w.NAMES]
    animals = [dict(row, a=article(row["name"])) for row in w.ANIMALS]
    objects = [dict(row, a=article(row["name"])) for row in w.OBJECTS if "my " not in row["use"]]
    return {
        "name": Family([{"x": name} for name in names],
                       ["my name is {x}. => hello {x}, it is very nice to meet you.", "hello, I am {x}. => hello {x}, how can I help you?",
                        "you can call me {x}. => thank you {x}, I will remember your name."],
                       ["what is my name? => your name is {x}.", "do you remember my name? => yes, I remember that your name is {x}.",
                        "who am I? => you are {x}, you told me your name.", "say goodbye to me. => goodbye {x}, it was nice to meet you.",
                        "am I Peter or Anna? => you told me that you are {x}."]),
        "person": Family([{"r": person, "x": row["name"]} for person, he in PEOPLE.items() for row in w.NAMES if row["he"] == he],
                         ["the name of my {r} is {x}. => " + REMEMBERED, "my {r} is called {x}. => {x}, I like that name."],
                         ["what is the name of my {r}? => the name of your {r} is {x}.",
                          "what is my {r} called? => your {r} is called {x}.",
                          "who is {x}? => you told me that {x} is your {r}."]),
        "animal": Family(animals,
                         ["please tell me about {a}. => I know many things about the {name}.",
                          "I saw {a} today. => the {name} is wonderful.",
                          "I like the {name}. => yes, I like the {name} very much."],
                         ["what does it eat? => the {name} likes to eat {food}.", "where does it live? => the {name} usually lives {home}.",
                          "what color is it? => the {name} is often {color}.", "what can it do well? => the {name} can {move} very well.",
                          "what covers its body? => the body of the {name} is covered with {cover}.",
                          "how many legs does it have? => the {name} has {legs} legs.",
                          "what sound does it make? => the {name} usually {voice}."]),
        "thing": Family(objects,
                        ["I bought {a}. => I think you will like your {name}.", "I need {a}. => yes, the {name} is very important.",
                         "look, this is my {name}. => your {name} looks very beautiful."],
                        ["what is it made of? => your {name} is made of {material}.",
                         "what can I do with it? => with your {name} you can {use}.",
                         "where should I put it? => you should put your {name} in the {room}."]),
        "sum": Family(sums(),
                      ["how much is {a} plus {b}? => I think that {a} plus {b} equals {c}.",
                       "what is the sum of {a} and {b}? => the sum of {a} and {b} is {c}.",
                       "add {a} and {b}. => when I add them, I get {c}."],
                      ["add {d} more. => {c} plus {d} equals {more}.", "now take {d} away. => {c} minus {d} equals {less}.",
                       "and how much is that plus {d}? => I get {more}, because {c} plus {d} equals {more}."], pause=False),
        "favorite": Family(favorites(),
                           ["my favorite {k} is {x}. => " + REMEMBERED, "the {k} that I like most is {x}. => I like {x}, thank you."],
                           ["what is my favorite {k}? => your favorite {k} is {x}.",
                            "which {k} do I like? => you told me that you like {x}.",
                            "tell me my favorite {k}. => I remember it well, your favorite {k} is {x}."]),
        "home": Family(w.COUNTRIES,
                       ["I live in {capital}. => the city of {capital} is beautiful.",
                        "my house is in {capital}. => many people live in {capital}."],
                       ["where do I live? => you live in the city of {capital}.", "in which country do I live? => your home is in {name}.",
                        "what language should I speak at home? => at home you should speak {language}.",
                        "on which continent do I live? => you live in {continent}, because you live in {capital}."]),
        "country": Family([row for row in w.COUNTRIES if row["name"] != row["continent"]],
                          ["tell me about {name}. => the country of {name} is in {continent}.",
                           "I want to see {name}. => you will like {name}."],
                          ["what is its capital? => its capital is the city of {capital}.",
                           "what language do they speak there? => the people there speak {language}.",
                           "what do we call the people? => we call the people of {name} {people}."]),
        "place": Family([{"o": row["name"], "room": room} for row in w.OBJECTS for room in ROOMS],
                        ["I put the {o} in the {room}. => " + REMEMBERED, "my {o} is in the {room}. => I will not forget it."],
                        ["where is the {o}? => your {o} is in the {room}.",
                         "what is in the {room}? => you will find the {o} in the {room}.",
                         "I am looking for the {o}. => look in the {room}, there is your {o}."]),
        "count": Family(counts(rng), ["I have {n} {plural}. => you really like {plural}.",
                                      "there are {n} {plural} in my house. => so many {plural} in your house, how nice."],
                        ["how many {plural} do I have? => you have {n} {plural}.",
                         "I get {d} more. how many are there now? => now there are {more} {plural}.",
                         "one runs away. how many are left? => only {left} {plural} remain."]),
        "job": Family([dict(row, a=article(row["name"]), r=person, he=he) for row in w.JOBS for person, he in PEOPLE.items()],
                      ["my {r} is {a}. => your {r} is very important.", "my {r} works as {a}. => that is hard work."],
                      ["where does {he} work? => your {r} works {place}.", "what does {he} do? => your {r} {work}.",
                       "what does {he} need for work? => your {r} needs {tool}.",
                       "do you remember who my {r} is? => yes, your {r} is {a}."]),
        "day": Family([dict(x=x, y=w.DAYS[(i + 1) % 7], z=w.DAYS[i - 1]) for i, x in enumerate(w.DAYS)],
                      ["today is {x}. => " + REMEMBERED, "it is {x}, I am happy. => I hope you will enjoy your {x}."],
                      ["what day is tomorrow? => tomorrow it will be {y}.", "and what day was yesterday? => yesterday it was {z}.",
                       "which day is it? => today it is {x}."])}


def sums():
    """Two numbers, their sum, and a small third one to add or to take away, all up to twenty."""
    n = w.NUMBERS
    return [dict(a=n[a], b=n[b], c=n[a + b], d=n[d], more=n[a + b + d], less=n[a + b - d]) for a in range(1, 10) for b in range(1, 10)
            for d in range(1, 6) if d <= a + b <= 20 - d]


def favorites():
    kinds = {"color": w.COLORS, "season": w.SEASONS, "day": w.DAYS, "month": w.MONTHS, "food": [row["some"] for row in w.FOODS],
             "drink": ["milk", "water", "coffee", "orange juice"], "number": w.NUMBERS[1:13], "city": [r["capital"] for r in w.COUNTRIES],
             "country": [row["name"] for row in w.COUNTRIES], "place": ["the " + row["name"] for row in w.PLACES]}
    return [{"k": kind, "x": x} for kind, values in kinds.items() for x in values]


def counts(rng, keep=400):
    n, plurals = w.NUMBERS, [row["plural"] for row in w.ANIMALS]
    rows = [dict(n=n[i], plural=plural, d=n[d], more=n[i + d], left=n[i - 1])
            for i in range(3, 13) for d in range(2, 6) for plural in plurals]
    return rng.sample(rows, keep)


def build(train, heldout, rng, count=6000, sentences=()):
    """Conversations: (train, heldout), lists of {"messages": [{"role", "content"}, ...], "kind"}.

    train, heldout: the corpus (lists of {"question", "answer", "kind"}); up to `count` training conversations, all different, about as many
    of each kind; `sentences` are further pairs whose answer is to be said again. Whatever the corpus does not teach to pronounce is left
    out. The held-out ones depend on corpus and `rng` alone, and all their forms are taught with other rows.
    """
    said = {normalise(item["answer"]) for item in train}
    reserved = {normalise(item["answer"]) for item in heldout}
    fillers = [item for item in train if item["kind"] in FILLER_KINDS]
    found = families(rng)
    vocabulary = {word for item in train for word in words(item["answer"])}
    held_out, taught = again(heldout, rng, 3 * HELD_OUT_LEAST), {}
    for kind, family in found.items():
        ways = endings(family, reserved, vocabulary)
        free = sorted(set(ways) - said)
        kept_apart = set(rng.sample(free, max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * len(free)))))
        chosen = [rng.choice(ways[reply]) for reply in sorted(kept_apart)]
        held_out += talks(kind, family.pause, chosen, len(chosen), fillers, rng)
        more = [old + new for old, new in zip((family.openings, family.closings), FURTHER.get(kind, ([], [])))]
        ways = endings(family._replace(openings=more[0], closings=more[1]), reserved, vocabulary)
        taught[kind] = [way for reply, found_ways in ways.items() if reply not in kept_apart | reserved for way in found_ways]
    share = round((1 - APART_SHARE) * count) // (len(found) + 1)  # only from here on: what is held out does not depend on `count`
    learnt = [talk for kind, family in found.items() for talk in talks(kind, family.pause, taught[kind], share, fillers, rng)]
    learnt += again([*train, *sentences], rng, share)
    learnt = preceded(learnt, train, rng, round(APART_SHARE * count))
    rng.shuffle(learnt)
    return [as_heard(talk) if rng.random() < HEARD_SHARE else talk for talk in learnt], held_out


def endings(family, reserved, vocabulary):
    """{last reply, normalised: its ways, a list of (row, openings, closing)}, without replies that are reserved or cannot be pronounced."""
    found = defaultdict(list)
    for row in family.rows:
        said = {form: fill(form, row)[1] for form in family.openings}
        openings = [form for form, reply in said.items() if normalise(reply) not in reserved and vocabulary.issuperset(words(reply))]
        for closing in family.closings:
            reply = fill(closing, row)[1]
            if openings and vocabulary.issuperset(words(reply)):
                found[normalise(reply)].append((row, openings, closing))
    return found


def fill(form, row):
    """(question, reply) of a form "question => reply"."""
    return tuple(sentence(part.strip().format(**row)) for part in form.split("=>"))


def talks(kind, pause, ways, count, fillers, rng):
    """`count` different conversations, fewer where the family has not that many; every way is used before one comes twice."""
    found = {}
    for _ in range(20):
        for row, openings, closing in rng.sample(ways, len(ways)):
            turns = [fill(rng.choice(openings), row), fill(closing, row)]
            if pause and rng.random() < FILLER_SHARE:
                filler = rng.choice(fillers)
                turns.insert(1, (filler["question"], filler["answer"]))
            talk = conversation(kind, turns)
            found[str(talk["messages"])] = talk
            if len(found) == count:
                return list(found.values())
    return list(found.values())


def again(items, rng, count):
    """The model has to repeat what it said: the sentence is only in the earlier turn."""
    asked = ["please say that again.", "say it again.", "can you repeat that?", "one more time, please.", "what did you say?"]
    items = [item for item in items if item["kind"] == "say after me"]
    return [conversation("again", [(item["question"], item["answer"]), (sentence(rng.choice(asked)), item["answer"])])
            for item in rng.sample(items, min(count, len(items)))]


def preceded(talks, items, rng, count):
    """`talks`, some of them after turns about other things, and `count` pairs of the corpus ("apart") after such turns."""
    earlier = [talk["messages"][:2] for talk in talks] + [pair["messages"] for pair in as_talks(items)]
    last = [{**pair, "kind": "apart"} for pair in as_talks(rng.sample(items, min(count, len(items))))]
    found = []
    for talk in talks + last:
        if talk["kind"] == "apart" or rng.random() < PRECEDED_SHARE:
            turns = rng.choices(earlier, k=rng.randint(1, EARLIER_TURNS))
            talk = {**talk, "messages": [message for turn in turns for message in turn] + talk["messages"]}
        found.append(talk)
    return found


def as_heard(talk):
    """The conversation with its questions but the last as the transcriber of a call writes them."""
    *earlier, question, reply = talk["messages"]
    return {**talk, "messages": [*heard(earlier), question, reply]}


def heard(messages):
    """`messages` with the questions as the transcriber of a call writes them."""
    return [{**m, "content": normalise(m["content"])} if m["role"] == "user" else m for m in messages]


def conversation(kind, turns):
    messages = [{"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn)]
    return {"messages": messages, "kind": kind}


def as_talks(items):
    """Pairs of a question and its answer as conversations of one turn."""
    return [conversation(item["kind"], [(item["question"], item["answer"])]) for item in items]


def replies(talk):
    return [message["content"] for message in talk["messages"] if message["role"] == "assistant"]


def user_turns(talk):
    """What the user says, turn by turn."""
    return [message["content"] for message in talk["messages"] if message["role"] == "user"]
