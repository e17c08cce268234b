// Draws a segmentation (dcp_clip/app/view.py) into `element`: the photograph with its regions, a
// label at the pointer, and the table of shares. Gradio calls this once for each viewer; `props`
// and `watch` are Gradio's.

const tag = (name, className, text) => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text; // names come from users: never as HTML
  return node;
};
const percent = (value) =>
  value > 0 && value < 0.0005 ? "< 0.1 %" : `${(100 * value).toFixed(1)} %`;

const pixelsOf = async (url) => {
  const image = new Image();
  image.src = url;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = image.naturalWidth;
  canvas.height = image.naturalHeight;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(image, 0, 0);
  return context.getImageData(0, 0, canvas.width, canvas.height);
};

// Pictures whose longer side is smaller than this are enlarged; longer strips than this ratio scroll
// instead of becoming lines.
const SMALL = 320, STRIP = 8;

let opacity = 0.6;
let turn = 0; // of the latest value, because pictures are decoded asynchronously
const status = tag("div", "viewer-status"); // what a screen reader says about a new result
status.setAttribute("role", "status");

const show = async (value) => {
  const mine = ++turn;
  if (!value || !value.photo) {
    const empty = tag("div", "viewer-empty");
    empty.append(tag("div", "viewer-empty-mark"), tag("p", "", "The regions appear here."));
    status.textContent = "";
    element.replaceChildren(empty, status);
    element.dataset.state = "empty";
    return;
  }
  const [photo, coded] = await Promise.all([pixelsOf(value.photo), pixelsOf(value.labels)]);
  if (mine === turn) draw(value, photo, coded);
};

const draw = (value, photo, coded) => {
  const { width, height } = photo;
  const count = width * height;
  const labels = new Uint16Array(count);
  const confidence = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    labels[i] = coded.data[4 * i] + 256 * coded.data[4 * i + 1];
    confidence[i] = coded.data[4 * i + 2];
  }
  const edge = new Uint8Array(count);
  for (let i = 0; i < count; i++) {
    if ((i + 1) % width && labels[i] !== labels[i + 1]) edge[i] = 1;
    if (i + width < count && labels[i] !== labels[i + width]) edge[i] = 1;
  }
  const colors = value.regions.map(({ color }) =>
    [1, 3, 5].map((start) => parseInt(color.slice(start, start + 2), 16)));

  const canvas = tag("canvas", "viewer-canvas");
  canvas.width = width;
  canvas.height = height;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "The image with its regions; the table lists their names.");
  const enlarged = SMALL / Math.max(width, height);
  if (enlarged > 1) canvas.style.width = `${Math.round(enlarged * width)}px`;
  if (enlarged > 2) canvas.classList.add("pixelated");
  if (width > STRIP * height) canvas.classList.add("wide");
  if (height > STRIP * width) canvas.classList.add("tall");
  const context = canvas.getContext("2d");
  const picture = context.createImageData(width, height);
  const label = tag("div", "viewer-label");
  const frame = tag("div", "viewer-frame"), stage = tag("div", "viewer-stage");
  stage.append(canvas);
  frame.append(stage, label);

  const paint = (selected = -1) => {
    const from = photo.data, to = picture.data;
    for (let i = 0; i < count; i++) {
      const region = labels[i], at = 4 * i;
      const faint = selected >= 0 && region !== selected;
      let alpha = faint ? 0.25 * opacity : opacity;
      let [r, g, b] = colors[region];
      if (edge[i] && opacity > 0) { // a white line between regions
        r = g = b = 255;
        alpha = faint ? 0.3 : 0.85;
      } else if (value.regions[region].unknown) { // grey stripes
        const x = i % width, y = (i - x) / width;
        if ((x + y) % 14 < 7) r = g = b = 205;
      }
      const fade = faint ? 0.55 : 1;
      for (let channel = 0; channel < 3; channel++) {
        const ink = channel === 0 ? r : channel === 1 ? g : b;
        const base = faint ? 255 - fade * (255 - from[at + channel]) : from[at + channel];
        to[at + channel] = (1 - alpha) * base + alpha * ink;
      }
      to[at + 3] = 255;
    }
    context.putImageData(picture, 0, 0);
  };

  let current = -1;
  const select = (region) => {
    if (region === current) return;
    current = region;
    paint(region);
    rows.forEach((row, i) => row.classList.toggle("selected", i === region));
  };
  const leave = () => {
    select(-1);
    label.classList.remove("visible");
  };
  const point = (event) => {
    const box = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * height);
    if (x < 0 || y < 0 || x >= width || y >= height) return leave();
    const at = y * width + x, region = value.regions[labels[at]];
    select(labels[at]);
    const swatch = tag("span", "viewer-swatch");
    swatch.style.background = region.color;
    label.replaceChildren(
      swatch, tag("b", "", region.name), tag("span", "", `confidence ${confidence[at]} %`));
    if (region.unknown) swatch.classList.add("unknown");
    label.classList.add("visible");
    const room = frame.getBoundingClientRect();
    const left = event.clientX - room.left, top = event.clientY - room.top;
    label.style.left = `${Math.max(0, Math.min(left + 14, room.width - label.offsetWidth - 4))}px`;
    label.style.top = `${top + 18 + label.offsetHeight > room.height ?
      Math.max(0, top - label.offsetHeight - 10) : top + 18}px`;
  };
  canvas.addEventListener("pointermove", point);
  canvas.addEventListener("pointerdown", point);
  // The label of a tap stays when the finger leaves.
  canvas.addEventListener("pointerleave", (event) => event.pointerType === "touch" || leave());

  const bar = tag("div", "viewer-bar"), overlay = tag("label", "viewer-overlay");
  const range = tag("input");
  Object.assign(range, { type: "range", min: 0, max: 100, value: 100 * opacity });
  range.addEventListener("input", () => {
    opacity = range.value / 100;
    paint(current);
  });
  const names = value.names === 1 ? "1 name" : `${value.names.toLocaleString("en")} names`;
  overlay.append(tag("span", "", "Overlay"), range);
  bar.append(overlay, tag("span", "viewer-time", `${names} · ${value.milliseconds} ms`));

  const table = tag("table", "viewer-table");
  table.setAttribute("aria-label", "Regions");
  const head = tag("tr");
  for (const title of ["name", "share", "confidence"]) {
    const cell = tag("th", "", title);
    cell.scope = "col";
    head.append(cell);
  }
  table.append(tag("thead"), tag("tbody"));
  table.tHead.append(head);
  const rows = value.regions.map((region, i) => {
    const row = tag("tr");
    const name = tag("td"), share = tag("td"), fill = tag("span", "viewer-fill");
    const swatch = tag("span", region.unknown ? "viewer-swatch unknown" : "viewer-swatch");
    swatch.style.background = fill.style.background = region.color;
    fill.style.width = `${Math.max(0.5, 100 * region.share)}%`;
    name.append(swatch, tag("span", "viewer-name", region.name));
    name.title = region.name;
    const track = tag("span", "viewer-track");
    track.append(fill);
    const part = tag("div", "viewer-share");
    part.append(track, tag("span", "", percent(region.share)));
    share.append(part);
    // The confidence of unknown pixels is that of names that were rejected.
    const sure = region.unknown ? "–" : `${Math.round(100 * region.confidence)} %`;
    row.append(name, share, tag("td", "", sure));
    row.tabIndex = 0;
    for (const event of ["pointerenter", "focus"]) row.addEventListener(event, () => select(i));
    for (const event of ["pointerleave", "blur"]) row.addEventListener(event, leave);
    table.tBodies[0].append(row);
    return row;
  });
  const list = tag("div", "viewer-list");
  list.append(table);
  paint();
  element.replaceChildren(frame, bar, list, status);
  status.textContent =
    `Result: ${value.regions.map(({ name, share }) => `${name} ${percent(share)}`).join(", ")}`;
  element.dataset.state = "shown";
  element.dataset.regions = value.regions.map(({ name }) => name).join("; ");
};

watch("value", () => show(props.value));
show(props.value);
