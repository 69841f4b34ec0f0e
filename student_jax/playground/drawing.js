// Grids as pixels: on the page's canvases, and on a sheet to keep.
import { verdict } from "./grid.js";

// bridge.render.PALETTE
const PALETTE = [
  "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00",
  "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
];
const FADED = PALETTE.map(fade); // of a diff's right cells
const OUTSIDE = "#ffffff"; // white is no color of ARC: a cell that only the other grid has
const LINE = "#777777";
const SURE = 0.95; // cells from this probability on carry no dot

function fade(color) {
  const parts = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
  return `rgb(${parts.map((part) => Math.round(0.3 * part + 0.7 * 225)).join()})`;
}

// Draws a whole grid at the canvas' top left, `px` device pixels a cell. With a truth it draws
// where the grid is wrong: right cells are pale, wrong ones have the right color inside.
export function drawGrid(context, grid, px, { truth, certainty } = {}) {
  const rows = Math.max(grid.length, truth?.length ?? 0);
  const cols = Math.max(grid[0].length, truth?.[0].length ?? 0);
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < cols; c++) {
      drawCell(context, r, c, px, grid[r]?.[c], truth && (truth[r]?.[c] ?? null));
      if (certainty && certainty[r]?.[c] < SURE) drawDot(context, r, c, px, certainty[r][c], !truth);
    }
  }
}

function drawCell(context, r, c, px, color, truth) {
  const [x, y] = [c * px, r * px];
  const line = px > 3 ? 1 : 0;
  context.fillStyle = LINE;
  context.fillRect(x, y, px, px);
  const right = truth !== undefined && (truth ?? undefined) === color;
  context.fillStyle = (right ? FADED : PALETTE)[color] ?? OUTSIDE;
  context.fillRect(x, y, px - line, px - line);
  if (truth === undefined || right) return;
  const rim = Math.max(1, Math.round(px / 4));
  context.fillStyle = PALETTE[truth] ?? OUTSIDE;
  context.fillRect(x + rim, y + rim, px - line - 2 * rim, px - line - 2 * rim);
}

// The less certain, the larger; white and black keep it visible on every color. In a diff it is a
// ring, around the right color.
function drawDot(context, r, c, px, certainty, filled) {
  const radius = Math.max(1, (0.08 + 0.3 * Math.min(1, 1 - certainty)) * px);
  context.beginPath();
  context.arc((c + 0.5) * px - 0.5, (r + 0.5) * px - 0.5, radius, 0, 2 * Math.PI);
  context.fillStyle = OUTSIDE;
  if (filled) context.fill();
  for (const [color, width] of [[OUTSIDE, filled ? 0 : px / 6], ["#000", px / 16]]) {
    if (width * 16 < 6) continue; // no room for a ring
    context.lineWidth = Math.max(1, width);
    context.strokeStyle = color;
    context.stroke();
  }
}

// A picture of a task with all its answers, white, 16 pixels a cell where that fits.
// rows: [[{label, grid, truth?}, ...], ...], a row of grids each.
export function drawSheet(title, lines, rows) {
  const [gap, text] = [16, 18];
  const longest = Math.max(...rows.flat().map(({ grid }) => Math.max(grid.length, grid[0].length)));
  const px = Math.max(6, Math.min(20, Math.floor(200 / longest)));
  const canvas = document.createElement("canvas");
  let context = canvas.getContext("2d");
  const fonts = { title: "600 18px system-ui, sans-serif", text: "13px system-ui, sans-serif" };
  const wide = (label, font) => {
    context.font = font;
    return Math.ceil(context.measureText(label).width);
  };
  const tiles = rows.map((row) =>
    row.map((tile) => {
      const label = tile.truth ? `${tile.label} ${verdict(tile.grid, tile.truth).text}` : tile.label;
      const width = Math.max(tile.grid[0].length * px, wide(label, fonts.text));
      return { ...tile, label, width };
    }),
  );
  const widths = tiles.map((row) => row.reduce((sum, { width }) => sum + width + gap, gap));
  const heights = rows.map((row) => Math.max(...row.map((t) => t.grid.length)) * px + text + gap);
  const words = [wide(title, fonts.title), ...lines.map((line) => wide(line, fonts.text))];
  canvas.width = Math.max(...widths, ...words.map((width) => width + 2 * gap));
  const top = 2 * gap + 10 + lines.length * text;
  canvas.height = heights.reduce((sum, height) => sum + height, top + gap);
  context = canvas.getContext("2d");
  context.fillStyle = OUTSIDE;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = "#000";
  context.font = fonts.title;
  context.fillText(title, gap, gap + 10);
  context.font = fonts.text;
  lines.forEach((line, i) => context.fillText(line, gap, gap + 10 + (i + 1) * text));
  let y = top;
  tiles.forEach((row, i) => {
    let x = gap;
    for (const tile of row) {
      context.fillStyle = "#000";
      context.fillText(tile.label, x, y + 12);
      context.save();
      context.translate(x, y + text);
      drawGrid(context, tile.grid, px);
      context.restore();
      x += tile.width + gap;
    }
    y += heights[i];
  });
  return canvas;
}
