"""The facts of the nano world: small tables that nano/corpus.py turns into questions and answers.

- One row per thing, columns separated by `|`; `table()` gives dicts. Adding a row adds a few dozen question-answer pairs.
- American spelling and ordinary words only: the judge (a small recogniser of American English) has to know every answer word.
- Facts are meant to be true of the usual case in a child's book, not of every exception.
"""


def table(columns, text):
    """Rows of `text` as dicts {column: cell}; raises ValueError for the row with the wrong number of cells."""
    names = [name.strip() for name in columns.split("|")]
    rows = []
    for line in text.strip().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells for {len(names)} columns {names}: {line!r}")
        rows.append(dict(zip(names, cells)))
    return rows


NUMBERS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen "
           "nineteen twenty").split()
ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
SEASONS = "spring summer autumn winter".split()
MONTH_SEASON = ["winter", "winter", "spring", "spring", "spring", "summer", "summer", "summer", "autumn", "autumn", "autumn", "winter"]
COLORS = "red blue green yellow orange brown black white pink golden".split()

# sorted by size, small to large: the order is a fact that comparisons ask for
ANIMALS = table("name | plural | color | food | home | voice | cover | legs | move", """
butterfly | butterflies | orange | sugar from flowers | among the flowers | makes no noise | tiny hair | six | fly
spider | spiders | black | little insects | in the dark corner | makes no noise | hair | eight | climb
frog | frogs | green | little insects | near the water | sings in the evening | smooth skin | four | jump
chicken | chickens | white | corn and seeds | on the farm | talks in the morning | feathers | two | walk
rabbit | rabbits | brown | fresh grass | under the ground | makes no noise | soft hair | four | jump
cat | cats | black | fish and meat | in the house | speaks softly | soft hair | four | climb
monkey | monkeys | brown | bananas and fruit | in the jungle | makes loud noises | brown hair | four | climb
fox | foxes | orange | chickens and insects | in the forest | cries in the night | thick hair | four | run
dog | dogs | brown | meat | in the house | makes loud noises | soft hair | four | run
penguin | penguins | black | fish | on the ice | makes loud noises | feathers | two | swim
sheep | sheep | white | grass | on the farm | makes soft noises | wool | four | walk
kangaroo | kangaroos | brown | grass | in Australia | makes no noise | short hair | two | jump
dolphin | dolphins | silver | fish | in the ocean | sings to its friends | smooth skin | no | swim
lion | lions | yellow | meat | in the grass of Africa | makes very loud noises | short hair | four | run
gorilla | gorillas | black | leaves and fruit | in the jungle | makes deep noises | thick hair | two | walk
tiger | tigers | orange | meat | in the jungle | makes very loud noises | short hair | four | run
shark | sharks | silver | fish | in the ocean | makes no noise | rough skin | no | swim
bear | bears | brown | fish and honey | in the forest | makes deep noises | thick hair | four | climb
crocodile | crocodiles | green | fish and meat | in the river | makes no noise | rough skin | four | swim
zebra | zebras | black and white | grass | in the grass of Africa | makes soft noises | short hair | four | run
cow | cows | brown | grass | on the farm | makes deep noises | short hair | four | walk
horse | horses | brown | grass and apples | on the farm | makes happy noises | short hair | four | run
camel | camels | brown | dry plants | in the desert | makes deep noises | thick hair | four | walk
elephant | elephants | dark | leaves and fruit | in Africa | makes very loud noises | thick skin | four | walk
""")

FOODS = table("name | some | color | taste | kind | source", """
apple | apples | red | sweet | fruit | grow on trees
banana | bananas | yellow | sweet | fruit | grow on trees
orange | oranges | orange | sweet | fruit | grow on trees
lemon | lemons | yellow | sour | fruit | grow on trees
strawberry | strawberries | red | sweet | fruit | grow near the ground
tomato | tomatoes | red | fresh | vegetable | grow in the garden
potato | potatoes | brown | plain | vegetable | grow under the ground
onion | onions | white | strong | vegetable | grow under the ground
mushroom | mushrooms | brown | plain | vegetable | grow in the forest
pumpkin | pumpkins | orange | sweet | vegetable | grow in the garden
egg | eggs | white | plain | breakfast food | come from chickens
sandwich | sandwiches | brown | fresh | lunch | come from the kitchen
""")

STUFF = table("name | color | taste | kind | source", """
milk | white | fresh | drink | comes from cows
coffee | black | bitter | drink | comes from beans
orange juice | orange | sweet | drink | comes from oranges
water | clear | fresh | drink | comes from the river
butter | yellow | rich | food | comes from milk
cheese | yellow | rich | food | comes from milk
honey | golden | sweet | food | comes from flowers
chocolate | brown | sweet | food | comes from beans
ice cream | white | sweet | food | comes from milk
bread | brown | plain | food | comes from the bakery
sugar | white | sweet | food | comes from plants
salt | white | salty | food | comes from the ocean
soup | orange | salty | food | comes from the kitchen
""")

COUNTRIES = table("name | capital | continent | language | people", """
France | Paris | Europe | French | French
Germany | Berlin | Europe | German | German
Italy | Rome | Europe | Italian | Italian
Spain | Madrid | Europe | Spanish | Spanish
England | London | Europe | English | English
Ireland | Dublin | Europe | English | Irish
Russia | Moscow | Europe | Russian | Russian
Poland | Warsaw | Europe | Polish | Polish
Greece | Athens | Europe | Greek | Greek
Japan | Tokyo | Asia | Japanese | Japanese
China | Beijing | Asia | Chinese | Chinese
India | New Delhi | Asia | Hindi | Indian
Egypt | Cairo | Africa | Arabic | Egyptian
Canada | Ottawa | America | English | Canadian
Mexico | Mexico City | America | Spanish | Mexican
Australia | Canberra | Australia | English | Australian
""")

JOBS = table("name | plural | place | work | tool", """
doctor | doctors | in the hospital | helps sick people | medicine
teacher | teachers | in the school | teaches the children | books
farmer | farmers | on the farm | grows corn and vegetables | the tractor
baker | bakers | in the bakery | bakes fresh bread | the kitchen
waiter | waiters | in the restaurant | brings the food to the table | the small notebook
pilot | pilots | at the airport | flies the big airplane | the map
sailor | sailors | on the ship | travels across the ocean | the long rope
police officer | police officers | at the police station | protects the people | the radio
soldier | soldiers | in the army | protects the country | the radio
lawyer | lawyers | in the office | knows the law | many papers
secretary | secretaries | in the office | writes many letters | the computer
painter | painters | in the studio | paints beautiful pictures | the brush
singer | singers | on the stage | sings beautiful songs | the microphone
musician | musicians | on the stage | plays beautiful music | the piano
writer | writers | at the desk | writes interesting stories | the pencil
gardener | gardeners | in the garden | takes care of flowers | the shovel
carpenter | carpenters | in the workshop | builds tables and chairs | the hammer
mechanic | mechanics | in the garage | repairs broken cars | simple tools
scientist | scientists | in the laboratory | studies nature | the microscope
engineer | engineers | in the factory | builds new machines | the computer
fisherman | fishermen | on the boat | catches fish | the long rope
librarian | librarians | in the library | takes care of books | the computer
photographer | photographers | in the studio | takes pictures | the camera
""")

OBJECTS = table("name | plural | use | room | material", """
knife | knives | cut bread | kitchen | metal
bottle | bottles | carry water | kitchen | glass
basket | baskets | carry fruit | kitchen | wood
refrigerator | refrigerators | keep food cold | kitchen | metal
table | tables | eat dinner | kitchen | wood
pencil | pencils | write letters | office | wood
computer | computers | send messages | office | plastic
telephone | telephones | call friends | office | plastic
notebook | notebooks | write stories | office | paper
newspaper | newspapers | read the news | living room | paper
sofa | sofas | sit with friends | living room | cotton
television | televisions | watch movies | living room | plastic
radio | radios | listen to music | living room | plastic
piano | pianos | play music | living room | wood
candle | candles | make light | living room | wax
blanket | blankets | stay warm | bedroom | wool
jacket | jackets | stay warm in winter | bedroom | cotton
shovel | shovels | dig in the garden | garage | metal
bicycle | bicycles | ride to school | garage | metal
umbrella | umbrellas | stay dry | garage | plastic
camera | cameras | take pictures | studio | plastic
""")

VEHICLES = table("name | plural | way | wheels | use", """
bicycle | bicycles | on the road | two | ride to the park
motorcycle | motorcycles | on the road | two | ride very fast
taxi | taxis | in the city | four | get to the airport
tractor | tractors | on the farm | four | work in the field
bus | buses | on the road | six | get to school
truck | trucks | on the highway | ten | carry heavy boxes
train | trains | on the railway | many | travel across the country
boat | boats | on the river | no | catch fish
helicopter | helicopters | in the air | three | help people in the mountains
airplane | airplanes | in the air | many | fly to another country
rocket | rockets | into space | no | travel to the moon
""")  # sorted by speed, slow to fast: see COMPARED

BODY = table("name | verb | use", """
eyes | see | look at the world
ears | hear | listen to music
nose | smell | enjoy the flowers
hands | hold | write letters
fingers | touch | count to ten
legs | run | walk and run
arms | carry | lift heavy things
teeth | bite | eat the apple
brain | think | remember many things
""")

PLACES = table("name | do | see", """
library | read books | many old books
park | play with friends | green trees
beach | swim in the ocean | white sand
school | learn to read | students and teachers
museum | look at pictures | famous paintings
restaurant | eat good food | waiters and hungry people
theater | watch the play | actors on the stage
station | wait for the train | people with heavy bags
airport | wait for the airplane | pilots and airplanes
hospital | visit the doctor | doctors and sick people
bakery | buy fresh bread | bread and chocolate
market | buy fruit and vegetables | apples and potatoes
hotel | sleep in the big bed | many small rooms
zoo | look at animals | lions and monkeys
farm | ride the horse | cows and chickens
forest | walk under the trees | foxes and rabbits
mountains | climb and ski | snow and rocks
river | go fishing | boats and fish
garden | grow flowers | butterflies and flowers
stadium | watch the football game | players and the ball
""")

THINGS = table("name | color", """
the sky | blue
the grass | green
the snow | white
the ocean | blue
the sun | yellow
the night | black
the cloud | white
the forest | green
the old stone | dark
the rose | red
the leaf in summer | green
the leaf in autumn | orange
chocolate | brown
the school bus | yellow
the fire engine | red
the rain cloud | dark
""")

OPPOSITES = table("left | right", """
happy | sad
young | old
early | late
open | closed
strong | weak
quick | slow
clean | dirty
heavy | light
rich | poor
hot | cold
easy | difficult
quiet | noisy
beautiful | ugly
brave | afraid
careful | careless
expensive | cheap
dangerous | safe
inside | outside
above | below
always | never
before | after
summer | winter
morning | evening
question | answer
friend | enemy
brother | sister
husband | wife
grandfather | grandmother
remember | forget
arrive | leave
begin | finish
increase | decrease
winner | loser
beginning | end
""")

FAMILY = table("person | of", """
grandmother | mother of your mother
grandfather | father of your mother
uncle | brother of your father
aunt | sister of your mother
cousin | son of your uncle
granddaughter | daughter of your son
grandson | son of your daughter
""")

FEELINGS = table("name | cause | do", """
happy | you see your old friend | smile and laugh
sad | you lose your best friend | cry for some time
angry | somebody tells lies | breathe very deeply
tired | you work all day | go to bed early
hungry | you forget your breakfast | eat the sandwich
thirsty | you run in the sun | drink cold water
sick | you drink bad milk | visit the doctor
afraid | you hear the noise in the dark | turn on the light
surprised | you open the big present | open your eyes wide
proud | you win the important game | tell your family
lonely | all your friends are away | call your friend
nervous | you speak before many people | breathe slowly
""")

WEATHER = table("name | feel | bring | season", """
rainy | wet | the umbrella | autumn
sunny | warm | the hat | summer
snowy | cold | warm gloves | winter
windy | cool | the jacket | spring
cloudy | dark | the jacket | autumn
stormy | dangerous | strong shoes | winter
""")

DEFINITIONS = table("a | kind | which", """
the library | building | has many books
the museum | building | shows old things
the hospital | building | helps sick people
the hotel | building | has many beds
the factory | building | makes new machines
the desert | place | has no water
the island | place | is in the ocean
the forest | place | has many trees
the volcano | mountain | makes fire and smoke
the river | stream | runs to the ocean
the ocean | place | is deep and salty
the planet | world | travels around the star
the moon | rock | travels around the earth
the sun | star | gives us light
the black hole | place | has very strong gravity
the robot | machine | can move alone
the dictionary | book | explains many words
the calendar | table | shows the days and months
the microscope | instrument | makes things look big
the telescope | instrument | shows the distant stars
the thermometer | instrument | tells how warm it is
the president | person | leads the country
the stranger | person | nobody knows
the baby | person | is very young
""")

NAMES = table("name | he | his", """
Susan | she | her
Jessica | she | her
Patricia | she | her
Jennifer | she | her
Elizabeth | she | her
Victoria | she | her
David | he | his
Robert | he | his
Michael | he | his
Daniel | he | his
William | he | his
Benjamin | he | his
""")

RELATIVES = "mother father sister brother grandmother grandfather uncle daughter son cousin family".split()
