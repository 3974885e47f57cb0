// Brings a frame to the network's input as atalaia/datasets/pictures.py does it: by Pillow's bilinear filter, which
// averages over all pixels that a new one covers, in the same fixed point. Rows come first, then columns. Pillow 13
// begins with columns in many pictures that are taller than wide; a pixel can then differ by 1.
"use strict";

const FIT_BITS = 22; // of the weights, behind the point

// Python's round(): halves to even.
function roundEven(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}

// Which part of a frame of that height and width is seen, `box` of x0, y0, x1, y1; the height and width that it comes
// to, `size`; and the row and column of the input where that begins, `at`. `how` is config.data.fit.
function placeFrame([height, width], [outHeight, outWidth], how) {
  const ratio = width / height, outRatio = outWidth / outHeight;
  const size = [outHeight, outWidth], at = [0, 0];
  let box = [0, 0, width, height];
  if (how === "crop") {
    const wide = ratio > outRatio ? outRatio * height : width;
    const tall = ratio < outRatio ? width / outRatio : height;
    const left = (width - wide) * 0.5, top = (height - tall) * 0.5;
    box = [left, top, left + wide, top + tall];
  } else if (how !== "stretch" && ratio !== outRatio) { // pad, letterbox
    if (ratio > outRatio) size[0] = roundEven((height / width) * outWidth);
    else size[1] = roundEven((width / height) * outHeight);
    if (how === "pad") at.splice(0, 2, roundEven((outHeight - size[0]) * 0.5), roundEven((outWidth - size[1]) * 0.5));
  }
  return {box: box.map(Math.fround), size, at};
}

// Of each new pixel along a side the first old one, and the weights of the old ones from there on, times 2^FIT_BITS.
function fitWeights(inSize, from, to, outSize) {
  const scale = Math.fround(to - from) / outSize, support = Math.max(scale, 1);
  const found = [];
  for (let i = 0; i < outSize; i++) {
    const center = from + (i + 0.5) * scale;
    const first = Math.max(Math.trunc(center - support + 0.5), 0);
    const end = Math.min(Math.trunc(center + support + 0.5), inSize);
    const weights = [];
    let sum = 0;
    for (let x = first; x < end; x++) {
      weights.push(Math.max(1 - Math.abs((x - center + 0.5) * (1 / support)), 0));
      sum += weights[x - first];
    }
    found.push({first, weights: Int32Array.from(weights, w => Math.trunc(0.5 + (w / sum) * 2 ** FIT_BITS))});
  }
  return found;
}

// New pixels along one side of `pixels`: [lines, old, values] to [lines, new, values].
function fitSide(pixels, lines, old, values, weights) {
  const out = new Uint8Array(lines * weights.length * values);
  let place = 0;
  for (let line = 0; line < lines; line++)
    for (const {first, weights: parts} of weights) {
      const start = (line * old + first) * values;
      for (let v = 0; v < values; v++) {
        let sum = 1 << (FIT_BITS - 1);
        for (let i = 0, at = start + v; i < parts.length; i++, at += values) sum += pixels[at] * parts[i];
        out[place++] = sum >> FIT_BITS; // weights are not negative: never above 255
      }
    }
  return out;
}

// uint8 pixels of a frame without its alpha, or its grey values: [height, width, channels].
function frameChannels({data, width, height}, channels) {
  const out = new Uint8Array(width * height * channels);
  for (let from = 0, to = 0; to < out.length; from += 4)
    if (channels === 1)
      out[to++] = (data[from] * 19595 + data[from + 1] * 38470 + data[from + 2] * 7471 + 0x8000) >> 16;
    else for (let c = 0; c < 3; c++) out[to++] = data[from + c];
  return out;
}

// uint8 [height, width, channels] of `shape` from a frame, an ImageData.
function fitFrame(frame, [outHeight, outWidth, channels], how) {
  const {box, size, at} = placeFrame([frame.height, frame.width], [outHeight, outWidth], how);
  const out = new Uint8Array(outHeight * outWidth * channels);
  if (Math.min(...size) === 0) return out;
  let pixels = frameChannels(frame, channels);
  if (size[1] !== frame.width || box[0] || box[2] !== size[1])
    pixels = fitSide(pixels, frame.height, frame.width, channels, fitWeights(frame.width, box[0], box[2], size[1]));
  if (size[0] !== frame.height || box[1] || box[3] !== size[0])
    pixels = fitSide(pixels, 1, frame.height, size[1] * channels, fitWeights(frame.height, box[1], box[3], size[0]));
  const row = size[1] * channels;
  for (let y = 0; y < size[0]; y++)
    out.set(pixels.subarray(y * row, (y + 1) * row), ((y + at[0]) * outWidth + at[1]) * channels);
  return out;
}
