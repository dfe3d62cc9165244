// Tiles: a video each with its caption, which play in step.

const MOST_PLAYERS = 32; // video elements at a time; browsers refuse more than about 75
const knobs = differing(data.videos).filter((name) => name !== "prompt");
const main = byId("main");
const still = matchMedia("(prefers-reduced-motion: reduce)"); // nothing moves but on request
const clock = new Clock();
const players = new Map(); // tile -> player, the least recently used first
const visible = new Set();
let playsAll = false;

function tileOf(video, place) {
  const screen = screenOf(video);
  const done = make("span", { class: "done" });
  const track = make("span", { class: "track" }, done, ...seamsOf(video));
  const size = video.frames ? `, ${video.length.toFixed(1)} s` : "";
  const seams = video.pieces.length > 1 ? `, ${counted(video.pieces.length - 1, "seam")}` : "";
  const label = `Open ${video.name}${size}${seams}`;
  const picture = make("button", { type: "button", class: "picture", "aria-label": label, click: () => open([video]) }, screen, track);
  const box = make("input", { type: "checkbox", "aria-label": `Compare ${video.name}`, change: () => pick(video, box.checked) });
  const words = make("div", { class: "words" });
  const caption = make("div", { class: "caption" }, make("label", { class: "pick" }, box, "Compare"), words);
  const tile = make("article", { class: "tile" }, picture, caption);
  Object.assign(tile, { video, screen, done, box, place });
  tile.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && hover(tile));
  tile.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hover(null));
  picture.addEventListener("focus", () => picture.matches(":focus-visible") && hover(tile));
  picture.addEventListener("blur", () => hover(null));
  return tile;
}

/** Fills a tile's caption. `said`: settings that its place in the grid says; `names`: those in which its row differs. */
function caption(tile, said, names) {
  const video = tile.video;
  const values = names.filter((name) => !said.has(name) && name !== "seed" && name !== "prompt" && setting(video, name));
  const drift = driftOf(video);
  const line = make("p", { class: "values" });
  if (setting(video, "seed")) line.append(make("b", {}, `seed ${setting(video, "seed")}`));
  line.append(...values.slice(0, 4).map((name) => make("span", {}, `${name} ${setting(video, name)}`)));
  if (video.seconds.total != null) line.append(make("span", { class: "muted" }, `made in ${duration(video.seconds.total)}`));
  const text = said.has("prompt") ? null : make("p", { class: "text" }, video.prompt || video.name);
  const moved = drift && `brightness ${signed(drift.brightness)}, saturation ${signed(drift.saturation)}, largest seam ${drift.seam.toFixed(2)}`;
  const lines = [text, line, moved && make("p", { class: "muted" }, moved)];
  lines.push(...video.warnings.map((warning) => make("p", { class: "warning" }, warning)));
  tile.querySelector(".words").replaceChildren(...lines.filter(Boolean));
}

// Playing

function playerOf(tile, preload) {
  let player = players.get(tile);
  players.delete(tile);
  player ??= new Player(tile.video, tile.screen, { preload, shown: (part) => (tile.done.style.transform = `scaleX(${part})`) });
  players.set(tile, player);
  for (const [old, its] of players) {
    if (players.size <= MOST_PLAYERS) break;
    if (!clock.players.has(its) && old !== tile) release(old);
  }
  return player;
}

function release(tile) {
  const player = players.get(tile);
  clock.players.delete(player);
  players.delete(tile);
  player?.remove();
  tile.done.style.transform = "";
}

/** Plays the tiles in step, and lets all others rest on their posters. */
function play(tiles) {
  const wanted = new Set(tiles.slice(0, MOST_PLAYERS).map((tile) => playerOf(tile, "auto")));
  for (const [tile, player] of players) {
    if (wanted.has(player)) continue;
    clock.players.delete(player);
    if (tile.video.poster) release(tile);
    else player.follow(0, false, 1);
  }
  clock.players = wanted;
  if (wanted.size && !clock.running) clock.start();
  if (!wanted.size) clock.stop();
}

let resting = 0;
/** Plays a tile and those beside it in the same line; null: stops. */
function hover(tile) {
  clearTimeout(resting);
  if (playsAll) return;
  if (!tile) {
    resting = setTimeout(() => play([]), 120);
    return;
  }
  if (still.matches) return;
  const beside = Array.from(tile.parentElement.children).filter((other) => other.offsetTop === tile.offsetTop && visible.has(other));
  if (clock.players.has(players.get(tile))) return;
  clock.seek(0);
  play([tile, ...beside.filter((other) => other !== tile)]);
}

function playAll(wanted) {
  playsAll = wanted;
  byId("play").textContent = wanted ? "Stop" : "Play all";
  byId("play").setAttribute("aria-pressed", wanted);
  if (wanted) clock.seek(0);
  play(wanted ? Array.from(visible) : []);
}

let settling = 0;
const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting && target.isConnected) visible.add(target);
    else visible.delete(target);
    if (isIntersecting && !target.video.poster && !players.has(target)) playerOf(target, "metadata").follow(0, false, 1);
    if (!isIntersecting && players.has(target)) release(target);
  }
  clearTimeout(settling);
  if (playsAll) settling = setTimeout(() => playsAll && play(Array.from(visible)), 150); // not while pages fly past
});

// Posters are decoded near the window only: hundreds of them take more memory than all else.
const nearby = new IntersectionObserver(
  (entries) => entries.forEach(({ target, isIntersecting }) => showPoster(target.screen, target.video, isIntersecting)),
  { rootMargin: "200px" },
);

const tiles = new Map(data.videos.map((video, place) => [video, tileOf(video, place)]));
for (const video of data.videos) {
  const parts = [video.name, video.prompt, ...video.warnings, ...Object.entries(video.settings).flat(), setting(video, "seed")];
  video.words = parts.join("\n").toLowerCase();
}
