// The dialog in which a video opens, or two.

const dialog = byId("viewer");
let viewer = null;

function open(videos) {
  playAll(false);
  viewer?.close();
  viewer = new Viewer(videos);
  const title = make("h2", { id: "viewer-title" }, videos.length > 1 ? "Compare A and B" : videos[0].name);
  const close = make("button", { type: "button", click: () => dialog.close() }, "Close");
  const head = make("div", { class: "viewer-head" }, title, ...(videos.length > 1 ? [modes()] : [neighbours(videos[0])]), close);
  dialog.replaceChildren(head, viewer.element);
  if (!dialog.open) dialog.showModal();
  dialog.scrollTop = 0;
  viewer.toggle.focus();
  if (!still.matches) viewer.playOrPause();
}

function modes() {
  const option = (mode, text, checked) => make("label", {}, make("input", { type: "radio", name: "mode", value: mode, checked, change: () => viewer.setMode(mode) }), text);
  return make("fieldset", { class: "modes", "aria-label": "View" }, option("side", "Side by side", true), option("wipe", "Overlay with slider", false));
}

function neighbours(video) {
  const at = order.indexOf(video);
  const go = (text, place) => make("button", { type: "button", disabled: !order[place], click: () => open([order[place]]) }, text);
  return make("div", { class: "group" }, go("Previous", at - 1), go("Next", at + 1));
}

dialog.addEventListener("close", () => {
  if (dialog.open) return; // opened again since
  const [video] = viewer.videos;
  viewer.close();
  viewer = null;
  dialog.replaceChildren();
  tiles.get(video)?.querySelector(".picture").focus();
});
dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
// A press on the dialog's controls keeps its own meaning.
document.addEventListener("keydown", (event) => {
  if (!viewer || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select")) return;
  const steps = { ArrowLeft: -1, ArrowRight: 1 };
  if (event.key === " " && !event.target.matches("button, summary")) viewer.playOrPause();
  else if (steps[event.key]) viewer.step(steps[event.key]);
  else return;
  event.preventDefault();
});
