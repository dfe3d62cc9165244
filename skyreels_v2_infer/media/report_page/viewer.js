// One video with its figures, or two side by side.

const SPEEDS = [0.1, 0.25, 0.5, 1, 2];

/** A screen for a video: a box of its form. */
function screenOf(video) {
  const screen = make("span", { class: "screen" });
  screen.style.aspectRatio = video.aspect;
  return screen;
}

/** Shows the first frame, which is a part of the preview, or frees its pixels. */
function showPoster(screen, { poster }, wanted = true) {
  screen.querySelector("canvas")?.remove();
  if (!poster || !wanted) return;
  const [x, y, width, height] = poster.box;
  const canvas = make("canvas", { width, height });
  screen.prepend(canvas);
  const picture = new Image();
  picture.addEventListener("load", async () => {
    if (!canvas.isConnected) return;
    // Chromium keeps the pixels of every picture that is drawn or shown, hundreds of MB; not those of a bitmap.
    const bitmap = await createImageBitmap(picture, x, y, width, height);
    canvas.getContext("2d").drawImage(bitmap, 0, 0);
    bitmap.close();
  });
  picture.src = poster.src;
}

/** Marks of the seams of a video on a line of its length. */
function seamsOf(video) {
  return video.pieces.slice(1).map((piece) => {
    const mark = make("span", { class: piece.jumps ? "seam jump" : "seam" });
    mark.style.left = `${(100 * piece.begin) / video.frames}%`;
    return mark;
  });
}

/** The content of the viewer for one or two videos. */
class Viewer {
  constructor(videos) {
    this.videos = videos;
    this.clock = new Clock((time) => this.show(time));
    this.element = make("div", { class: "viewer" });
    this.stage = make("div", { class: videos.length > 1 ? "stage two side" : "stage one" });
    this.players = videos.map((video, place) => {
      const screen = screenOf(video);
      showPoster(screen, video);
      // Small videos are enlarged, but not to the width of a desk.
      screen.style.width = `min(100vw - 72px, ${Math.max(480, 2 * (video.width ?? 0))}px, var(--height) * ${video.aspect})`;
      const caption = make("figcaption", {}, make("b", {}, videos.length > 1 ? "AB"[place] + " " : ""), this.captionOf(video));
      this.stage.append(make("figure", {}, screen, caption));
      const player = new Player(video, screen);
      this.clock.players.add(player);
      return player;
    });
    this.element.append(this.stage, videos.length > 1 ? this.divider() : "", this.transport(), this.info());
    this.show(0);
  }

  captionOf(video) {
    if (this.videos.length === 1) return `${video.name}.mp4`;
    const names = differing(this.videos).filter((name) => name !== "prompt");
    const values = names.slice(0, 4).map((name) => `${name} ${setting(video, name) || "none"}`);
    return [values.join(", ") || `${video.name}.mp4`];
  }

  divider() {
    this.edge = make("span", { class: "edge" });
    const slider = make("input", { type: "range", min: 0, max: 100, step: 0.5, value: 50, id: "divider", input: () => this.wipe(Number(slider.value)) });
    this.slider = make("label", { class: "divider", hidden: true }, "A", slider, "B");
    slider.setAttribute("aria-label", "Divider between A and B");
    const move = (event) => {
      if (!this.stage.classList.contains("wipe") || (event.type === "pointermove" && !event.buttons)) return;
      const box = this.stage.lastElementChild.querySelector(".screen").getBoundingClientRect();
      slider.value = (100 * (event.clientX - box.left)) / box.width;
      this.wipe(Number(slider.value));
    };
    this.stage.addEventListener("pointerdown", move);
    this.stage.addEventListener("pointermove", move);
    return this.slider;
  }

  /** Shows B on the right of `percent` of the width and A on the left. */
  wipe(percent) {
    this.stage.lastElementChild.querySelector(".screen").style.clipPath = `inset(0 0 0 ${percent}%)`;
    this.edge.style.left = `${percent}%`;
  }

  setMode(mode) {
    const wipes = mode === "wipe";
    this.stage.className = `stage two ${mode}`;
    this.slider.hidden = !wipes;
    const [below, above] = Array.from(this.stage.querySelectorAll(".screen"));
    const widths = [below, above].map((screen, place) => (screen.dataset.width ??= this.players[place].element.parentElement.style.width));
    above.style.aspectRatio = this.videos[wipes ? 0 : 1].aspect;
    above.style.width = widths[wipes ? 0 : 1];
    if (wipes) {
      below.append(this.edge);
      this.wipe(Number(byId("divider").value));
    } else {
      this.edge.remove();
      above.style.clipPath = "";
    }
  }

  transport() {
    const clock = this.clock;
    const longest = Math.max(...this.videos.map((video) => video.fps));
    this.step = (frames) => {
      this.pause();
      // Half a frame beyond its beginning: rounding must not show the one before.
      clock.seek((Math.floor(clock.time * longest + 1e-6) + frames + 0.5) / longest);
    };
    this.toggle = make("button", { type: "button", id: "toggle", class: "primary", click: () => this.playOrPause() }, "Play");
    this.scrub = make("input", { type: "range", id: "time", min: 0, step: 0.001, max: clock.length, value: 0, "aria-label": "Time" });
    this.scrub.addEventListener("input", () => {
      this.pause();
      clock.seek(Number(this.scrub.value));
    });
    this.output = make("output", { for: "time" });
    const speed = make("select", { "aria-label": "Speed", change: () => (clock.speed = Number(speed.value)) });
    speed.append(...SPEEDS.map((value) => make("option", { value, selected: value === 1 }, `${value}×`)));
    return make(
      "div",
      { class: "transport" },
      make(
        "div",
        { class: "group" },
        make("button", { type: "button", "aria-label": "One frame back", click: () => this.step(-1) }, "−1"),
        this.toggle,
        make("button", { type: "button", "aria-label": "One frame forward", click: () => this.step(1) }, "+1"),
      ),
      make("div", { class: "scrub" }, this.scrub, ...this.videos.map((video, place) => this.windowsOf(video, place))),
      this.output,
      speed,
    );
  }

  /** A button for every window, which goes to the seam before it. */
  windowsOf(video, place) {
    if (video.pieces.length < 2) return null;
    const whose = this.videos.length > 1 ? `${"AB"[place]}, ` : "";
    const strip = make("div", { class: "windows", role: "group", "aria-label": `${whose}windows` });
    for (const piece of video.pieces) {
      const name = piece.label === "0" ? "continued video" : `window ${piece.label}`;
      const title = `${whose}${name}: frames ${piece.begin}–${piece.begin + piece.frames - 1}`;
      const go = () => this.clock.seek((piece.begin + 0.5) / video.fps);
      const button = make("button", { type: "button", title, "aria-label": title, class: piece.jumps ? "jump" : "", click: go }, piece.label);
      button.style.flexGrow = piece.frames / video.fps;
      piece.button = button;
      strip.append(button);
    }
    const rest = make("span", { class: "rest" });
    rest.style.flexGrow = this.clock.length - video.length;
    if (this.clock.length > video.length) strip.append(rest);
    return strip;
  }

  show(time) {
    if (!this.output) return;
    if (document.activeElement !== this.scrub || this.clock.running) this.scrub.value = time;
    const frames = this.videos.map((video) => clamp(Math.floor(time * video.fps + 1e-6), 0, Math.max(0, video.frames - 1)));
    const frame = new Set(frames).size === 1 ? frames[0] : frames.join(" and ");
    this.output.textContent = `${time.toFixed(2)} of ${this.clock.length.toFixed(2)} s, frame ${frame}`;
    this.videos.forEach((video, place) => {
      for (const piece of video.pieces) {
        const now = frames[place] >= piece.begin && frames[place] < piece.begin + piece.frames;
        piece.button?.classList.toggle("now", now);
      }
    });
  }

  playOrPause() {
    if (this.clock.running) this.pause();
    else {
      if (this.clock.time >= this.clock.length - 0.05) this.clock.seek(0);
      this.clock.start();
      this.toggle.textContent = "Pause";
    }
  }

  pause() {
    this.clock.stop();
    this.toggle.textContent = "Play";
  }

  info() {
    const info = make("div", { class: "info" });
    const same = this.videos.every((video) => video.prompt === this.videos[0].prompt);
    const prompts = same ? this.videos.slice(0, 1) : this.videos;
    prompts.forEach((video, place) => {
      if (!video.prompt) return;
      const title = same ? "Prompt" : `Prompt of ${"AB"[place]}`;
      info.append(make("section", { class: same ? "wide" : "" }, make("h3", {}, title), make("p", { class: "prompt" }, video.prompt)));
    });
    for (const video of this.videos) {
      for (const warning of video.warnings) info.append(make("p", { class: "warning wide" }, this.tag(video) + warning));
    }
    const commands = this.videos.filter((video) => video.script).map((video) => this.command(video));
    const windows = this.videos.filter((video) => video.pieces.length > 1).map((video) => this.windowTable(video));
    const figures = [this.figures(), ...windows];
    info.append(...(this.videos.length > 1 ? [this.settings(), ...figures, ...commands] : [...commands, ...figures, this.settings()]));
    return info;
  }

  tag(video) {
    return this.videos.length > 1 ? `${"AB"[this.videos.indexOf(video)]}: ` : "";
  }

  command(video) {
    const code = make("code", {}, commandOf(video));
    const button = make("button", { type: "button" }, "Copy");
    button.addEventListener("click", async () => {
      button.textContent = (await copy(code.textContent, code)) ? "Copied" : "Select and copy";
      setTimeout(() => (button.textContent = "Copy"), 2000);
    });
    const hint = "Flags after it change what is made, as --seed 8.";
    return make(
      "section",
      { class: "wide" },
      make("h3", {}, `${this.tag(video)}Make it again`),
      make("div", { class: "command" }, code, button),
      make("p", { class: "muted" }, hint),
    );
  }

  table(rows, title, open = true) {
    const body = rows.map(([name, ...values]) => {
      const differs = values.length > 1 && values[0] !== values[1];
      return make("tr", { class: differs ? "differs" : "" }, make("th", { scope: "row" }, name), ...values.map((value) => make("td", {}, value)));
    });
    const head = this.videos.length > 1 ? make("thead", {}, make("tr", {}, make("th"), make("th", { scope: "col" }, "A"), make("th", { scope: "col" }, "B"))) : null;
    const table = make("div", { class: "scroll" }, make("table", {}, head, make("tbody", {}, ...body)));
    if (open) return make("section", {}, make("h3", {}, title), table);
    return make("section", {}, make("details", {}, make("summary", {}, title), table));
  }

  figures() {
    const rows = [
      ["File", (video) => `${video.name}.mp4`],
      ["Seed", (video) => setting(video, "seed")],
      ["Frames", (video) => (video.frames ? `${video.frames}, ${video.length.toFixed(2)} s at ${video.fps} per second` : "")],
      ["Size", (video) => (video.width && video.height ? `${video.width}×${video.height}` : "")],
      ["Made in", (video) => (video.seconds.total != null ? duration(video.seconds.total) : "")],
      ["Loading", (video) => (video.seconds.loading ? duration(video.seconds.loading) : "")],
      ["Peak memory", (video) => Object.entries(video.memory).map(([name, size]) => `${name} ${size.toFixed(1)} GiB`).join(", ")],
      ["Brightness", (video) => this.mean(video, "brightness")],
      ["Saturation", (video) => this.mean(video, "saturation")],
    ];
    const filled = rows.map(([name, value]) => [name, ...this.videos.map(value)]);
    return this.table(filled.filter(([, ...values]) => values.some(Boolean)), "Figures");
  }

  mean(video, name) {
    const pieces = video.pieces.filter((piece) => piece[name] != null);
    const frames = pieces.reduce((sum, piece) => sum + piece.frames, 0);
    const drift = driftOf(video);
    if (!frames) return "";
    const mean = pieces.reduce((sum, piece) => sum + piece.frames * piece[name], 0) / frames;
    return mean.toFixed(3) + (drift ? `, ${signed(drift[name])} from first to last window` : "");
  }

  windowTable(video) {
    const titles = ["Window", "Frames", "Brightness", "Saturation", "Seam"];
    const rows = video.pieces.map((piece, place) => {
      const figures = ["brightness", "saturation", "seam"].map((name) => make("td", { class: name === "seam" && piece.jumps ? "number bad" : "number" }, name === "seam" && !place ? "" : piece[name]?.toFixed(3) ?? ""));
      const name = piece.label === "0" ? "continued video" : piece.label;
      return make("tr", {}, make("td", {}, name), make("td", {}, `${piece.begin}–${piece.begin + piece.frames - 1}`), ...figures);
    });
    const head = make("thead", {}, make("tr", {}, ...titles.map((title, place) => make("th", { scope: "col", class: place > 1 ? "number" : "" }, title))));
    const table = make("table", { class: "windows-table" }, head, make("tbody", {}, ...rows));
    return make("section", {}, make("h3", {}, `${this.tag(video)}Windows`), make("div", { class: "scroll" }, table));
  }

  settings() {
    const names = new Set([...this.videos.flatMap((video) => Object.keys(video.settings)), ...Object.keys(data.common.settings)]);
    const rows = Array.from(names).sort().map((name) => [name, ...this.videos.map((video) => setting(video, name))]);
    const about = new Set([...this.videos.flatMap((video) => Object.keys(video.about)), ...Object.keys(data.common.about)]);
    for (const name of about) rows.push([name, ...this.videos.map((video) => video.about[name] ?? data.common.about[name] ?? "")]);
    const differs = ([, one, other]) => other !== undefined && one !== other;
    rows.sort((one, other) => differs(other) - differs(one));
    const changed = rows.filter(differs);
    if (!changed.length) return this.table(rows, "All settings and versions", false);
    const section = this.table(changed, "What differs");
    section.append(...this.table(rows.slice(changed.length), "What is the same", false).childNodes);
    return section;
  }

  close() {
    this.pause();
    for (const player of this.players) player.remove();
  }
}

/** Names of the settings, and "prompt", in which videos differ. */
function differing(videos) {
  const names = new Set(["prompt", ...videos.flatMap((video) => Object.keys(video.settings))]);
  return Array.from(names).filter((name) => new Set(videos.map((video) => setting(video, name))).size > 1);
}
