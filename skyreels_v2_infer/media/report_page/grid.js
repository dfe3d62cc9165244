// The grid: search, what makes rows and columns, and the choice of two to compare.

const MOST_COLUMNS = 12;
const state = { search: "", rows: "", columns: "", size: 0 };
let picked = []; // videos to compare
let order = data.videos; // as shown

// Arrangement

/** What makes rows and columns at first: names of settings, several joined by a space. */
function defaults() {
  const groups = groupsOf(data.videos, ["prompt"]).map(([, videos]) => videos);
  const rows = groups.length > 1 && data.videos.length >= 1.5 * groups.length ? "prompt" : "";
  // Columns are what was varied: what differs among videos of the same prompt.
  const varied = knobs.filter((name) => groups.some((videos) => new Set(videos.map((video) => setting(video, name))).size > 1));
  for (const names of [varied.filter((name) => name !== "seed"), varied.filter((name) => name === "seed")]) {
    const values = groupsOf(data.videos, names).length;
    if (values > 1 && values <= 8 && values < data.videos.length) return { rows, columns: names.join(" ") };
  }
  return { rows, columns: "" };
}

const valueOf = (video, names) => names.map((name) => setting(video, name)).join("\u0000");
const labelOf = (video, names) => names.map((name) => (name === "prompt" ? video.prompt : `${name} ${setting(video, name) || "none"}`)).join(", ");

/** Groups videos by the values of settings -> [[a video, videos], ...] in the order of the values; prompts as they come. */
function groupsOf(videos, names) {
  const groups = new Map();
  for (const video of videos) {
    const value = valueOf(video, names);
    groups.get(value)?.push(video) ?? groups.set(value, [video]);
  }
  const found = Array.from(groups.values(), (group) => [group[0], group]);
  const numeric = names.filter((name) => name !== "prompt");
  return found.sort(([one], [other]) => {
    for (const name of numeric) {
      const sign = compareTexts(setting(one, name), setting(other, name));
      if (sign) return sign;
    }
    return 0;
  });
}

/** The first videos of all cells of a row, then the second ones, ...: the order in which a reader sees them. */
function acrossColumns(cells) {
  const lines = Math.max(...cells.map((cell) => cell.length));
  return Array.from({ length: lines }, (_, line) => cells.flatMap((cell) => cell.slice(line, line + 1))).flat();
}

/** Videos that have every word of a text: `name=value` means that setting, another word a part of any text. */
function search(text) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const has = (video, word) => {
    const [name, value] = word.split("=");
    return value === undefined || !(name in video.settings || name in data.common.settings) ? video.words.includes(word) : setting(video, name).toLowerCase() === value;
  };
  return data.videos.filter((video) => words.every((word) => has(video, word)));
}

function arrange() {
  const found = search(state.search);
  const rowNames = state.rows.split(" ").filter(Boolean);
  const columnNames = state.columns.split(" ").filter((name) => name && !rowNames.includes(name));
  const columns = columnNames.length ? groupsOf(found, columnNames).map(([video]) => video) : [];
  const width = main.clientWidth - 2 * parseFloat(getComputedStyle(main).paddingLeft);
  const isTable = columns.length > 1 && columns.length <= MOST_COLUMNS && width / columns.length >= 96;
  const template = isTable ? `repeat(${columns.length}, minmax(0, ${state.size}px))` : `repeat(auto-fill, minmax(min(${state.size}px, 46%), 1fr))`;
  const column = new Map(columns.map((video, place) => [valueOf(video, columnNames), place + 1]));
  const said = new Set([...rowNames, ...(isTable ? columnNames : [])]);
  const sections = [];
  order = [];
  for (const [first, group] of groupsOf(found, rowNames)) {
    const cells = groupsOf(group, isTable ? columnNames : [...columnNames, ...knobs]).map(([, same]) => groupsOf(same, knobs).flatMap(([, equal]) => equal));
    const sorted = isTable ? acrossColumns(cells) : cells.flat();
    const names = differing(sorted);
    const grid = make("div", { class: "grid" });
    grid.style.gridTemplateColumns = template;
    for (const video of sorted) {
      const tile = tiles.get(video);
      tile.style.gridColumn = isTable ? column.get(valueOf(video, columnNames)) : "";
      caption(tile, said, names);
      grid.append(tile);
      order.push(video);
    }
    const title = rowNames.length ? labelOf(first, rowNames) : "";
    sections.push(make("section", { class: "row" }, make("h2", { class: title ? "" : "none", title }, title || "Videos"), grid));
  }
  const kept = new Set(order);
  for (const tile of tiles.values()) if (!kept.has(tile.video)) visible.delete(tile);
  const nothing = data.videos.length ? "No video matches the search." : "No videos yet.";
  main.replaceChildren(...jobs(), ...(sections.length ? sections : [make("p", { class: "nothing" }, nothing)]));
  const heads = byId("heads");
  heads.hidden = !isTable;
  heads.style.gridTemplateColumns = template;
  heads.replaceChildren(...(isTable ? columns.map((video) => make("span", {}, labelOf(video, columnNames))) : []));
  summarize(found);
}

function summarize(found) {
  const all = data.videos;
  const parts = [found.length === all.length ? counted(all.length, "video") : `${found.length} of ${counted(all.length, "video")}`];
  const prompts = new Set(found.map((video) => video.prompt)).size;
  if (prompts > 1) parts.push(`${prompts} prompts`);
  const seconds = found.reduce((sum, video) => sum + (video.seconds.total ?? 0), 0);
  if (seconds) parts.push(`made in ${duration(seconds)}`);
  const warnings = found.filter((video) => video.warnings.length).length;
  if (warnings) parts.push(counted(warnings, "warning"));
  byId("summary").textContent = parts.join(" · ");
}

/** The jobs that have made no video. */
function jobs() {
  if (!data.jobs.length) return [];
  const states = new Map();
  for (const job of data.jobs) states.set(job.status ?? "unknown", (states.get(job.status ?? "unknown") ?? 0) + 1);
  const rows = data.jobs.map((job) =>
    make("tr", {}, make("td", { class: "number" }, job.row ?? ""), make("td", { class: job.error ? "bad" : "" }, job.status ?? ""), make("td", {}, job.name ?? job.prompt ?? ""), make("td", {}, job.error ?? "")),
  );
  const head = make("thead", {}, make("tr", {}, ...["Row", "State", "Video", "Error"].map((title) => make("th", { scope: "col" }, title))));
  const title = Array.from(states, ([name, count]) => `${count} ${name}`).join(", ");
  const open = data.jobs.some((job) => job.error) && data.jobs.length <= 20;
  return [make("details", { class: "jobs", open }, make("summary", {}, title), make("div", { class: "scroll" }, make("table", {}, head, make("tbody", {}, ...rows))))];
}

// Choosing two

function pick(video, wanted) {
  picked = picked.filter((other) => other !== video);
  if (wanted) picked = [...picked.slice(-1), video];
  for (const [other, tile] of tiles) {
    tile.box.checked = picked.includes(other);
    tile.classList.toggle("picked", tile.box.checked);
  }
  const button = byId("compare");
  button.disabled = picked.length < 2;
  button.textContent = picked.length === 1 ? "Compare: 1 of 2" : "Compare";
  button.classList.toggle("primary", picked.length === 2);
}

// Arrow keys move between tiles; Tab does as well.
main.addEventListener("keydown", (event) => {
  const tile = event.target.closest?.(".tile");
  if (!tile || !event.target.matches(".picture")) return;
  const here = tile.getBoundingClientRect();
  let next = null;
  if (event.key === "ArrowLeft" || event.key === "ArrowRight") next = order[order.indexOf(tile.video) + (event.key === "ArrowRight" ? 1 : -1)];
  else if (event.key === "ArrowUp" || event.key === "ArrowDown") {
    const below = event.key === "ArrowDown";
    let least = Infinity;
    for (const video of order) {
      const there = tiles.get(video).getBoundingClientRect();
      const down = below ? there.top - here.bottom : here.top - there.bottom;
      const far = Math.max(0, down) * 10 + Math.abs(there.left - here.left);
      if (down >= 0 && far < least) [least, next] = [far, video];
    }
  } else return;
  event.preventDefault();
  if (next) tiles.get(next).querySelector(".picture").focus();
});

// Start

/** Search and arrangement are kept in the address, so that they survive a reload and can be sent. */
function remember() {
  const kept = new URLSearchParams(Object.entries(state).filter(([, value]) => value !== ""));
  history.replaceState(null, "", `#${kept}`);
}

function fill(select, names, combined) {
  const options = ["", ...names, ...(combined.includes(" ") ? [combined] : [])];
  select.append(...options.map((name) => make("option", { value: name }, name.replaceAll(" ", " × ") || "none")));
}

function connect(id, change) {
  const input = byId(id);
  input.value = state[id];
  input.addEventListener(id === "rows" || id === "columns" ? "change" : "input", () => {
    state[id] = id === "size" ? Number(input.value) : input.value;
    change();
    remember();
  });
}

function begin() {
  const chosen = defaults();
  const landscape = data.videos.some((video) => video.aspect > 1.2);
  Object.assign(state, chosen, { size: innerWidth < 640 ? 160 : landscape ? 320 : 232 });
  const kept = new URLSearchParams(location.hash.slice(1));
  const known = new Set(["", "prompt", chosen.columns, ...knobs]);
  for (const name of ["rows", "columns"]) if (kept.has(name) && known.has(kept.get(name))) state[name] = kept.get(name);
  if (kept.has("search")) state.search = kept.get("search");
  if (Number(kept.get("size"))) state.size = clamp(Number(kept.get("size")), 96, 480);
  byId("title").textContent = data.folder;
  if (data.videos.length === 1) {
    viewer = new Viewer(data.videos);
    main.replaceChildren(...jobs(), viewer.element);
    return summarize(data.videos);
  }
  const groupable = differing(data.videos);
  fill(byId("rows"), groupable, "");
  fill(byId("columns"), knobs, chosen.columns);
  byId("by-rows").hidden = !groupable.length;
  byId("by-columns").hidden = !knobs.length;
  byId("bar").hidden = !data.videos.length;
  for (const id of ["search", "rows", "columns", "size"]) connect(id, arrange);
  byId("play").addEventListener("click", () => playAll(!playsAll));
  byId("compare").addEventListener("click", () => open(picked));
  arrange();
  for (const tile of tiles.values()) {
    watcher.observe(tile);
    nearby.observe(tile);
  }
  let width = innerWidth;
  addEventListener("resize", () => {
    if (width !== innerWidth) arrange();
    width = innerWidth;
  });
}

begin();
