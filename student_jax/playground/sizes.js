// How large cells are: as large as the place lets them be, alike within a part of the task.
import { changed, task } from "./state.js";

const [SMALLEST, LEGIBLE, LARGEST, FINGER] = [3, 12, 24, 40]; // CSS pixels
const narrow = matchMedia("(max-width: 50rem)"); // as in playground.css
let width = 0; // of the page's content; measured when it changes, never while drawing

// part: "train" or "test"; a grid that is selected on a narrow page takes all its width.
export function cellFor(part, grid, selected = false) {
  const own = Math.max(grid.length, grid[0].length);
  if (selected && narrow.matches) return size(grid[0].length, width - 4, FINGER);
  const { train, test } = task();
  const grids = part === "train" ? train.flatMap(values) : [...train, ...test].flatMap(values);
  const longest = Math.max(own, ...grids.map((each) => Math.max(each.length, each[0].length)));
  // All alike, but a small grid among large ones would be too small to see.
  const alike = size(longest, room(part, longest));
  return Math.max(alike, size(own, room(part, own), LEGIBLE));
}

function values({ input, output }) {
  return output ? [input, output] : [input];
}

function room(part, longest) {
  if (narrow.matches) return (width - 76) / 2;
  if (part === "train") return (width * 0.4 - 110) / 2;
  return (width * 0.6 - 110) / (longest > 15 ? 3 : 4);
}

function size(cells, pixels, largest = LARGEST) {
  return Math.max(SMALLEST, Math.min(largest, Math.floor(pixels / cells)));
}

export function startSizes() {
  new ResizeObserver(([{ contentRect }]) => {
    width = contentRect.width;
    changed();
  }).observe(document.querySelector("main"));
}
