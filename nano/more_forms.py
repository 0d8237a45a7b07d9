"""Further forms of the facts of nano/world.py, for training alone: nothing of them is held out.

- With three forms a fact, a small Thinker learns sentences by heart, and 69 % of the typed held-out questions were answered as expected.
  The more ways a fact is asked in, the likelier it is that one way is understood by another.
- All words of the answers are those of nano/forms.py: the Talker can say them (a pair that it could not is dropped by nano/corpus.py).
- `more_pairs()` gives them as Pair, with every comparison.
"""
from nano import world as w
from nano.forms import all_comparisons, article, ask, numbers, opposites, tables

ANIMALS = {
    "food": ["what do you know about the food of {a}? => I know that {a} enjoys {food}.",
             "{a} is hungry. => give {food} to the {name}.",
             "which food should I buy for {a}? => you should buy {food} for the {name}.",
             "does {a} like to eat? => yes, {a} likes {food} very much."],
    "home": ["where is the home of {a}? => the {name} has its home {home}.",
             "in which place did you see {a}? => I saw the {name} {home}.",
             "{a} ran away. where could it be? => maybe the {name} is {home}.",
             "where do {plural} sleep? => most {plural} sleep {home}."],
    "voice": ["what do I hear from {a}? => I think {a} {voice}.",
              "is {a} quiet? => you should know that {a} {voice}.",
              "listen, there is {a}. => yes, {a} {voice}."],
    "cover": ["how does the body of {a} look? => the {name} is covered with {cover}.",
              "describe the body of {a}. => you can see {cover} on the {name}.",
              "what is on the body of most {plural}? => most {plural} have {cover}."],
    "legs": ["does {a} have two legs? => you can count them, the {name} has {legs} legs.",
             "tell me about the legs of {a}. => everybody knows that the {name} has {legs} legs.",
             "with how many legs does {a} move? => the {name} moves with {legs} legs."],
    "color": ["tell me the color of {a}. => the color of the {name} is {color}.",
              "what does {a} look like? => it looks {color}, because the {name} is {color}.",
              "describe {a}. => I can see that the {name} is {color}.",
              "I want to paint {a}. => then you need the color {color} for the {name}."],
    "move": ["is {a} able to do something? => yes, the {name} is able to {move}.",
             "what does {a} enjoy? => the {name} likes to {move}.",
             "what did {a} learn? => the {name} learned to {move}.",
             "what can young {plural} do? => young {plural} can {move}."],
}
FOODS = {
    "color": ["tell me the color of {a}. => the color of {a} is {color}.",
              "what does {a} look like? => it looks {color}, because {a} is {color}.",
              "I want to paint {some}. => then you need {color} for {some}."],
    "taste": ["tell me about the taste of {a}. => I think that {a} is {taste}.",
              "do you like {some}? => yes, because {some} are {taste}.",
              "are {some} sweet? => I know that {some} are {taste}."],
    "kind": ["what kind of food is {a}? => I think that {a} is one kind of {kind}.",
             "is {a} one kind of {kind}? => yes, {a} is one kind of {kind}.",
             "what are {some}? => {some} are one kind of {kind}."],
    "source": ["how do we get {some}? => everybody knows that {some} {source}.",
               "where can I find {some}? => you can find them, because {some} {source}.",
               "what do you know about {some}? => I know that {some} {source}."],
}
STUFF = {
    "color": ["tell me the color of {name}. => I can see that {name} is {color}.",
              "describe {name}. => everybody can see that {name} is {color}.",
              "I want to paint {name}. => then you need {color} for {name}."],
    "taste": ["tell me about the taste of {name}. => I think that {name} is {taste}.",
              "do you like {name}? => yes, because {name} is {taste}.",
              "is {name} sweet? => I know that {name} is {taste}."],
    "kind": ["do you know what {name} is? => yes, {name} is one kind of {kind}.",
             "is {name} one kind of {kind}? => yes, {name} is our {kind}."],
    "source": ["how do we get {name}? => everybody knows that {name} {source}.",
               "what do you know about {name}? => I know that {name} {source}."],
}
COUNTRIES = {
    "capital": ["tell me the capital of {name}. => its capital is {capital} in {name}.",
                "which city is the capital of {name}? => the city of {capital} is the capital of {name}.",
                "to which country does {capital} belong? => {capital} belongs to {name}.",
                "I live in {capital}. which country is it? => if you live in {capital}, your country is {name}.",
                "where is {capital}? => the city of {capital} is in {name}."],
    "continent": ["to which continent does {name} belong? => {name} belongs to {continent}.",
                  "is {name} in {continent}? => yes, {name} is really in {continent}.",
                  "I travel to {name}. where will I be? => when you travel to {name}, you are in {continent}."],
    "language": ["tell me the language of {name}. => I know that people in {name} speak {language}.",
                 "what do people in {capital} speak? => people in {capital} speak {language}.",
                 "what should I speak in {name}? => in {name} you should speak {language}."],
    "people": ["who lives in {name}? => the {people} people live in {name}.",
               "I was born in {name}. => then you are {people}, because you come from {name}.",
               "are people from {name} {people}? => yes, people from {name} are {people}."],
}
JOBS = {
    "place": ["in which place does {a} work? => the work of {a} is {place}.",
              "where is {a} now? => I think {a} is {place}.",
              "where do {plural} work? => most {plural} work {place}.",
              "I am looking for {a}. => you will find {a} {place}."],
    "work": ["tell me about the work of {a}. => everybody knows that {a} {work}.",
             "what does {a} do every day? => I believe that {a} {work} every day.",
             "my friend is {a}. => then your friend {work}."],
    "tool": ["what did {a} forget? => {a} forgot {tool}.",
             "what should I bring to {a}? => you should bring {tool} to {a}.",
             "what does {a} use? => I think {a} needs {tool}."],
}
OBJECTS = {
    "use": ["what is the use of {a}? => the use of {a} is to {use}.",
            "tell me about {plural}. => with {plural} people can {use}.",
            "I want to {use}. what do I need? => if you want to {use}, you need the {name}."],
    "room": ["I am looking for {a}. => look in the {room}, there is the {name}.",
             "to which room does {a} belong? => the {name} belongs in the {room}.",
             "where can I find {plural}? => you can find {plural} in the {room}."],
    "material": ["is {a} made of {material}? => yes, the {name} is made of {material}.",
                 "of what do people make {plural}? => people make {plural} of {material}."],
}
VEHICLES = {
    "way": ["where is the {name} now? => I think the {name} is {way}.",
            "where do {plural} move? => most {plural} move {way}.",
            "I am looking for {a}. => you will find the {name} {way}.",
            "tell me about {plural}. => everybody knows that {plural} travel {way}."],
    "wheels": ["tell me about the wheels of {a}. => I know that the {name} has {wheels} wheels.",
               "on how many wheels does {a} move? => the {name} moves on {wheels} wheels.",
               "do {plural} have wheels? => you can count them, {plural} have {wheels} wheels."],
    "use": ["what is the use of {a}? => the use of the {name} is to {use}.",
            "I want to {use}. what do I need? => if you want to {use}, take the {name}.",
            "how does {a} help me? => the {name} helps you to {use}."],
}
BODY = {
    "verb": ["tell me about your {name}. => with my {name} I can {verb}.",
             "what do you do with your {name}? => I {verb} with my {name}.",
             "how can I {verb}? => you can {verb} with your {name}.",
             "why do people have {name}? => people have {name} to {verb}.",
             "what do our {name} do? => our {name} help us to {verb}.",
             "do you {verb} with your {name}? => yes, I {verb} with my {name}."],
    "use": ["why do we need our {name}? => we need our {name} to {use}.",
            "what can I do with my {name}? => you can {use} with your {name}.",
            "how do I {use}? => you {use} with your {name}.",
            "what is good about our {name}? => our {name} help us to {use}."],
}
PLACES = {
    "do": ["what do people do at the {name}? => people {do} at the {name}.",
           "I want to go to the {name}. => then you can {do} at the {name}.",
           "where do people {do}? => people {do} at the {name}.",
           "why do you like the {name}? => I like the {name}, because there I can {do}.",
           "I would like to {do}. => if you would like to {do}, visit the {name}."],
    "see": ["tell me what is at the {name}. => there are {see} at the {name}.",
            "describe the {name}. => at the {name} I can see {see}.",
            "what will I find at the {name}? => you will find {see} at the {name}."],
}
THINGS = ["tell me the color of {name}. => I know that {name} is {color}.",
          "what does {name} look like? => it looks {color}, because {name} is {color}.",
          "is {name} {color}? => yes, {name} is really {color}.",
          "I want to paint {name}. => then you need the color {color} for {name}.",
          "how does {name} look? => {name} looks {color}.",
          "what do you see when you look at {name}? => I see that {name} is {color}."]
OPPOSITES = ["tell me the opposite of {x}. => I know that the opposite of {x} is {y}.",
             "what is not {x}? => if it is not {x}, it is {y}.",
             "is {x} the same as {y}? => no, {x} is not the same as {y}.",
             "is {y} the opposite of {x}? => yes, {y} is the opposite of {x}.",
             "do you know the opposite of {x}? => yes, it is {y}, because {x} means the opposite.",
             "one is {x}. what is the other? => if one is {x}, the other is {y}.",
             "I do not like {x}. => if you do not like {x}, maybe you like {y}."]
FAMILY = ["tell me who the {of} is. => I know that the {of} is your {person}.",
          "is the {of} my {person}? => yes, the {of} is your {person}.",
          "I see my {person}. => then you see the {of}, your {person}.",
          "my {person} is coming. => your {person} is the {of}, I know.",
          "tell me about your {person}. => my {person} is the {of}.",
          "do you know the {of}? => yes, I know your {person}.",
          "the {of} is sick. => I hope that your {person} will feel better very soon."]
FEELINGS = {
    "cause": ["why do you feel {name}? => I feel {name} when {cause}.",
              "tell me what happens when {cause}. => people feel {name} when {cause}.",
              "are you {name}? => I am {name} when {cause}.",
              "what makes people {name}? => people are {name} when {cause}."],
    "do": ["I am {name}. what can I do? => if you are {name}, you can {do}.",
           "what do people do when they are {name}? => when people are {name}, they {do}.",
           "what helps when I feel {name}? => when you feel {name}, it helps to {do}."],
}
WEATHER = {
    "bring": ["what should I bring on {name} days? => on {name} days you should bring {bring}.",
              "the weather is {name}. => if the weather is {name}, you need {bring}.",
              "what do people need in {name} weather? => people need {bring} in {name} weather."],
    "feel": ["tell me about {name} weather. => everybody knows that {name} weather is {feel}.",
             "is {name} weather {feel}? => yes, {name} weather is {feel}.",
             "how is the {name} day? => the {name} day feels {feel}."],
    "season": ["tell me when it is {name}. => in {season} it is {name}.",
               "is it {name} in {season}? => yes, in {season} it is often {name}.",
               "how is the weather in {season}? => in {season} the weather is often {name}."],
}
DEFINITIONS = ["tell me what {a} is. => I think that {a} is {kind} that {which}.",
               "do you know {a}? => yes, {a} {which}.",
               "which {bare} {which}? => {a} {which}.",
               "tell me about {a}. => everybody knows that {a} {which}.",
               "my son asks about {a}. => tell your son that {a} {which}.",
               "what do you know about {a}? => I know that {a} is {kind}."]
SUMS = ["tell me the sum of {a} and {b}. => I know that the sum of {a} and {b} is {c}.",
        "what is {a} plus {b}? => {a} plus {b} is {c}.",
        "{a} and {b}, how many are there? => there are {c}, because {a} plus {b} equals {c}.",
        "how many are {a} and {b} together? => {a} and {b} are {c}.",
        "I have {a} and get {b} more. => now you have {c}.",
        "is {a} plus {b} really {c}? => yes, {a} plus {b} equals {c}."]
DIFFERENCES = ["what is {c} minus {a}? => {c} minus {a} is {b}.",
               "I have {c} and lose {a} of them. => now you have only {b}.",
               "what remains when I take {a} from {c}? => when you take {a} from {c}, {b} will remain.",
               "tell me how much {c} minus {a} is. => I know that {c} minus {a} equals {b}."]
PRODUCTS = ["what is {a} times {b}? => {a} times {b} is {c}.",
            "tell me the product of {a} and {b}. => I know that the product of {a} and {b} is {c}.",
            "how many are {a} times {b}? => I think that {a} times {b} is {c}."]
COUNTING = ["please count from {a} to {b}. => I can count, {counted}.",
            "tell me the numbers from {a} to {b}. => listen, the numbers are {counted}.",
            "say the numbers {a} to {b}. => {counted}.",
            "can you count from {a} to {b}? => yes, I can count, {counted}."]
ORDER = ["tell me the {kind} after {x}. => I know that {y} comes after {x}.",
         "is {y} after {x}? => yes, {y} comes after {x}.",
         "what comes next after {x}? => after {x} comes {y}.",
         "what comes before {y}? => I think that {x} comes before {y}.",
         "tell me the {kind} before {y}. => I know that {x} comes before {y}.",
         "{x} is over. what is next? => after {x} we have {y}."]
PLACE_IN_ORDER = ["tell me the {n} {kind} of the {group}. => I know that {x} is the {n} {kind} of the {group}.",
                  "is {x} the {n} {kind}? => yes, {x} is the {n} {kind} of the {group}.",
                  "what do you know about {x}? => I know that {x} is the {n} {kind}."]


def facts():
    """Further forms of what the tables say."""
    for kind, rows, key, forms in [("animals", w.ANIMALS, "name", ANIMALS), ("foods", w.FOODS, "name", FOODS),
                                   ("foods", w.STUFF, "name", STUFF), ("countries", w.COUNTRIES, "name", COUNTRIES),
                                   ("jobs", w.JOBS, "name", JOBS), ("tools", w.OBJECTS, "name", OBJECTS),
                                   ("transport", w.VEHICLES, "name", VEHICLES), ("body", w.BODY, "name", BODY),
                                   ("places", w.PLACES, "name", PLACES), ("feelings", w.FEELINGS, "name", FEELINGS),
                                   ("weather", w.WEATHER, "name", WEATHER), ("colors", w.THINGS, "name", {"color": THINGS}),
                                   ("family", w.FAMILY, "person", {"of": FAMILY})]:
        yield from tables(kind, rows, key, forms)
    for row in w.DEFINITIONS:
        for form in DEFINITIONS:
            yield ask("definitions", ("definitions", row["a"]), form, **dict(row, bare=row["kind"], kind=article(row["kind"])))
    yield from opposites(OPPOSITES)


def order():
    """Further questions about days, months, seasons and numbers in their order."""
    for kind, names in (("day", w.DAYS), ("month", w.MONTHS), ("season", w.SEASONS), ("number", w.NUMBERS)):
        for x, y in zip(names, names[1:] + names[:0 if kind == "number" else 1]):
            for form in ORDER:
                yield ask("order", ("order", x, y), form, kind=kind, x=x, y=y)
    for kind, group, names in (("day", "week", w.DAYS), ("month", "year", w.MONTHS)):
        for x, n in zip(names, w.ORDINALS):
            for form in PLACE_IN_ORDER:
                yield ask("order", ("place", x), form, kind=kind, group=group, x=x, n=n)


def more_pairs():
    """Every Pair of the further forms; one answer for one question."""
    found = [*facts(), *numbers(SUMS + DIFFERENCES, PRODUCTS, COUNTING), *order(), *all_comparisons()]
    return list({pair.question: pair for pair in found}.values())
