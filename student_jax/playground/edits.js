// All that changes a task. Every whole step can be undone; a stroke is one.
import { blank, copy, flood, resize, same } from "./grid.js";
import { withGrid } from "./task.js";
import { changed, gridAt, state, task } from "./state.js";

function put(next) {
  state.history.add(next);
  changed();
}

function putGrid(at, grid) {
  if (!same(grid, gridAt(at))) put(withGrid(task(), at, grid));
}

export function beginStroke(at) {
  state.stroke = { at, grid: gridAt(at) };
}

export function paint(cells) {
  const { stroke, color } = state;
  const grid = copy(stroke.grid);
  for (const [r, c] of cells) if (grid[r]?.[c] !== undefined) grid[r][c] = color;
  if (same(grid, stroke.grid)) return;
  state.stroke = { at: stroke.at, grid };
  changed();
}

export function endStroke() {
  const { stroke } = state;
  state.stroke = null;
  if (stroke) putGrid(stroke.at, stroke.grid);
}

// What the tool does at these cells, as one step.
export function apply(at, cells) {
  if (state.tool === "fill") {
    putGrid(at, flood(gridAt(at), ...cells.at(-1), state.color));
  } else {
    beginStroke(at);
    paint(cells);
    endStroke();
  }
}

export function pick(at, [row, col]) {
  const color = gridAt(at)[row]?.[col];
  if (color !== undefined) state.color = color;
  changed();
}

export function resizeSelected(rows, cols) {
  const at = state.selected;
  putGrid(at, resize(gridAt(at), rows, cols));
}

export function clearSelected() {
  const grid = gridAt(state.selected);
  putGrid(state.selected, blank(grid.length, grid[0].length));
}

export function copyInputToSelected() {
  const [part, index] = state.selected;
  putGrid(state.selected, gridAt([part, index, "input"]));
}

// A new pair is as large as the one before it.
export function add(part) {
  const { input, output } = task()[part].at(-1);
  const like = (grid) => blank(grid.length, grid[0].length);
  const pair = part === "train" ? { input: like(input), output: like(output) } : { input: like(input) };
  put({ ...task(), [part]: [...task()[part], pair] });
}

export function remove(part, index) {
  state.selected = null;
  put({ ...task(), [part]: task()[part].filter((_, i) => i !== index) });
}

export function undo() {
  state.history.undo();
  changed();
}

export function redo() {
  state.history.redo();
  changed();
}
