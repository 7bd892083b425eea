"""Words of questions about hard scenes; those of the out-of-domain split are others than those of training."""

from __future__ import annotations

Texts = dict[str, tuple[str, ...]]

NOUNS: dict[str, tuple[str, str]] = {
    "roof": ("roof", "roofs"), "water": ("body of water", "bodies of water"), "tank": ("tank", "tanks"),
    "court": ("court", "courts"), "field": ("field", "fields"), "lot": ("parking lot", "parking lots"),
    "vessel": ("vessel", "vessels"), "vehicle": ("vehicle", "vehicles"), "road": ("road", "roads"),
    "wood": ("wood", "woods"), "path": ("path", "paths"), "fence": ("fence", "fences"), "jetty": ("jetty", "jetties"),
    "runway": ("runway", "runways"), "marking": ("runway stripe", "runway stripes"),
}  # fmt: skip
"""What each category is called: one, several."""
HOSTS = {"road": "the road", "lot": "a parking lot", "runway": "the runway", "water": "the water"}
"""What vehicles and vessels stand on."""
GUESTS = {"vehicle": ("road", "lot", "runway"), "vessel": ("water",)}
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight")

FUNCTIONS: Texts = {
    "roof": ("where do families live", "what has gutters and a chimney", "what keeps the rain off a household"),
    "water": ("where do fish live", "where could a swimmer drown", "what could a pump fill a pool from"),
    "tank": ("where is fuel stored", "what is filled with oil through a pipe", "what do refineries store petrol in"),
    "court": ("where could a match be played", "where do players train", "where is a net put up for a game"),
    "field": ("where is grain harvested", "what does a tractor plough", "where does a farmer sow"),
    "lot": ("where can shoppers leave their cars", "what has marked bays for cars", "what offers places to park"),
    "vessel": ("what belongs on the sea", "what has a bow and a stern", "what does a helmsman steer"),
    "vehicle": ("what has number plates", "what stops at a traffic light", "what is driven on tyres"),
    "road": ("what links two towns for cars", "how would an ambulance arrive", "where does traffic flow in two lanes"),
    "wood": ("where do birds nest", "what gets felled for timber", "where does a squirrel live"),
    "path": ("where would a hiker walk", "what is too narrow for a car but not for a walker", "where do joggers run"),
    "fence": ("what keeps sheep from straying", "what would a burglar climb over", "what marks a border with posts"),
    "jetty": ("where could a boat be moored", "what stands on piles in the water", "from where do anglers cast off"),
    "runway": ("where do aeroplanes land", "where would a pilot touch down", "what does an aeroplane take off from"),
    "marking": ("what shows a pilot the middle line", "which paint guides a landing aeroplane"),
}
"""What each category is for, and no other one is."""
OOD_FUNCTIONS: Texts = {
    "roof": ("a household would be under what", "people sleep beneath what"),
    "water": ("fish could be caught in what", "a person could swim in what"),
    "tank": ("oil is kept in what", "petrol for a whole town would come out of what"),
    "court": ("a team would practise on what", "a referee would blow a whistle on what"),
    "field": ("crops grow on what", "a farmer would plough what"),
    "lot": ("drivers who go shopping stop on what", "painted bays are on what"),
    "vessel": ("a crew would sail in what", "a harbour pilot would board what"),
    "vehicle": ("a driver would sit in what", "a mechanic would change tyres on what"),
    "road": ("a bus would go along what", "between towns, cars take what"),
    "wood": ("owls and deer hide in what", "a logger would cut what"),
    "path": ("a walker would follow what", "a stroll would be taken along what"),
    "fence": ("cattle are held back by what", "a trespasser would jump over what"),
    "jetty": ("boats are tied up at what", "passengers walk over water on what"),
    "runway": ("a jet would roll along what", "an aeroplane would brake on what"),
    "marking": ("a pilot keeps the nose wheel on what", "fresh paint helps an aircrew along what"),
}

EVERY = ("every {one}", "all {many}", "any {one} there is")
OOD_EVERY = ("mark each {one} in view", "is there a {one}, and where")
BOTH, OOD_BOTH = "all {many} and all {others}", "mark {many} together with {others}"

EXTREMES = {
    "leftmost": "leftmost", "rightmost": "rightmost", "top": "topmost", "bottom": "bottommost",
    "largest": "largest", "smallest": "smallest",
}  # fmt: skip
OOD_EXTREMES = {
    "leftmost": "furthest left", "rightmost": "furthest right", "top": "furthest up", "bottom": "furthest down",
    "largest": "biggest", "smallest": "tiniest",
}  # fmt: skip

# Of training, and out of domain.
POSITION = ("the {extreme} {one}", "of all {many}, the one that is {extreme}")
RANK = ("the {number} {extreme} {many}", "{number} {many}, those that are {extreme}")
EXACTLY = (
    "the {many}, but only if there are exactly {number}",
    "if you count {number} {many}, no more and no fewer, mark them",
)
ALL_BUT = ("every {one} but the {extreme} one", "leave out the {one} that is {extreme} and mark the other {many}")
NEAREST = ("the {one} nearest the {landmark}", "of all {many}, the one with the least distance to the {landmark}")
FARTHEST = ("the {one} farthest from the {landmark}", "of all {many}, the one most distant from the {landmark}")
ON = ("the {many} on {host}", "whichever {many} have {host} under them")
OFF = ("the {many} that are not on {host}", "whichever {many} do without {host} under them")
