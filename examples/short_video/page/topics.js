// Appearance of tags: name, hue, emoji and a few subjects for titles. Numeric tags (KuaiRand) get a topic by number,
// named tags by name; a name that isn't in the table stands for itself, by its initials.

import { hash } from "./seeded.js";

const TABLE = `
cats|32|🐈 🐾 🧶 🐟|cats ignoring gravity|one cat, nine boxes|the 5 a.m. zoomies
street food|18|🍜 🌶️ 🥢 🔥|hand-pulled noodles|a cart with one dish|midnight skewers
football|142|⚽ 🥅 🏟️ 🧤|goals from the halfway line|the last penalty|keepers who dribble
space|262|🪐 🚀 ✨ 🛰️|rings of Saturn|falling around the Earth|a very small moon
baking|38|🥐 🧈 🍞 🥖|laminated dough|crusts that sing|a stubborn sourdough
ocean|204|🐳 🌊 🐚 🪸|breathing with whales|the deep end|waves nobody surfed
city nights|286|🌃 🚕 🌆 🌙|windows after midnight|taxis in the rain|rooftops
gardening|128|🌱 🪴 🌻 🐝|seeds that waited|one tomato plant|talking to ferns
dancing|322|💃 🪩 🕺 🎶|kitchen choreography|a wedding that got out of hand|shuffling in socks
trains|8|🚂 🛤️ 🚉 🎫|the slowest express|snow on the line|a window seat
dogs|44|🐕 🦴 🎾 🐶|a very good boy|dogs who herd children|the stick, again
gaming|276|🎮 👾 🕹️ 💎|speedruns|the boss with three forms|a cosy farm save
makeup|338|💄 💅 🪞 ✨|graphic liner|two-minute blush|stage make-up
mountains|214|🏔️ 🥾 ⛺ 🦅|ridge walking|tents above the clouds|a summit for breakfast
coffee|26|☕ 🫘 🥛 🍪|pour-over patience|a flat white swan|the second cup
robots|196|🤖 🦾 ⚙️ 🔋|robots folding towels|a polite vacuum|learning to walk
painting|12|🎨 🖌️ 🖼️ 🌈|mixing the right green|one brush, one line|skies in gouache
rain|222|🌧️ ☔ 💧 🐸|puddle reflections|a roof made of tin|storm watching
cars|2|🏎️ 🏁 🛞 💨|apexes|a barn-find engine|quiet hill climbs
magic|292|🪄 🎩 🐇 🃏|cards that vanish|a coin behind the ear|doves, somehow
school|52|🎒 ✏️ 📐 🍎|the last row|group projects|explaining fractions
fashion|330|👗 👠 🧵 👜|mending a hem|thrifted coats|three ways to tie it
fishing|188|🎣 🐟 🛶 🦆|the one that stayed|a lake at dawn|patience
skating|172|🛹 🛼 🧢 💫|kickflips|a pool with no water|falling well
weddings|350|💍 💐 🥂 💒|speeches|the second dance|late confetti
history|40|🏛️ 📜 ⚔️ 🏺|a coin from the mud|roads the Romans drew|kings with bad ideas
science|182|🔬 🧪 🧬 ⚗️|crystals growing|things that glow|a beaker of surprise
sushi|10|🍣 🍤 🍱 🥢|rice, properly|knife work|twelve seats
basketball|28|🏀 ⛹️ 🏆 👟|no-look passes|buzzer beaters|court at sunrise
birds|198|🦜 🪶 🪺 🐦|dawn chorus|a crow with a plan|nest cams
camping|104|🏕️ 🔥 🌲 🔦|one match|coffee by the fire|the sound outside
comedy|56|😂 🎭 🎤 🍌|awkward silences|the banana peel|a heckler with taste
boxing|358|🥊 🔔 💪 🏅|footwork|the ninth round|shadow boxing
desert|36|🏜️ 🐪 🌵 ☀️|dunes that move|shade|a road with no turns
piano|250|🎹 🎼 🎵 🕯️|left hand only|a station piano|one chord, three moods
surf|192|🏄 🌊 🌴 🤙|a long right|cold-water mornings|wiping out
horses|30|🐎 🏇 🌾 🐴|a canter at dusk|braided manes|meeting a foal
chess|84|♟️ 👑 ⏱️ 🧠|a quiet bishop|the queen sacrifice|park-bench masters
parenting|62|👶 🍼 🧸 🎈|first steps|snack negotiations|bedtime, take four
volcanoes|14|🌋 🔥 🪨 💨|lava at night|an island being born|very warm rocks
cycling|158|🚴 🚲 ⛰️ 💦|descents|a gravel detour|café stops
jazz|268|🎷 🎺 🥁 🌙|brushes on a snare|a trio at closing time|wrong notes, right
bees|48|🐝 🍯 🌼 🪻|the waggle dance|hives on a roof|honey by the window
DIY|24|🔨 🪚 🪛 🪵|a shelf, level|joints without screws|fixing the chair
tennis|76|🎾 🏸 🥎 🌤️|drop shots|clay season|a rally of sixty
ghosts|270|👻 🕸️ 🎃 🕯️|a door that closes|the house on the hill|cold spots
theatre|346|🎭 🩰 🌹 💡|the quick change|understudies|curtain call
ice cream|326|🍦 🍓 🍨 🍒|three scoops|a van with a tune|pistachio
architecture|210|🏗️ 📐 🧱 🏙️|stairs to nowhere|brutal and gentle|a house of light
yoga|166|🧘 🌿 🕊️ 🌅|balance|breathing out|ten quiet minutes
fireworks|312|🎆 🎇 🧨 ✨|grand finales|sparks in slow motion|the last rocket
farming|96|🚜 🌽 🐄 🥚|first light|a tractor older than me|harvest moon
snow|228|❄️ ⛄ 🎿 🛷|first tracks|a snowman with opinions|the silent street
hip-hop|300|🎤 🎧 🔊 💿|a beat from kitchen noise|four bars|crate digging
photography|206|📷 🎞️ 🔭 💡|golden hour|one roll of film|strangers, asked kindly
dinosaurs|112|🦖 🦕 🥚 🦴|feathers, probably|a footprint|naming the bones
plants|136|🌵 🪴 🍃 💦|repotting|a leaf unrolling|shade lovers
travel|178|✈️ 🧳 🗺️ 🏝️|night buses|lost on purpose|markets at seven
money|90|💰 📈 🪙 🧾|a tiny budget|compound interest|the price of bread
swimming|194|🏊 🤿 🌊 🥽|cold plunges|lane four|learning to float
pizza|20|🍕 🍅 🧀 🌿|ninety seconds of fire|dough that waits|the corner slice
motorbikes|4|🏍️ 🛣️ 🔧 🌄|mountain switchbacks|kick-starts|two-stroke mornings
astrology|280|🔮 🌙 ⭐ ♌|mercury, again|reading the tea|a suspicious horoscope
pandas|120|🐼 🎋 🍃 🌳|rolling downhill|lunch, all day|falling off things
tea|88|🍵 🫖 🌸 🍃|the third steeping|a slow whisk|steam
cinema|246|🎬 🍿 🎞️ 🎥|one long shot|sound from nothing|credits
hair|334|💇 💈 🪮 🎀|the big chop|a braid in two minutes|barbers who listen
insects|100|🦋 🐞 🐛 🍂|a chrysalis|ants carrying lunch|wings up close
medicine|174|🩺 🧠 🫀 💊|how a heart waits|sleep, really|stitches
toys|316|🧩 🪀 🧸 🚂|marble runs|one missing piece|wind-up things
skydiving|216|🪂 ☁️ 🦅 🌍|the door opens|four minutes of quiet|landing on a dot
`;

const TOPICS = TABLE.trim()
  .split("\n")
  .map((line) => {
    const [name, hue, emoji, ...subjects] = line.split("|");
    return { name, hue: Number(hue), emoji: emoji.split(" "), subjects };
  });
const BY_NAME = new Map(TOPICS.map((topic) => [topic.name.toLowerCase(), topic]));
for (const topic of TOPICS) {
  for (const subject of topic.subjects) BY_NAME.set(subject.toLowerCase(), { ...topic, name: subject, subjects: [subject] });
}
const SPREAD = 37; // coprime to the table's length: neighbouring numbers get different topics

/** The topic of a tag: by name if it is in the table; a number or code gets one by hash, any other name its own. */
export function topicOfTag(tag) {
  const text = String(tag ?? "").trim();
  const topic = BY_NAME.get(text.toLowerCase().replaceAll("_", " "));
  if (topic) return topic;
  if (/^\d+$/.test(text)) return TOPICS[(Number(text) * SPREAD) % TOPICS.length];
  const number = hash(text.toLowerCase());
  if (!text || /^[a-z]{0,3}[-_:]?\d+$/i.test(text)) return TOPICS[number % TOPICS.length];
  const name = text.replaceAll("_", " ").trim() || text;
  const initials = name.split(/\s+/).slice(0, 2).map((word) => [...word][0].toUpperCase()).join("");
  return { name, hue: number % 360, emoji: Array(3).fill(initials), subjects: [name] };
}

/** The topic of an item: by its fields topic, emoji and hue, else its first tag, its title, or its id. */
export function topicOf(item) {
  const fields = item.fields ?? {};
  const named = [fields.topic, fields.tags, fields.category, fields.title].flat().find((value) => value != null);
  const topic = topicOfTag(named ?? hash(item.item_id));
  const hue = Number(fields.hue);
  return {
    ...topic,
    hue: fields.hue != null && Number.isFinite(hue) ? hue : topic.hue,
    emoji: fields.emoji ? [String(fields.emoji), ...topic.emoji.slice(1)] : topic.emoji,
  };
}
