// Videos that play in step: one clock, which every video follows by its own frame rate and length.

const HOLD = 0.6; // seconds that last frames stay before all begin again
const PATIENCE = 1500; // milliseconds that the clock waits for videos that load

class Clock {
  constructor(changed = () => {}) {
    this.players = new Set();
    this.changed = changed; // called with the time when it changes
    this.time = 0;
    this.speed = 1;
    this.running = false;
    this.frame = 0;
  }

  /** Seconds of the longest video. */
  get length() {
    return Math.max(0.04, ...Array.from(this.players, (player) => player.length));
  }

  start() {
    this.running = true;
    this.last = this.began = performance.now();
    this.wake();
  }

  stop() {
    this.running = false;
    this.wake();
  }

  seek(time) {
    this.time = clamp(time, 0, this.length);
    this.changed(this.time);
    this.wake();
  }

  wake() {
    if (!this.frame) this.frame = requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.frame = 0;
    const players = Array.from(this.players);
    const waits = this.running && this.time === 0 && now - this.began < PATIENCE && players.some((player) => player.loads());
    if (this.running && !waits) {
      this.time += Math.min((now - this.last) / 1000, 0.25) * this.speed; // hidden pages have no frames
      if (this.time >= this.length + HOLD) [this.time, this.began] = [0, now];
      this.changed(Math.min(this.time, this.length));
    }
    this.last = now;
    const unsettled = players.filter((player) => !player.follow(this.time, this.running && !waits, this.speed));
    if (this.running || unsettled.length) this.wake();
  }
}

/** A video element inside `screen` that follows a clock. */
class Player {
  constructor(video, screen, { preload = "auto", shown = () => {} } = {}) {
    this.length = video.length;
    this.fps = video.fps;
    this.shown = shown;
    this.broken = false;
    this.lag = 0;
    // muted: nothing here has sound, and browsers start only silent videos by themselves
    this.element = make("video", { src: video.src, preload, playsinline: true, tabindex: "-1", "aria-hidden": "true" });
    this.element.muted = true;
    this.element.addEventListener("loadeddata", () => this.element.classList.add("ready"));
    this.element.addEventListener("error", () => {
      if (this.broken || !this.element.hasAttribute("src")) return;
      this.broken = true;
      screen.append(make("span", { class: "failed" }, "This video cannot be played here."));
    });
    screen.append(this.element);
  }

  loads() {
    return !this.broken && this.element.readyState < 2;
  }

  /** Moves the video to the clock's time -> whether it is there. */
  follow(time, running, speed) {
    const video = this.element;
    if (this.broken) return true;
    if (video.readyState < 1) return false;
    const last = Math.max(0, this.length - 0.5 / this.fps); // in the middle of the last frame
    const goal = Math.min(time, last);
    const off = video.currentTime - goal;
    this.shown(this.length ? goal / last : 0);
    if (!running || goal === last) {
      if (!video.paused) video.pause();
      if (Math.abs(off) < 0.4 / this.fps) return !video.seeking;
      if (!video.seeking) video.currentTime = goal;
      return false;
    }
    if (video.seeking) return false;
    if (off < -0.2 * Math.max(1, speed)) this.seek(Math.min(goal + this.lag * speed, last));
    else if (off > 0.5) this.seek(goal);
    else if (off > 0.08) video.pause(); // until the clock is there
    else {
      video.playbackRate = speed * clamp(1 - off, 0.85, 1.15);
      if (video.paused) video.play().catch(() => {});
    }
    return true;
  }

  /** Moves the video, and measures how long that takes: a busy machine would never get where the clock was. */
  seek(time) {
    const began = performance.now();
    const arrived = () => (this.lag = Math.min((performance.now() - began) / 1000, 1));
    this.element.addEventListener("seeked", arrived, { once: true });
    this.element.currentTime = time;
  }

  /** Frees the decoder. */
  remove() {
    this.element.pause();
    this.element.removeAttribute("src");
    this.element.load();
    this.element.remove();
  }
}
