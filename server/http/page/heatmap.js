// A class activation map over the photo that it came from.

// Matplotlib's viridis in 16 colours, as in server/images/heatmap.py: its lightness rises evenly, for all eyes.
const COLOURS = "440154481a6c472f7d41448739568c31688e2a788e23888e1f988b22a88435b77954c5687ad151a5db36d2e21bfde725";
const VIRIDIS = COLOURS.match(/.{6}/g).map((colour) => colour.match(/../g).map((level) => parseInt(level, 16)));
const OPACITY = 0.75;

/** Draw the map of the first class, [rows][columns], a pixel for each value: the browser spreads them over the box. */
export function paint(canvas, { maps: [values], box: [left, top, right, bottom] }) {
  const [rows, columns] = [values.length, values[0].length];
  [canvas.width, canvas.height] = [columns, rows];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(columns, rows);
  const largest = Math.max(...values.flat(), Number.MIN_VALUE);
  values.flat().forEach((value, at) => {
    const strength = Math.max(0, value) / largest; // what speaks against the class is left as it is
    pixels.data.set([...colour(strength), 255 * OPACITY * strength], 4 * at);
  });
  context.putImageData(pixels, 0, 0);
  for (const [side, share] of Object.entries({ left, top, width: right - left, height: bottom - top })) {
    canvas.style[side] = `${100 * share}%`;
  }
}

function colour(strength) {
  const at = strength * (VIRIDIS.length - 1);
  const [below, above] = [VIRIDIS[Math.floor(at)], VIRIDIS[Math.ceil(at)]];
  return below.map((level, channel) => level + (at % 1) * (above[channel] - level));
}
