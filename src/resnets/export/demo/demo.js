// Classify photos in the browser. model.js brings MODEL, what the ONNX file says of itself and the
// file; runtime.js brings RUNTIME, ONNX Runtime Web. All names are inserted as text.
"use strict";

const FORM = MODEL.preprocess;
const MAX_ASPECT = 20; // as decode.py: a centre crop would see little of a longer strip
const STRIP = 256; // lines read at once: phones refuse a canvas of a whole large photo
const PRECISION = 2 ** 22; // of Pillow's fixed-point weights
const TOP = 5; // classes shown for a photo
const OPACITY = 0.6; // of the hottest place; with the colours as gradcam.py
const STOPS = [[0, 0, 96], [0, 128, 255], [255, 224, 0], [208, 0, 0]]; // cold to hot
const $ = (id) => document.getElementById(id);

// ---- from a file to the crop that the model sees, as resnets.tasks.decode makes it ----

/** Return the centre crop of a photo: uint8, row by row, channels last. */
async function cropPhoto(file) {
  const image = await openImage(file);
  const { crop, channels, fit } = FORM, short = Math.min(image.width, image.height);
  const axes = [image.width, image.height].map((length) => {
    const size = Math.trunc(fit === "stretch" ? FORM.resize : (FORM.resize * length) / short);
    return { length, size, places: triangles(length, size, halfEven((size - crop) / 2), crop) };
  });
  // Pillow 13 shrinks these from top to bottom first; between the passes values are rounded
  const isTall = image.height > 2 * image.width && axes[1].size < image.height;
  const [first, second] = isTall ? axes.reverse() : axes;
  const narrow = new Uint8Array(crop * second.length * channels);
  for (let start = 0; start < second.length; start += STRIP) {
    const lines = readLines(image, start, Math.min(STRIP, second.length - start), isTall);
    blend(lines, first, narrow, second.length, 1, start);
  }
  image.close();
  const pixels = new Uint8Array(crop * crop * channels);
  blend(narrow, second, pixels, isTall ? 1 : crop, isTall ? crop : 1, 0);
  return pixels;
}

/** Decode a photo upright, its colour profile ignored. */
async function openImage(file) {
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none" };
  const image = await createImageBitmap(file, options).catch(() => {
    throw Error("not an image that this browser can open (JPEG, PNG and WebP always work)");
  });
  if (Math.max(image.width, image.height) > MAX_ASPECT * Math.min(image.width, image.height))
    throw Error(`${image.width}×${image.height}: more than ${MAX_ASPECT} times longer than wide`);
  return image;
}

/** Round halves to the even number, as Python does. */
function halfEven(value) {
  return value % 1 === 0.5 ? 2 * Math.round(value / 2) : Math.round(value);
}

/** Return rows, or columns, of an image: transparency on white, grey by ITU-R 601 for a grey model. */
function readLines(image, start, count, areColumns) {
  const [width, height] = areColumns ? [count, image.height] : [image.width, count];
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  context.drawImage(image, areColumns ? -start : 0, areColumns ? 0 : -start);
  const { data } = context.getImageData(0, 0, width, height), { channels } = FORM;
  const pixels = new Uint8Array(width * height * channels);
  for (let y = 0, from = 0; y < height; y++)
    for (let x = 0; x < width; x++, from += 4) {
      const to = (areColumns ? x * height + y : y * width + x) * channels;
      if (channels === 1)
        pixels[to] = (19595 * data[from] + 38470 * data[from + 1] + 7471 * data[from + 2] + 32768) >> 16;
      else for (let k = 0; k < 3; k++) pixels[to + k] = data[from + k];
    }
  return pixels;
}

/** Return, for places of a resized axis, where each begins and what each pixel adds (Pillow). */
function triangles(from, to, first, count) {
  const scale = from / to, support = Math.max(scale, 1);
  return Array.from({ length: count }, (_, index) => {
    const center = (first + index + 0.5) * scale;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), from);
    const weights = Array.from({ length: end - start }, (_, place) =>
      Math.max(1 - Math.abs((start + place - center + 0.5) / support), 0));
    const sum = weights.reduce((total, weight) => total + weight);
    return { start, weights: weights.map((weight) => Math.trunc(0.5 + (weight / sum) * PRECISION)) };
  });
}

/** Resize lines along one axis; the steps say where the pixels of the result lie. */
function blend(pixels, { length, places }, out, placeStep, lineStep, firstLine) {
  const { channels } = FORM, lines = pixels.length / length / channels;
  places.forEach(({ start, weights }, place) => {
    for (let line = 0; line < lines; line++)
      for (let k = 0; k < channels; k++) {
        let sum = PRECISION / 2, from = (line * length + start) * channels + k;
        for (const weight of weights) { sum += weight * pixels[from]; from += channels; }
        const to = place * placeStep + (firstLine + line) * lineStep;
        out[to * channels + k] = Math.min(sum / PRECISION, 255);
      }
  });
}

// ---- the model ----

let ort, session;

/** Start the runtime, then the model. */
async function start() {
  const packed = new Blob([fromBase64(RUNTIME.wasm)]).stream();
  const wasm = await new Response(packed.pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const address = URL.createObjectURL(new Blob([RUNTIME.module], { type: "text/javascript" }));
  ort = await import(address);
  Object.assign(ort.env.wasm, { wasmBinary: wasm, numThreads: 1 });
  session = await ort.InferenceSession.create(fromBase64(MODEL.onnx));
  MODEL.onnx = RUNTIME.wasm = null; // the memory of a phone is small
}

function fromBase64(text) {
  const binary = atob(text), bytes = new Uint8Array(binary.length);
  for (let place = 0; place < bytes.length; place++) bytes[place] = binary.charCodeAt(place);
  return bytes;
}

/** Classify a crop: probabilities (K), classes from the best, class maps (K, height, width). */
async function infer(crop) {
  const { crop: side, channels } = FORM;
  const input = new ort.Tensor("float32", normalise(crop), [1, channels, side, side]);
  const { logits, class_maps: maps } = await session.run({ images: input });
  const probabilities = softmax(logits.data), [, , height, width] = maps.dims;
  const best = [...probabilities.keys()].sort((a, b) => probabilities[b] - probabilities[a]);
  return { probabilities, best, maps: maps.data, height, width };
}

function normalise(crop) {
  const { channels, mean, std } = FORM, planes = new Float32Array(crop.length);
  for (let channel = 0, to = 0; channel < channels; channel++)
    for (let from = channel; from < crop.length; from += channels)
      planes[to++] = (crop[from] / 255 - mean[channel]) / std[channel];
  return planes;
}

function softmax(logits) {
  const peak = Math.max(...logits);
  const powers = Array.from(logits, (logit) => Math.exp((logit - peak) / MODEL.temperature));
  const sum = powers.reduce((total, power) => total + power);
  return powers.map((power) => power / sum);
}

// ---- answers ----

let answers = [], shown = null, queue = Promise.resolve();
// a photo that is dropped before the model is there shall not take the page's place
document.ondragover = document.ondrop = (event) => event.preventDefault();

const percent = (share) => `${(100 * share).toFixed(1)}%`;
const isUnsure = ({ best, probabilities }) => probabilities[best[0]] < $("threshold").value / 100;

/** Classify files one after the other, after those that came before. */
function classify(files) {
  queue = queue.then(async () => {
    for (const [index, file] of files.entries()) {
      $("status").className = "";
      say(`Photo ${index + 1} of ${files.length} …`);
      const answer = { name: file.name };
      try {
        answer.crop = await cropPhoto(file);
        Object.assign(answer, await infer(answer.crop));
      } catch (error) {
        answer.error = error.message;
      }
      answers.push(answer);
      addRow(answer);
      if (!shown || index === 0 || (shown.answer.error && !answer.error)) show(answer);
    }
    $("several").hidden = answers.length < 2;
    say(summary(answers.slice(-files.length)));
    $("status").className = files.length === 1 ? "unseen" : ""; // it stands below, but not aloud
  });
}

/** Say in a sentence what came out. */
function summary(fresh) {
  if (fresh.length === 1) return `${fresh[0].name}: ${verdict(fresh[0])}`;
  const bad = fresh.filter((answer) => answer.error).length;
  return `${fresh.length - bad} photos classified` + (bad ? `; ${bad} could not be opened` : "");
}

function verdict(answer) {
  if (answer.error) return `Not classified: ${answer.error}.`;
  const best = answer.best[0], guess = `${MODEL.classes[best]}, ${percent(answer.probabilities[best])}`;
  return isUnsure(answer) ? `Unsure: perhaps ${guess}, which is below ${$("threshold").value}%` : guess;
}

/** Return a CSV file with the columns and the caution of `resnets predict --output`. */
function toCsv() {
  const fixed = ["path", "predicted", "confidence", "error"];
  const names = MODEL.classes.map((name) => (fixed.includes(name) ? `${name} (class)` : name));
  const rows = answers.map((answer) => {
    if (answer.error) return [answer.name, "", "", answer.error, ...names.map(() => "")];
    const rounded = answer.probabilities.map((share) => Number(share.toFixed(6)));
    const predicted = isUnsure(answer) ? "unsure" : MODEL.classes[answer.best[0]];
    return [answer.name, predicted, rounded[answer.best[0]], "", ...rounded];
  });
  return [[...fixed, ...names], ...rows].map((row) => row.map(cell).join(",") + "\n").join("");
}

/** Quote a value; a spreadsheet must not compute a name that starts as a formula does. */
function cell(value) {
  const hex = (control) => `\\x${control.charCodeAt(0).toString(16).padStart(2, "0")}`;
  let text = String(value).replace(/[\x00-\x1f\x7f-\x9f]/g, hex);
  if (/^[=+\-@\uff1d\uff0b\uff0d\uff20]/.test(text)) text = `'${text}`;
  return /[,"]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

// ---- what is seen ----

function make(tag, text = "", values = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, values);
}

function say(text) {
  $("status").textContent = text;
}

/** Draw a crop on a canvas of its size. */
function drawCrop(canvas, crop) {
  const { crop: side, channels } = FORM, image = new ImageData(side, side);
  for (let pixel = 0; pixel < side * side; pixel++) {
    for (let k = 0; k < 3; k++) image.data[4 * pixel + k] = crop[channels * pixel + (k % channels)];
    image.data[4 * pixel + 3] = 255;
  }
  Object.assign(canvas, { width: side, height: side }).getContext("2d").putImageData(image, 0, 0);
  return canvas;
}

/** Lay over the picture what speaks for a class; return whether anything does. */
function drawHeat(canvas, answer, k) {
  const { width, height, maps } = answer, area = height * width;
  const map = maps.subarray(k * area, (k + 1) * area), peak = Math.max(...map);
  const image = new ImageData(width, height);
  map.forEach((value, place) => {
    const level = Math.max(value, 0) / (peak > 0 ? peak : 1), at = level * (STOPS.length - 1);
    const low = Math.min(Math.trunc(at), STOPS.length - 2);
    const mixed = STOPS[low].map((c, i) => c + (at - low) * (STOPS[low + 1][i] - c));
    image.data.set([...mixed, 255 * OPACITY * level], 4 * place);
  });
  const small = new OffscreenCanvas(width, height);
  small.getContext("2d").putImageData(image, 0, 0);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(small, 0, 0, canvas.width, canvas.height);
  return peak > 0;
}

/** Show one answer large, with the heat of a class. */
function show(answer, k = answer.best?.[0]) {
  shown = { answer, k };
  $("detail").hidden = false;
  $("name").textContent = answer.name;
  $("verdict").textContent = verdict(answer);
  $("verdict").className = answer.error ? "bad" : "";
  for (const row of $("rows").children) row.ariaCurrent = row.answer === answer;
  $("picture").parentElement.hidden = Boolean(answer.error);
  $("best").replaceChildren(...(answer.best ?? []).slice(0, TOP).map(choice));
  drawPicture();

  function choice(index) {
    const share = answer.probabilities[index], item = make("li");
    const button = make("button", "", { ariaPressed: index === k });
    button.append(make("span", MODEL.classes[index]), make("span", percent(share)),
      make("meter", "", { value: share, ariaHidden: true }));
    button.onclick = () => { show(answer, index); $("best").querySelector("[aria-pressed=true]").focus(); };
    item.append(button);
    return item;
  }
}

/** Draw the picture that is shown, at a size at which a heat map is smooth. */
function drawPicture() {
  const { answer, k } = shown, picture = $("picture"), side = Math.max(FORM.crop, 320);
  $("caption").textContent = "";
  if (answer.error) return;
  const crop = drawCrop(new OffscreenCanvas(1, 1), answer.crop), name = MODEL.classes[k];
  Object.assign(picture, { width: side, height: side }).getContext("2d").drawImage(crop, 0, 0, side, side);
  picture.ariaLabel = `${answer.name}, as the model sees it`;
  if (!$("heat").checked) return;
  const isAny = drawHeat(picture, answer, k);
  $("caption").textContent = isAny
    ? `Red shows which parts of the picture speak most for ${name}. Choose a class to see its own.`
    : `No part of the picture speaks for ${name}.`;
}

/** Add an answer to the table. */
function addRow(answer) {
  const row = make("tr", "", { answer }), name = make("button", answer.name);
  name.onclick = () => { show(answer); $("detail").scrollIntoView({ block: "nearest" }); };
  const cells = [0, 1, 2, 3].map(() => make("td"));
  if (answer.crop) cells[0].append(drawCrop(make("canvas", "", { ariaHidden: true }), answer.crop));
  cells[1].append(name);
  cells[3].className = "number";
  row.append(...cells);
  $("rows").append(row);
  fillRow(row);
}

function fillRow({ answer, cells }) {
  if (answer.error) {
    Object.assign(cells[2], { className: "bad", textContent: answer.error, colSpan: 2 });
    cells[3]?.remove();
    return;
  }
  const [best] = answer.best;
  cells[2].textContent = (isUnsure(answer) ? "unsure, perhaps " : "") + MODEL.classes[best];
  cells[3].textContent = percent(answer.probabilities[best]);
}

/** Say what the threshold means, and judge all answers by it. */
function applyThreshold() {
  const { value } = $("threshold");
  $("level").textContent = `${value}%`;
  $("reason").textContent = "The probabilities are calibrated on the validation photos: there, of " +
    `100 answers at ${value}%, about ${100 - value} are wrong, and more below.`;
  [...$("rows").children].forEach(fillRow);
  if (shown) show(shown.answer, shown.k);
}

function save() {
  const address = URL.createObjectURL(new Blob([toCsv()], { type: "text/csv" }));
  make("a", "", { href: address, download: "answers.csv" }).click();
  setTimeout(URL.revokeObjectURL, 60000, address);
}

function clear() {
  answers = [];
  shown = null;
  $("rows").replaceChildren();
  $("detail").hidden = $("several").hidden = true;
  say("");
}

// ---- beginning ----

function describe() {
  const { classes, architecture, hashes } = MODEL, most = 12;
  const more = classes.length > most ? ` and ${classes.length - most} more` : "";
  $("classes").textContent = `${classes.length} classes: ${classes.slice(0, most).join(", ")}${more}.`;
  $("about").textContent = `${architecture.name}, weights ${hashes.weights.slice(0, 12)}. It knows only ` +
    "these classes: a photo of anything else gets one of them too. Everything is computed in this " +
    "browser with ONNX Runtime Web (MIT licence, see the file LICENSE); no photo leaves the device.";
}

function listen() {
  const inputs = document.querySelectorAll("input[type=file]");
  for (const input of inputs) {
    input.disabled = false;
    input.onchange = () => { classify([...input.files]); input.value = ""; };
  }
  const over = (is) => (event) => { event.preventDefault(); $("source").classList.toggle("over", is); };
  const take = ({ files }) => { if (files.length) classify([...files]); };
  document.ondragover = over(true);
  document.ondragleave = over(false);
  document.ondrop = (event) => { over(false)(event); take(event.dataTransfer); };
  document.onpaste = (event) => take(event.clipboardData);
  $("heat").onchange = drawPicture;
  $("threshold").oninput = applyThreshold;
  $("save").onclick = save;
  $("clear").onclick = clear;
}

describe();
applyThreshold();
start().then(() => { listen(); say("Ready."); },
  (error) => say(`This browser cannot run the model (${error.message}). A newer one can.`));
