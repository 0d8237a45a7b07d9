"""The facts of the nano world: small tables that nano/corpus.py turns into questions and answers.

- One row per thing, columns separated by `|`; `table()` gives dicts. Adding a row adds a few dozen question-answer pairs.
- American spelling and ordinary words only: the judge (a small recogniser of American English) has to know every answer word.
- Facts are meant to be true of the usual case in a child's book, not of every exception.
"""


def table(columns, text):
    """Rows of `text` as dicts {column: cell}; raises ValueError for a row with the wrong number of cells."""
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
COLORS = "red blue green yellow orange purple brown black white gray pink".split()

# sorted by size, small to large: the order is a fact that comparisons ask for
ANIMALS = table("name | plural | color | food | home | voice | cover | legs | move", """
bee | bees | yellow | sugar from flowers | in a garden | makes a soft noise | hair | six | fly
butterfly | butterflies | orange | sugar from flowers | among the flowers | makes no noise | tiny hair | six | fly
spider | spiders | black | little insects | in a dark corner | makes no noise | hair | eight | climb
frog | frogs | green | little insects | near the water | sings in the evening | smooth skin | four | jump
mouse | mice | gray | cheese and bread | in a small hole | makes a quiet noise | soft fur | four | run
chicken | chickens | white | corn and seeds | on a farm | talks in the morning | feathers | two | walk
duck | ducks | brown | green plants | on a quiet lake | makes a funny noise | feathers | two | swim
owl | owls | brown | mice | in an old tree | calls in the night | feathers | two | fly
rabbit | rabbits | gray | carrots and grass | under the ground | makes no noise | soft fur | four | jump
cat | cats | black | fish and meat | in a house | speaks softly | soft fur | four | climb
turtle | turtles | green | green plants | near the water | makes no noise | a hard shell | four | swim
monkey | monkeys | brown | bananas and nuts | in the jungle | makes a loud noise | brown fur | four | climb
eagle | eagles | brown | fish and rabbits | in the mountains | cries loudly | feathers | two | fly
fox | foxes | orange | chickens and mice | in the forest | cries in the night | thick fur | four | run
dog | dogs | brown | meat and bones | in a house | makes a loud noise | soft fur | four | run
goat | goats | white | leaves and grass | in the mountains | makes a funny noise | long hair | four | climb
penguin | penguins | black | fish | on the ice | makes a loud noise | feathers | two | swim
wolf | wolves | gray | meat | in the forest | cries in the night | thick fur | four | run
sheep | sheep | white | grass | on a farm | makes a soft noise | wool | four | walk
pig | pigs | pink | corn and vegetables | on a farm | makes a funny noise | thin hair | four | walk
dolphin | dolphins | gray | fish | in the ocean | sings to its friends | smooth skin | no | swim
lion | lions | yellow | meat | in the grass of Africa | makes a very loud noise | short fur | four | run
tiger | tigers | orange | meat | in the jungle | makes a very loud noise | short fur | four | run
shark | sharks | gray | fish | in the ocean | makes no noise | rough skin | no | swim
bear | bears | brown | fish and honey | in the forest | makes a deep noise | thick fur | four | climb
zebra | zebras | black and white | grass | in the grass of Africa | makes a soft noise | short hair | four | run
cow | cows | brown | grass | on a farm | makes a deep noise | short hair | four | walk
horse | horses | brown | grass and apples | on a farm | makes a happy noise | short hair | four | run
camel | camels | brown | dry plants | in the desert | makes a deep noise | thick hair | four | walk
elephant | elephants | gray | leaves and fruit | in Africa | makes a very loud noise | thick skin | four | walk
whale | whales | blue | tiny animals | in the ocean | sings a long song | smooth skin | no | swim
""")

FOODS = table("name | some | color | taste | kind | source", """
apple | apples | red | sweet | fruit | grow on trees
banana | bananas | yellow | sweet | fruit | grow on trees
orange | oranges | orange | sweet | fruit | grow on trees
lemon | lemons | yellow | sour | fruit | grow on trees
cherry | cherries | red | sweet | fruit | grow on trees
strawberry | strawberries | red | sweet | fruit | grow near the ground
tomato | tomatoes | red | fresh | vegetable | grow in the garden
potato | potatoes | brown | plain | vegetable | grow under the ground
carrot | carrots | orange | sweet | vegetable | grow under the ground
onion | onions | white | strong | vegetable | grow under the ground
mushroom | mushrooms | brown | plain | vegetable | grow in the forest
pumpkin | pumpkins | orange | sweet | vegetable | grow in the garden
cookie | cookies | brown | sweet | dessert | come from the bakery
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
honey | golden | sweet | food | comes from bees
chocolate | brown | sweet | dessert | comes from beans
ice cream | white | sweet | dessert | comes from milk
bread | brown | plain | food | comes from the bakery
rice | white | plain | food | comes from wet fields
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
Austria | Vienna | Europe | German | Austrian
Japan | Tokyo | Asia | Japanese | Japanese
China | Beijing | Asia | Chinese | Chinese
India | New Delhi | Asia | Hindi | Indian
Egypt | Cairo | Africa | Arabic | Egyptian
Cuba | Havana | America | Spanish | Cuban
Canada | Ottawa | America | English | Canadian
Mexico | Mexico City | America | Spanish | Mexican
Australia | Canberra | Australia | English | Australian
""")

JOBS = table("name | plural | place | work | tool", """
doctor | doctors | in a hospital | helps sick people | medicine
nurse | nurses | in a hospital | takes care of patients | a thermometer
teacher | teachers | in a school | teaches the children | books
student | students | at the university | learns new things | a computer
farmer | farmers | on a farm | grows corn and vegetables | a tractor
cook | cooks | in a kitchen | makes delicious meals | a sharp knife
baker | bakers | in a bakery | bakes bread and cookies | a hot oven
waiter | waiters | in a restaurant | brings the food to the table | a small notebook
pilot | pilots | at the airport | flies a big airplane | a map
driver | drivers | on the road | drives a yellow bus | a bus
sailor | sailors | on a ship | travels across the ocean | a long rope
police officer | police officers | at the police station | protects the people | a radio
soldier | soldiers | in the army | protects the country | a radio
dentist | dentists | in a clean office | takes care of teeth | a small mirror
lawyer | lawyers | in an office | knows the law | many papers
secretary | secretaries | in an office | writes many letters | a computer
painter | painters | in a studio | paints beautiful pictures | a brush
singer | singers | on a stage | sings beautiful songs | a microphone
musician | musicians | on a stage | plays beautiful music | a piano
writer | writers | at a desk | writes interesting stories | a pencil
gardener | gardeners | in a garden | takes care of flowers | a shovel
carpenter | carpenters | in a workshop | builds tables and chairs | a hammer
mechanic | mechanics | in a garage | repairs broken cars | simple tools
scientist | scientists | in a laboratory | studies nature | a microscope
engineer | engineers | in a factory | builds new machines | a computer
fisherman | fishermen | on a boat | catches fish | a strong net
librarian | librarians | in a library | takes care of books | a computer
photographer | photographers | in a studio | takes pictures | a camera
""")

OBJECTS = table("name | plural | use | room | material", """
knife | knives | cut bread | kitchen | metal
spoon | spoons | eat soup | kitchen | metal
bottle | bottles | carry water | kitchen | glass
basket | baskets | carry fruit | kitchen | wood
oven | ovens | bake cookies | kitchen | metal
refrigerator | refrigerators | keep food cold | kitchen | metal
table | tables | eat dinner | kitchen | wood
pencil | pencils | write letters | office | wood
desk | desks | do homework | office | wood
computer | computers | send messages | office | plastic
telephone | telephones | call friends | office | plastic
notebook | notebooks | write stories | office | paper
newspaper | newspapers | read the news | living room | paper
sofa | sofas | sit with friends | living room | leather
television | televisions | watch movies | living room | plastic
radio | radios | listen to music | living room | plastic
piano | pianos | play music | living room | wood
candle | candles | make light | living room | wax
blanket | blankets | stay warm | bedroom | wool
pillow | pillows | sleep well | bedroom | cotton
jacket | jackets | stay warm in winter | bedroom | cotton
sweater | sweaters | stay warm in autumn | bedroom | wool
mirror | mirrors | see my face | bathroom | glass
towel | towels | dry my hands | bathroom | cotton
hammer | hammers | build things | garage | metal
ladder | ladders | climb to the roof | garage | wood
shovel | shovels | dig in the garden | garage | metal
bicycle | bicycles | ride to school | garage | metal
umbrella | umbrellas | stay dry in the rain | garage | plastic
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
mouth | speak | eat and drink
hands | hold | write a letter
fingers | touch | count to ten
legs | run | walk and run
arms | carry | lift heavy things
teeth | bite | eat an apple
tongue | taste | enjoy our food
brain | think | remember many things
lungs | breathe | enjoy the fresh air
shoulders | lift | carry a heavy bag
stomach | digest | eat a good dinner
""")

PLACES = table("name | do | see", """
library | read books | many old books
park | play with friends | green trees
beach | swim in the ocean | white sand
school | learn to read | students and teachers
museum | look at pictures | famous paintings
restaurant | eat a good dinner | waiters and hungry people
theater | watch a play | actors on a stage
station | wait for a train | people with heavy bags
airport | wait for an airplane | pilots and airplanes
hospital | visit a doctor | doctors and nurses
bakery | buy fresh bread | cookies and cakes
market | buy fruit and vegetables | apples and potatoes
hotel | sleep in a big bed | many small rooms
zoo | look at animals | lions and monkeys
farm | ride a horse | cows and chickens
forest | walk under the trees | foxes and owls
mountains | climb and ski | snow and rocks
river | go fishing | boats and ducks
garden | grow flowers | butterflies and bees
stadium | watch a football game | players and a ball
""")

THINGS = table("name | color", """
the sky | blue
the grass | green
the snow | white
the ocean | blue
the sun | yellow
the night | black
a cloud | white
a forest | green
an old stone | gray
a rose | red
a leaf in summer | green
a leaf in autumn | orange
chocolate | brown
a school bus | yellow
a fire engine | red
a rain cloud | gray
a tire | black
a violet | purple
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
empty | full
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
nephew | son of your brother
niece | daughter of your sister
granddaughter | daughter of your son
grandson | son of your daughter
""")

FEELINGS = table("name | cause | do", """
happy | you see an old friend | smile and laugh
sad | you lose a good friend | cry a little
angry | somebody tells a lie | take a deep breath
tired | you work all day | go to bed early
hungry | you forget your breakfast | eat a sandwich
thirsty | you run in the sun | drink cold water
sick | you catch a bad cold | visit a doctor
bored | there is nothing to do | read a good book
afraid | you hear a noise in the dark | turn on the light
surprised | you open a big present | open your eyes wide
proud | you win an important game | tell your family
lonely | all your friends are away | call a friend
nervous | you speak before many people | breathe slowly
""")

WEATHER = table("name | feel | bring | season", """
rainy | wet | an umbrella | autumn
sunny | warm | a hat | summer
snowy | cold | warm gloves | winter
windy | cool | a jacket | spring
cloudy | gray | a sweater | autumn
stormy | dangerous | strong boots | winter
""")

DEFINITIONS = table("a | kind | which", """
a library | building | has many books
a museum | building | shows old things
a hospital | building | helps sick people
a hotel | building | has many beds
a factory | building | makes new machines
a desert | place | has no water
an island | place | has water all around
a forest | place | has many trees
a volcano | mountain | makes fire and smoke
a river | stream | runs to the ocean
the ocean | place | is deep and salty
a planet | world | travels around a star
the moon | rock | travels around the earth
the sun | star | gives us light
a black hole | place | has very strong gravity
a robot | machine | can move alone
a dictionary | book | explains many words
a calendar | table | shows the days and months
a microscope | instrument | makes things look big
a telescope | instrument | shows the distant stars
a thermometer | instrument | tells how warm it is
a compass | instrument | shows the way north
a violin | instrument | plays soft music
a president | person | leads a country
a neighbor | person | lives next door
a stranger | person | nobody knows
a baby | person | is very young
""")

NAMES = table("name | he | his", """
Anna | she | her
Maria | she | her
Sarah | she | her
Susan | she | her
Emily | she | her
Linda | she | her
Peter | he | his
David | he | his
Robert | he | his
Michael | he | his
Daniel | he | his
George | he | his
""")

RELATIVES = "mother father sister brother grandmother grandfather uncle aunt daughter son cousin family".split()
