"""Question and answer forms of the nano world: every fact of nano/world.py said in several ways.

- A fact has at least three forms, each with an answer sentence of its own: holding one form of a fact out of training leaves the fact
  taught by the others, and the held-out sentence is new while its truth is not.
- The answer is a function of the question; nothing here is random except which of the many comparisons and little stories are kept.
- `pairs(rng)` gives them all as Pair(question, answer, kind, fact, form).
"""
import re
from binascii import crc32
from typing import NamedTuple

from nano import world as w


COMPARISONS = 900  # of the many


class Pair(NamedTuple):
    question: str
    answer: str
    kind: str
    fact: tuple | None  # what one must know to answer; None: the question itself says it (copying, reading)
    form: str  # the question's template, which decides the answer's shape


def sentence(text):
    """Capital letters where sentences start."""
    return re.sub(r"(^|[.?:] )([a-z])", lambda m: m[1] + m[2].upper(), text)


def article(noun):
    """The noun with "the": the judge takes most spoken "a" for "the", so the nano world has hardly any."""
    return f"the {noun}"


def ask(kind, fact, form, /, **cells):
    """One Pair of a form "question => answer" filled with `cells`; about half of the questions say "a dog" where the answer says "the"."""
    question, answer = (part.strip() for part in form.split("=>"))
    nouns = {name: cells[name] for name in ("a", "b", "s", "f") if name in cells}
    if crc32(f"{form} {nouns}".encode()) % 2:
        nouns = {name: anyone(noun) for name, noun in nouns.items()}
    return Pair(sentence(question.format(**cells | nouns)), sentence(answer.format(**cells)), kind, fact, f"{kind}: {form}")


def anyone(the_noun):
    """Turns "the dog" into "a dog", where there is more than one of the kind."""
    noun = the_noun.removeprefix("the ")
    if noun == the_noun or noun in ("sun", "moon", "ocean"):
        return the_noun
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def fill(kind, rows, key, columns, forms):
    """All forms of every row: `key` is the column that names the thing, `columns` those that make up the fact asked for."""
    for row in rows:
        cells = dict(row, a=article(row[key]))
        for form in forms:
            yield ask(kind, (kind, row[key], columns), form, **cells)


ANIMAL_FORMS = {
    "food": ["what does {a} eat? => {a} usually enjoys {food}.",
             "what do {plural} like to eat? => most {plural} like to eat {food}.",
             "what is the favorite food of {a}? => I think the favorite food of {a} is {food}.",
             "what can I give to the hungry {name}? => you can give {food} to the hungry {name}.",
             "finish this sentence: the hungry {name} is looking for => the hungry {name} is looking for {food}."],
    "home": ["where does {a} live? => {a} usually lives {home}.",
             "where can I find {plural}? => you can find {plural} {home}.",
             "I want to see {a}. where should I look? => if you want to see {a}, look {home}.",
             "finish this sentence: the home of {a} is => the home of {a} is {home}."],
    "voice": ["what sound does {a} make? => {a} usually {voice}.",
              "tell me about the voice of {a}. => everybody knows that {a} {voice}.",
              "what happens when I listen to {a}? => when you listen, {a} {voice}."],
    "cover": ["what covers {a}? => the body of {a} is covered with {cover}.",
              "what does {a} have on its body? => {a} has {cover} on its body.",
              "what do I feel when I touch {a}? => when you touch {a}, you feel {cover}."],
    "legs": ["how many legs does {a} have? => {a} has {legs} legs.",
             "how many legs do {plural} have? => I think that {plural} have {legs} legs.",
             "please count the legs of {a}. => there are {legs} legs on the body of {a}."],
    "color": ["what color is {a}? => {a} is often {color}.",
              "what color are most {plural}? => the color of most {plural} is {color}.",
              "which color do I need to paint {a}? => you need {color} to paint {a}."],
    "move": ["what can {a} do very well? => {a} can {move} very well.",
             "what do young {plural} learn? => young {plural} learn to {move} very early.",
             "what do {plural} do all day? => I believe that {plural} {move} all day long."],
}
STORY_FORMS = ["tell me a story about {a}. => long ago the young {name} lived {home}.",
               "tell me a story about the hungry {name}. => one day the hungry {name} was looking for {food}.",
               "tell me a story about the lonely {name}. => the lonely {name} was looking for some good friends.",
               "tell me a story about the brave {name}. => the brave {name} went away to see the ocean.",
               "tell me a story about the clever {name}. => the clever {name} learned to read, and everybody was surprised.",
               "tell me a story about the lazy {name}. => the lazy {name} did not want to {move} at all."]
FOOD_FORMS = {
    "color": ["what color is {a}? => {a} is usually {color}.",
              "what color are {some}? => the color of {some} is {color}.",
              "which color do I need to paint {a}? => to paint {a} you need the color {color}."],
    "taste": ["how does {a} taste? => {a} should be {taste}.",
              "what do {some} taste like? => most people say that {some} are {taste}.",
              "describe the taste of {some}. => the taste of {some} is {taste}."],
    "kind": ["what is {a}? => {a} is one kind of {kind}.",
             "are {some} one kind of food? => yes, {some} are one kind of {kind}.",
             "finish this sentence: {a} is one example of => {a} is one example of {kind}."],
    "source": ["where do {some} come from? => we know that {some} {source}.",
               "tell me something about {some}. => it is true that {some} {source}.",
               "my son asks about {some}. => tell your son that {some} {source}."],
}
STUFF_FORMS = {
    "color": ["what color is {name}? => the color of {name} is {color}.",
              "what does {name} look like? => it looks {color}, because {name} is {color}.",
              "is all {name} {color}? => yes, {name} is usually {color}."],
    "taste": ["how does {name} taste? => good {name} should be {taste}.",
              "what does {name} taste like? => most people say that {name} is {taste}.",
              "describe the taste of {name}. => the taste of {name} is {taste}."],
    "kind": ["what is {name}? => I think {name} is one kind of {kind}.",
             "what kind of thing is {name}? => we all know that {name} is our {kind}.",
             "finish this sentence: {name} is one example of => {name} is one example of {kind}."],
    "source": ["where does {name} come from? => as you know, {name} {source}.",
               "tell me something about {name}. => it is true that {name} {source}.",
               "my son asks about {name}. => tell your son that {name} {source}."],
}
COUNTRY_FORMS = {
    "capital": ["what is the capital of {name}? => the capital of {name} is {capital}.",
                "{capital} is the capital of which country? => {capital} is the capital city of {name}.",
                "I want to see the capital of {name}. => then you should travel to {capital} in {name}.",
                "where does the president of {name} live? => the president of {name} lives in {capital}."],
    "continent": ["where is {name}? => the country of {name} is in {continent}.",
                  "on which continent is {name}? => you can find {name} on the map of {continent}.",
                  "in which part of the world is {capital}? => the city of {capital} is in {continent}."],
    "language": ["what language do people speak in {name}? => the people in {name} speak {language}.",
                 "which language should I learn for {name}? => you should learn {language} before you visit {name}.",
                 "what language do children learn in {capital}? => children in {capital} learn to speak {language}."],
    "people": ["what do we call people from {name}? => we say that people from {name} are {people}.",
               "my friend comes from {name}. => if your friend comes from {name}, your friend is {people}.",
               "my teacher was born in {capital}. => teachers born in {capital} are probably {people}."],
}
JOB_FORMS = {
    "place": ["where does {a} work? => {a} usually works {place}.",
              "where can I find {plural}? => you can find many {plural} {place}.",
              "I would like to meet {a}. where should I go? => you can meet {a} {place}."],
    "work": ["what does {a} do? => {a} {work}.",
             "what is the job of {a}? => every day {a} {work}.",
             "why do we need {a}? => we need {a}, because {a} {work}.",
             "who {work}? => I think that {a} {work}."],
    "tool": ["what does {a} need for work? => for the work {a} needs {tool}.",
             "what do {plural} use? => most {plural} use {tool} every day.",
             "finish this sentence: the {name} forgot to bring => the {name} forgot to bring {tool}."],
}
OBJECT_FORMS = {
    "use": ["what do I need {a} for? => you need {a} to {use}.",
            "what can I do with {a}? => with {a} you can {use}.",
            "why do people buy {plural}? => people buy {plural} to {use}.",
            "how does {a} help me? => it is easy to {use} with {a}."],
    "room": ["where is the {name}? => the {name} is in the {room}.",
             "where should I put {a}? => you should put {a} in the {room}.",
             "in which room do people keep {plural}? => most people keep {plural} in the {room}."],
    "material": ["what is {a} made of? => {a} is often made of {material}.",
                 "which material do I need to make {a}? => you need {material} to make {a}.",
                 "what are most {plural} made of? => I believe that most {plural} are made of {material}."],
}
VEHICLE_FORMS = {
    "way": ["where does {a} travel? => {a} usually travels {way}.",
            "where can I see {plural}? => you can see {plural} {way}.",
            "finish this sentence: the {name} is moving => the {name} is moving {way}."],
    "wheels": ["how many wheels does {a} have? => {a} has {wheels} wheels.",
               "how many wheels do {plural} have? => I think that {plural} have {wheels} wheels.",
               "please count the wheels of {a}. => there are {wheels} wheels under {a}."],
    "use": ["what can I do with {a}? => with {a} you can {use}.",
            "why do people need {plural}? => people need {plural} to {use}.",
            "why do you like {plural}? => I like {plural}, because you can {use}."],
}
BODY_FORMS = {
    "verb": ["what can we do with our {name}? => we can {verb} with our {name}.",
             "do I need my {name}? => you need your {name} to {verb}.",
             "which part of the body do I use to {verb}? => people use their {name} to {verb}."],
    "use": ["what is the use of our {name}? => with our {name} we are able to {use}.",
            "why should I take care of my {name}? => take care of your {name}, because you want to {use}.",
            "finish this sentence: your {name} will help you to => your {name} will help you to {use}."],
}
PLACE_FORMS = {
    "do": ["what can I do at the {name}? => at the {name} you can {do}.",
           "why do people go to the {name}? => people go to the {name} to {do}.",
           "where can I {do}? => if you want to {do}, go to the {name}.",
           "tell me about the {name}. => I like the {name}, because I can {do} there."],
    "see": ["what can I see at the {name}? => at the {name} you can see {see}.",
            "what did you see near the {name}? => near the {name} I saw {see}.",
            "who or what is waiting at the {name}? => we will find {see} at the {name}."],
}
THING_FORMS = ["what color is {name}? => the color of {name} is {color}.",
               "describe {name}. => everybody can see that {name} is {color}.",
               "which color do I need to paint {name}? => you need {color} to paint {name}.",
               "what is the first thing you see when you look at {name}? => when I look at {name}, I see {color}."]
OPPOSITE_FORMS = ["what is the opposite of {x}? => the opposite of {x} is {y}.",
                  "which word means the opposite of {x}? => the word {y} means the opposite of {x}.",
                  "the word is not {x}. what is it? => if the word is not {x}, then maybe it is {y}.",
                  "finish this sentence: one word is {x} and the other is => one word is {x} and the other is {y}."]
FAMILY_FORMS = ["who is the {of}? => the {of} is your {person}.",
                "what do we call the {of}? => we call the {of} your {person}.",
                "who is your {person}? => your {person} is the {of}.",
                "I want to visit the {of}. => then you want to visit your {person}, the {of}."]
FEELING_FORMS = {
    "cause": ["when do you feel {name}? => you feel {name} when {cause}.",
              "why are people {name}? => people often feel {name} when {cause}.",
              "how do you feel when {cause}? => when {cause}, you feel {name}."],
    "do": ["what should I do when I am {name}? => when you are {name}, you should {do}.",
           "I feel very {name} today. => if you feel {name} today, try this, {do}.",
           "my friend is {name}. => tell your friend to {do}."],
}
WEATHER_FORMS = {
    "bring": ["it is {name} today. what should I bring? => when the day is {name}, you should bring {bring}.",
              "what do I need when it is {name}? => you need {bring} when it is {name}.",
              "tomorrow will be {name}. => if tomorrow is {name}, do not forget {bring}."],
    "feel": ["how are {name} days? => most {name} days are usually {feel}.",
             "how does {name} weather feel? => most people think that {name} weather feels {feel}.",
             "describe the {name} morning. => every {name} morning is often {feel}."],
    "season": ["when is it often {name}? => it is often {name} in {season}.",
               "in which season do we have {name} days? => we have many {name} days in {season}.",
               "which season has {name} weather? => the season of {season} has very {name} weather."],
}
DEFINITION_FORMS = ["what is {a}? => {a} is {kind} that {which}.",
                    "what do we call {kind} that {which}? => {kind} that {which} is called {a}.",
                    "can you explain what {a} is? => people say {a} is {kind} that {which}.",
                    "my daughter asks about {a}. => I know {a} {which}."]


def tables(kind, rows, key, forms):
    for column, some_forms in forms.items():
        yield from fill(kind, rows, key, column, some_forms)


def all_tables():
    yield from tables("animals", w.ANIMALS, "name", ANIMAL_FORMS)
    yield from tables("foods", w.FOODS, "name", FOOD_FORMS)
    yield from tables("foods", w.STUFF, "name", STUFF_FORMS)
    yield from tables("countries", w.COUNTRIES, "name", COUNTRY_FORMS)
    yield from tables("jobs", w.JOBS, "name", JOB_FORMS)
    yield from tables("tools", w.OBJECTS, "name", OBJECT_FORMS)
    yield from tables("transport", w.VEHICLES, "name", VEHICLE_FORMS)
    yield from tables("body", w.BODY, "name", BODY_FORMS)
    yield from tables("places", w.PLACES, "name", PLACE_FORMS)
    yield from tables("feelings", w.FEELINGS, "name", FEELING_FORMS)
    yield from tables("weather", w.WEATHER, "name", WEATHER_FORMS)
    yield from fill("colors", w.THINGS, "name", "color", THING_FORMS)
    yield from fill("family", w.FAMILY, "person", "of", FAMILY_FORMS)
    for row in w.ANIMALS:
        for form in STORY_FORMS:
            yield ask("stories", None, form, a=article(row["name"]), **row)
    for row in w.DEFINITIONS:
        for form in DEFINITION_FORMS:
            yield ask("definitions", ("definitions", row["a"]), form, **dict(row, kind=article(row["kind"])))
    yield from opposites(OPPOSITE_FORMS)


def opposites(forms):
    for row in w.OPPOSITES:
        for x, y in ((row["left"], row["right"]), (row["right"], row["left"])):
            for form in forms:
                yield ask("opposites", ("opposites", frozenset((x, y))), form, x=x, y=y)


SUM_FORMS = ["how much is {a} plus {b}? => I think that {a} plus {b} equals {c}.",
             "what do you get when you add {a} and {b}? => when you add {a} and {b}, you get {c}.",
             "what is the sum of {a} and {b}? => the sum of {a} and {b} is {c}.",
             "how much is {c} minus {a}? => as you know, {c} minus {a} equals {b}.",
             "take {a} away from {c}. => if you take {a} away from {c}, {b} will remain."]
PRODUCT_FORMS = ["how much is {a} times {b}? => it is true that {a} times {b} equals {c}.",
                 "multiply {a} by {b}. => when you multiply {a} by {b}, you get {c}.",
                 "what is the product of {a} and {b}? => the product of {a} and {b} is {c}."]
COUNTING_FORMS = ["count from {a} to {b}. => listen, I can count, {counted}.",
                  "which numbers come from {a} to {b}? => the numbers are {counted}."]


def numbers(sums, products, counting):
    """Sums and differences, products up to twenty, counting: in these forms."""
    n = w.NUMBERS
    for a in range(1, 13):
        for b in range(1, 11):
            if a + b <= 20:
                for form in sums:
                    yield ask("arithmetic", ("plus", frozenset((a, b))), form, a=n[a], b=n[b], c=n[a + b])
    for a in range(2, 11):
        for b in range(2, 11):
            if a * b <= 20:
                for form in products:
                    yield ask("arithmetic", ("times", frozenset((a, b))), form, a=n[a], b=n[b], c=n[a * b])
    for a in range(1, 18):
        for b in range(a + 2, min(a + 6, 21)):
            for form in counting:
                yield ask("counting", None, form, a=n[a], b=n[b], counted=", ".join(n[a:b]) + " and " + n[b])


def order():
    """Days, months, seasons and numbers in their order."""
    for kind, names in (("day", w.DAYS), ("month", w.MONTHS), ("season", w.SEASONS), ("number", w.NUMBERS)):
        for i, x in enumerate(names):
            y = names[(i + 1) % len(names)]
            if kind == "number" and i + 1 == len(names):
                continue
            for form in ["which {kind} comes after {x}? => the {kind} after {x} is {y}.",
                         "which {kind} comes before {y}? => the {kind} before {y} is {x}.",
                         "finish this sentence: after {x} we always have => after {x} we always have {y}.",
                         "what follows {x}? => you should know that {x} is followed by {y}."]:
                yield ask("order", ("order", x, y), form, kind=kind, x=x, y=y)
    for i, today in enumerate(w.DAYS):
        cells = dict(x=today, y=w.DAYS[(i + 1) % 7], z=w.DAYS[i - 1])
        yield ask("order", ("order", today, cells["y"]), "today is {x}. what day is tomorrow? => if today is {x}, tomorrow will be {y}.",
                  **cells)
        yield ask("order", ("order", cells["z"], today), "today is {x}. what day was yesterday? => if today is {x}, yesterday was {z}.",
                  **cells)
    for kind, group, names in (("day", "week", w.DAYS), ("month", "year", w.MONTHS)):
        for i, x in enumerate(names):
            for form in ["which {kind} of the {group} is {x}? => {x} is the {n} {kind} of the {group}.",
                         "what is the {n} {kind} of the {group}? => the {n} {kind} of the {group} is {x}.",
                         "tell me about {x}. => everybody knows that {x} is the {n} {kind}."]:
                yield ask("order", ("place", x), form, kind=kind, group=group, x=x, n=w.ORDINALS[i])
    for month, season in zip(w.MONTHS, w.MONTH_SEASON):
        for form in ["which season is it in {m}? => in {m} it is usually {s}.",
                     "to which season does {m} belong? => the month of {m} belongs to {s}.",
                     "my birthday is in {m}. => if your birthday is in {m}, you like {s}."]:
            yield ask("order", ("season", month), form, m=month, s=season)


def yes_no():
    """Is it so? A true case and a false one of the same fact; the false value is the next one of the table."""
    not_so = "I know that {a} does not "
    for table, rows, column, question, true, false in [
            ("animals", w.ANIMALS, "color", "is {a} {x}?", "yes, {a} is often {y}.", "not {x}, {a} is often {y}, as you know."),
            ("animals", w.ANIMALS, "food", "does {a} eat {x}?", "yes, {a} enjoys {y}.", not_so + "eat {x}."),
            ("animals", w.ANIMALS, "home", "does {a} live {x}?", "yes, {a} really lives {y}.", not_so + "live {x}."),
            ("foods", w.FOODS, "color", "is {a} {x}?", "yes, {a} is often {y}.", "not {x}, {a} is often {y}, as you know."),
            ("foods", w.FOODS, "kind", "is {a} one kind of {x}?", "yes, {a} is one kind of {y}.",
             "it is not true that {a} is one kind of {x}."),
            ("jobs", w.JOBS, "place", "does {a} work {x}?", "yes, {a} works {y}.", not_so + "work {x}."),
            ("tools", w.OBJECTS, "use", "can I {x} with {a}?", "yes, you can {y} with {a}.", "I know that you can not {x} with {a}."),
            ("tools", w.OBJECTS, "material", "is {a} made of {x}?", "yes, {a} is really made of {y}.",
             "I know that {a} is not made of {x}."),
            ("transport", w.VEHICLES, "way", "does {a} move {x}?", "yes, {a} moves {y}.", not_so + "move {x}."),
            ("countries", w.COUNTRIES, "capital", "is {x} the capital of {name}?", "yes, {y} is really the capital of {name}.",
             "I know that {x} is not the capital of {name}."),
            ("countries", w.COUNTRIES, "language", "do people speak {x} in {name}?", "yes, people speak {y} in {name}.",
             "I know that in {name} people do not speak {x}.")]:
        values = list(dict.fromkeys(row[column] for row in rows))
        for row in rows:
            y = row[column]
            cells = dict(row, a=article(row["name"]), y=y)
            fact = (table, row["name"], column)
            yield ask("yes or no", fact, f"{question} => {true}", x=y, **cells)
            for step in (1, 2):
                x = values[(values.index(y) + step) % len(values)]
                if x != y and x not in y and y not in x:
                    yield ask("yes or no", fact, f"{question} => {false}", x=x, **cells)


def all_comparisons():
    """Size of animals, speed of vehicles, greater numbers. The fact is the order, taught by many other comparisons of the same two."""
    found = []
    for i, small in enumerate(w.ANIMALS):
        for big in w.ANIMALS[i + 3:]:
            cells = dict(s=article(small["name"]), b=article(big["name"]))
            found += [ask("comparison", None, form, **cells) for form in [
                "which is bigger, {s} or {b}? => {b} is much bigger than {s}.",
                "which animal is smaller, {b} or {s}? => {s} is smaller than {b}.",
                "is {s} bigger than {b}? => I know that {s} is not bigger than {b}.",
                "is {b} bigger than {s}? => yes, {b} is really bigger than {s}."]]
    for i, slow in enumerate(w.VEHICLES):
        for fast in w.VEHICLES[i + 2:]:
            cells = dict(s=article(slow["name"]), f=article(fast["name"]))
            found += [ask("comparison", None, form, **cells) for form in [
                "which is faster, {s} or {f}? => {f} is faster than {s}.",
                "which is slower, {f} or {s}? => {s} is much slower than {f}.",
                "is {s} faster than {f}? => I know that {s} is not faster than {f}."]]
    for a in range(1, 20):
        for b in range(a + 1, 21):
            found += [ask("comparison", None, form, a=w.NUMBERS[a], b=w.NUMBERS[b]) for form in [
                "which number is greater, {a} or {b}? => the number {b} is greater than {a}.",
                "which number is smaller, {b} or {a}? => the number {a} is smaller than {b}."]]
    return found


def greetings():
    people = [row["name"] for row in w.NAMES]
    for name in people:
        for form in ["hello, my name is {x}. => hello {x}, it is very nice to meet you.",
                     "good morning, I am {x}. => good morning {x}, how can I help you today?",
                     "good evening, this is {x}. => good evening {x}, did you have some good news today?",
                     "{x} is going to bed. => good night {x}, sleep well and see you tomorrow.",
                     "my friend {x} is sick. => I hope that {x} will feel better very soon."]:
            yield ask("greetings", None, form, x=name)
    for name in people + ["my " + relative for relative in w.RELATIVES]:
        dear = name.replace("my ", "dear ")
        for form in ["say goodbye to {x}. => goodbye {dear}, I hope to see you again soon.",
                     "please thank {x}. => thank you very much {dear}, you are very kind.",
                     "today is the birthday of {x}. => happy birthday {dear}, I wish you wonderful days.",
                     "please invite {x}. => {dear}, please come and eat dinner with us.",
                     "ask {x} for help. => {dear}, can you please help me today?"]:
            yield ask("greetings", None, form, x=name, dear=dear)


ABOUT_ME = [
    "who are you? => I am your small model that can listen and speak.",
    "what are you? => I am the computer program that likes to talk.",
    "what is your name? => my name is little mind, and I like you.",
    "how are you? => I am very well today, thank you for asking.",
    "how old are you? => I am very young, because I was made this year.",
    "what can you do? => I can answer simple questions and tell stories.",
    "can you hear me? => yes, I can hear you very well.",
    "can you speak? => yes, I can speak with many different voices.",
    "can you see? => yes, I can look at pictures and describe them.",
    "do you like music? => yes, I like to listen to beautiful music.",
    "what do you like to eat? => I do not eat, because I am only your computer.",
    "where do you live? => I live inside the small computer on your desk.",
    "who made you? => some friendly people made me and taught me to speak.",
    "are you a human? => no, I am not human, I am your computer.",
    "do you sleep? => no, I do not sleep, I wait for your question.",
    "tell me a joke. => the chicken wanted to see the other side.",
    "thank you. => you are welcome, I am always happy to help.",
    "goodbye. => goodbye my friend, I hope to see you again soon.",
    "hello. => hello my friend, how can I help you today?",
    "good morning. => good morning my friend, did you sleep well?",
    "why is the sky blue? => the sky is blue because of the light.",
    "how do I make coffee? => you can make coffee with hot water and beans.",
    "why does it snow in winter? => it snows in winter because the air is very cold.",
    "how can I stay healthy? => eat fresh vegetables, sleep well and walk every day.",
    "how can I learn better? => read something every day and remember to sleep well.",
    "why do dogs run after cats? => dogs run after cats because they want to play.",
    "what is spring like? => in spring the flowers open and days become longer.",
    "why do stars shine? => stars shine because they are very hot.",
]


def about_me():
    for form in ABOUT_ME:
        yield ask("about me", ("about me", form), form)


def pairs(rng):
    """Every pair of the fact tables (a list of Pair), `rng` a random.Random that picks among the comparisons."""
    found = [*all_tables(), *numbers(SUM_FORMS, PRODUCT_FORMS, COUNTING_FORMS), *order(), *yes_no(),
             *rng.sample(all_comparisons(), COMPARISONS), *greetings(), *about_me()]
    return list({pair.question: pair for pair in found}.values())
