// Runs pictures through the network: a sample, a photo that is chosen or dropped, or the camera. The answers are those
// of model_answer() in C; here they are shown. What was last seen stands in window.atalaia.last.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const [inputHeight, inputWidth, channels] = facts.shape;
const at = id => document.getElementById(id);
const video = Object.assign(document.createElement("video"), {muted: true, playsInline: true});
const source = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const view = at("view").getContext("2d"), seen = at("seen").getContext("2d");
const TIMES = 30; // runs of which the median is shown
const STILL = {runs: 10, milliseconds: 200}; // a still picture is run so often or so long, for its time
const LONGEST = 960; // side of the view in pixels
const COLOURS = ["#ff5c5c", "#3fb8ff", "#ffc233", "#5ddb7a", "#d98cff", "#ff9f4a", "#4fe0d2", "#ff7fc0"];

let model, stream = null, facing = "environment", times = [];
window.atalaia = {last: null, ready: start().catch(error => say(`This browser does not run it: ${error.message}.`))};

async function start() {
  const bytes = Uint8Array.from(atob(facts.wasm), c => c.charCodeAt(0));
  const {instance} = await WebAssembly.instantiate(bytes, {});
  model = instance.exports;
  at("camera").onclick = () => (stream ? stopCamera() : startCamera());
  at("turn").onclick = () => {
    facing = facing === "user" ? "environment" : "user";
    return startCamera();
  };
  at("photo").onchange = event => showFile(event.target.files[0]);
  for (const image of document.querySelectorAll(".samples img")) image.parentElement.onclick = () => showStill(image);
  document.ondragover = event => event.preventDefault();
  document.ondrop = event => {
    event.preventDefault();
    return showFile(event.dataTransfer.files[0]);
  };
  const first = document.querySelector(".samples img");
  if (first) await showStill(first);
}

// --- Where frames come from ---

async function showStill(image) {
  stopCamera();
  await image.decode();
  look(image, image.naturalWidth, image.naturalHeight, STILL);
  for (const other of document.querySelectorAll(".samples img"))
    other.parentElement.classList.toggle("chosen", other === image);
}

async function showFile(file) {
  if (!file) return;
  try { // turned as its EXIF data say, and its colours as they are in the file, as the data set reads it
    const image = await createImageBitmap(file, {colorSpaceConversion: "none"});
    stopCamera();
    look(image, image.width, image.height, STILL);
    for (const other of document.querySelectorAll(".samples .chosen")) other.classList.remove("chosen");
  } catch {
    say(`${file.name} is no picture that this browser can read.`);
  }
}

async function startCamera() {
  stopCamera();
  if (!navigator.mediaDevices) {
    say("No camera: open this page from a file, from https:// or from http://localhost.");
    return;
  }
  try {
    const wanted = {facingMode: facing, width: {ideal: 640}, height: {ideal: 480}};
    stream = await navigator.mediaDevices.getUserMedia({video: wanted, audio: false});
    video.srcObject = stream;
    await video.play();
  } catch (error) {
    stopCamera();
    say(`The camera does not start: ${error.message}.`);
    return;
  }
  at("camera").textContent = "Stop the camera";
  times = [];
  const devices = await navigator.mediaDevices.enumerateDevices();
  at("turn").hidden = devices.filter(device => device.kind === "videoinput").length < 2;
  for (const other of document.querySelectorAll(".samples .chosen")) other.classList.remove("chosen");
  nextFrame();
}

function stopCamera() {
  for (const track of stream ? stream.getTracks() : []) track.stop();
  stream = null;
  at("camera").textContent = "Start the camera";
}

function nextFrame() {
  if (!stream) return;
  if (video.videoWidth) look(video, video.videoWidth, video.videoHeight, {runs: 1, milliseconds: 0});
  requestAnimationFrame(nextFrame);
}

// --- The network ---

function look(image, width, height, repeat) {
  Object.assign(source.canvas, {width, height});
  source.drawImage(image, 0, 0);
  const frame = source.getImageData(0, 0, width, height);
  const pixels = fitFrame(frame, facts.shape, facts.fit);
  if (repeat.runs > 1) times = [];
  let found = run(pixels);
  const end = performance.now() + repeat.milliseconds;
  for (let i = 1; i < repeat.runs && performance.now() < end; i++) found = run(pixels);
  window.atalaia.last = {frame, pixels, ...found};
  say("");
  drawSeen(pixels);
  drawView(frame);
  showAnswer(found, frame);
  showTime();
}

// int8 outputs and int32 answer of uint8 pixels in the network's size.
function run(pixels) {
  const {buffer} = model.memory, outputBytes = facts.outputs.reduce((sum, output) => sum + output.bytes, 0);
  new Int8Array(buffer, model.page_input(), pixels.length).set(pixels.map(pixel => facts.levels[pixel]));
  const begun = performance.now();
  model.page_run();
  times = [...times, performance.now() - begun].slice(-TIMES);
  return {
    outputs: new Int8Array(buffer, model.page_outputs(), outputBytes).slice(),
    answer: new Int32Array(buffer, model.page_answer(), model.page_answers()).slice(),
  };
}

// --- What is shown ---

function say(text) {
  at("message").textContent = text;
  at("message").hidden = !text;
}

function showTime() {
  const middle = [...times].sort((a, b) => a - b)[times.length >> 1];
  at("time").textContent = middle < 0.1 ? "< 0.1" : middle.toFixed(middle < 10 ? 1 : 0);
}

function drawSeen(pixels) {
  const image = new ImageData(inputWidth, inputHeight);
  for (let i = 0; i < inputWidth * inputHeight; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * channels + (channels === 3 ? c : 0)];
    image.data[4 * i + 3] = 255;
  }
  seen.putImageData(image, 0, 0);
}

function drawView({width, height}) {
  const scale = LONGEST / Math.max(width, height);
  Object.assign(view.canvas, {width: Math.round(width * scale), height: Math.round(height * scale)});
  view.imageSmoothingEnabled = scale < 2; // small pictures keep their pixels
  view.drawImage(source.canvas, 0, 0, view.canvas.width, view.canvas.height);
}

function showAnswer(found, frame) {
  const rows = {classify: classRows, regress: numberRows, detect: boxRows}[facts.task](found, frame);
  at("answer").replaceChildren(...rows.map(({name, text, part, colour}) => {
    const row = document.createElement("li");
    row.append(Object.assign(document.createElement("span"), {textContent: name, className: "name"}));
    row.append(Object.assign(document.createElement("span"), {textContent: text, className: "text"}));
    if (part !== undefined) {
      const bar = Object.assign(document.createElement("span"), {className: "bar"});
      const filled = document.createElement("i");
      Object.assign(filled.style, {width: `${100 * part}%`, background: colour ?? ""});
      bar.append(filled);
      row.append(bar);
    }
    return row;
  }));
}

const percent = part => `${(100 * part).toFixed(1)} %`;

// The class that the C answers, and the next four, with what softmax makes of the logits.
function classRows({outputs, answer}) {
  const {scale} = facts.outputs[0], best = Math.max(...outputs);
  const parts = Array.from(outputs, code => Math.exp((code - best) * scale)), sum = parts.reduce((a, b) => a + b);
  const others = [...parts.keys()].filter(i => i !== answer[0]).sort((a, b) => parts[b] - parts[a]).slice(0, 4);
  return [answer[0], ...others].map(i => ({name: facts.names[i], text: percent(parts[i] / sum), part: parts[i] / sum}));
}

function numberRows({answer}) {
  return Array.from(answer, (value, i) => ({name: facts.names[i], text: (value / 65536).toFixed(4)}));
}

// The boxes that the C answers, also drawn into the view.
function boxRows({answer}, frame) {
  const rows = [], {scale, zero_point: zero} = facts.outputs[1]; // of the centre map
  const {box, size, at: corner} = placeFrame([frame.height, frame.width], [inputHeight, inputWidth], facts.fit);
  const enlarged = view.canvas.width / frame.width;
  const x = value => ((value / 16 - corner[1]) * (box[2] - box[0]) / size[1] + box[0]) * enlarged;
  const y = value => ((value / 16 - corner[0]) * (box[3] - box[1]) / size[0] + box[1]) * enlarged;
  for (let i = 0; i < answer.length; i += 6) {
    const [kind, code, x0, y0, x1, y1] = answer.subarray(i, i + 6);
    if (kind < 0) break;
    const part = 1 / (1 + Math.exp((zero - code) * scale)), colour = COLOURS[kind % COLOURS.length];
    rows.push({name: facts.names[kind], text: percent(part), part, colour});
    drawBox(x(x0), y(y0), x(x1), y(y1), `${facts.names[kind]} ${percent(part)}`, colour);
  }
  return rows.length ? rows : [{name: "nothing found", text: ""}];
}

// Lines and text have the size that a reader sees, whatever the canvas is scaled by.
function drawBox(x0, y0, x1, y1, text, colour) {
  const unit = view.canvas.width / (view.canvas.clientWidth || view.canvas.width), high = 20 * unit;
  Object.assign(view, {strokeStyle: colour, fillStyle: colour, lineWidth: 2.5 * unit});
  view.font = `600 ${14 * unit}px system-ui, sans-serif`;
  view.strokeRect(x0, y0, x1 - x0, y1 - y0);
  const wide = view.measureText(text).width + 10 * unit;
  const left = Math.max(Math.min(x0 - unit, view.canvas.width - wide), 0), top = Math.max(y0 - high, 0);
  view.fillRect(left, top, wide, high);
  view.fillStyle = "#10151b";
  view.fillText(text, left + 5 * unit, top + 15 * unit);
}
