"""Topics of the simulated world, with hue, emoji and sub-topics. All of it is made up."""

from dataclasses import dataclass
from typing import Final

# name | hue | emoji | sub-topics. The feed page knows these names too.
_TABLE: Final = """
cats|32|🐈 🐾 🧶|cats ignoring gravity|one cat, nine boxes|the 5 a.m. zoomies
street food|18|🍜 🌶️ 🥢|hand-pulled noodles|a cart with one dish|midnight skewers
football|142|⚽ 🥅 🧤|goals from the halfway line|the last penalty|keepers who dribble
space|262|🪐 🚀 ✨|rings of Saturn|falling around the Earth|a very small moon
baking|38|🥐 🧈 🍞|laminated dough|crusts that sing|a stubborn sourdough
ocean|204|🐳 🌊 🐚|breathing with whales|the deep end|waves nobody surfed
city nights|286|🌃 🚕 🌆|windows after midnight|taxis in the rain|rooftops
gardening|128|🌱 🪴 🌻|seeds that waited|one tomato plant|talking to ferns
dancing|322|💃 🪩 🕺|kitchen choreography|a wedding that got out of hand|shuffling in socks
trains|8|🚂 🛤️ 🚉|the slowest express|snow on the line|a window seat
dogs|44|🐕 🦴 🎾|a very good boy|dogs who herd children|the stick, again
gaming|276|🎮 👾 🕹️|speedruns|the boss with three forms|a cosy farm save
makeup|338|💄 💅 🪞|graphic liner|two-minute blush|stage make-up
mountains|214|🏔️ 🥾 ⛺|ridge walking|tents above the clouds|a summit for breakfast
coffee|26|☕ 🫘 🥛|pour-over patience|a flat white swan|the second cup
robots|196|🤖 🦾 ⚙️|robots folding towels|a polite vacuum|learning to walk
painting|12|🎨 🖌️ 🖼️|mixing the right green|one brush, one line|skies in gouache
rain|222|🌧️ ☔ 💧|puddle reflections|a roof made of tin|storm watching
cars|2|🏎️ 🏁 🛞|apexes|a barn-find engine|quiet hill climbs
magic|292|🪄 🎩 🃏|cards that vanish|a coin behind the ear|doves, somehow
fashion|330|👗 👠 🧵|mending a hem|thrifted coats|three ways to tie it
skating|172|🛹 🛼 🧢|kickflips|a pool with no water|falling well
birds|198|🦜 🪶 🪺|dawn chorus|a crow with a plan|nest cams
jazz|268|🎷 🎺 🥁|brushes on a snare|a trio at closing time|wrong notes, right
"""
ENDINGS: Final = (
    "", ", slowly", ", part two", ", and then it rained", ", no talking", ", from above",
    ", first try", ", hundredth try", ", explained", ", with my grandmother",
)  # fmt: skip


@dataclass(frozen=True)
class Topic:
    """A topic of the world; sub-topics are tags of their own."""

    name: str
    hue: int
    emoji: tuple[str, ...]
    subtopics: tuple[str, ...]


def _read(line: str) -> Topic:
    name, hue, emoji, *subtopics = line.split("|")
    return Topic(name, int(hue), tuple(emoji.split()), tuple(subtopics))


TOPICS: Final = tuple(_read(line) for line in _TABLE.strip().splitlines())
