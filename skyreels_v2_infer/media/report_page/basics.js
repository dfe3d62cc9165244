"use strict";
// Text from files reaches the document as text nodes and attributes only, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);

/** Makes an element. `attributes`: by name; a function is a listener ("click", ...), true an empty attribute. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null && child !== false));
  return element;
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${Math.floor((seconds % 3600) / 60)} min`;
}

const counted = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`;
const signed = (value) => (Number(value.toFixed(2)) < 0 ? "−" : "+") + Math.abs(value).toFixed(2);
const clamp = (value, least, most) => Math.min(Math.max(value, least), most);

/** A setting of a video as text, also one that all videos share. */
const setting = (video, name) => (name === "prompt" ? video.prompt : video.settings[name] ?? data.common.settings[name] ?? "");

/** Sorts texts by value if both are numbers. */
function compareTexts(one, other) {
  const difference = Number(one) - Number(other);
  return one !== "" && other !== "" && !Number.isNaN(difference) ? difference : one < other ? -1 : Number(one > other);
}

for (const video of data.videos) {
  video.frames ??= 0;
  video.fps ??= 24;
  video.length = video.frames / video.fps;
  video.aspect = video.width && video.height ? video.width / video.height : 16 / 9;
  let begin = 0;
  for (const piece of video.pieces) {
    piece.begin = begin;
    begin += piece.frames;
  }
  // A continued video is a piece as well, the first; windows are numbered from 1.
  video.pieces.forEach((piece, place) => {
    piece.label = video.continued ? (place ? String(place) : "0") : String(place + 1);
    piece.jumps = place > 0 && piece.seam > 0.1;
  });
}

/** How the look changes from the first to the last window, or null. */
function driftOf(video) {
  const windows = video.pieces.slice(video.continued ? 1 : 0);
  const [first, last] = [windows[0], windows.at(-1)];
  if (video.pieces.length < 2 || first?.brightness == null || last.saturation == null) return null;
  const seams = video.pieces.slice(1).map((piece) => piece.seam ?? 0);
  return {
    brightness: last.brightness - first.brightness,
    saturation: last.saturation - first.saturation,
    seam: Math.max(...seams),
  };
}

/** A word for a shell. `address`: a file name, percent-encoded. Bytes that cannot be typed are escaped. */
function shellWord(address) {
  const bytes = Array.from(address.replace(/%([0-9A-F]{2})/gi, (_, code) => String.fromCharCode(parseInt(code, 16))));
  const text = bytes.join("");
  if (/^[\w./:+@,-]+$/.test(text)) return text;
  let name;
  try {
    name = decodeURIComponent(address);
  } catch {
    name = null;
  }
  if (name !== null && !/[\p{C}\p{Zl}\p{Zp}]/u.test(name)) return `'${name.replaceAll("'", `'\\''`)}'`;
  const escaped = bytes.map((byte) => (/[\w./ -]/.test(byte) ? byte : `\\x${byte.charCodeAt(0).toString(16).padStart(2, "0")}`));
  return `$'${escaped.join("")}'`;
}

/** The command that makes a video again. From file:// it names the whole path. */
function commandOf(video) {
  let file = video.src;
  if (location.protocol === "file:") {
    const folder = location.pathname.replace(/[^/]*$/, "").replace(/^\/([A-Za-z]:)/, "$1");
    file = folder + file.slice(2);
  }
  return `python ${video.script} --replay ${shellWord(file)}`;
}

/** Copies a text; pages that come by http have no clipboard, but may copy a selection. */
async function copy(text, source) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(source);
    return document.execCommand("copy");
  }
}
