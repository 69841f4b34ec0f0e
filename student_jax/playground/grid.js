// Grids: arrays of rows of colors 0..9. Nothing here changes a grid that it is given.

const MAX_SIDE = 30;
export const COLORS = [
  "black", "blue", "red", "green", "yellow", "gray", "magenta", "orange", "light blue", "maroon",
];

export function blank(rows, cols) {
  return Array.from({ length: rows }, () => Array(cols).fill(0));
}

export function copy(grid) {
  return grid.map((row) => [...row]);
}

export function same(a, b) {
  return a.length === b.length && a.every((row, r) => sameRow(row, b[r]));
}

function sameRow(a, b) {
  return a.length === b.length && a.every((cell, c) => cell === b[c]);
}

// What stays of the grid keeps its place at the top left; new cells are black.
export function resize(grid, rows, cols) {
  return Array.from({ length: rows }, (_, r) =>
    Array.from({ length: cols }, (_, c) => grid[r]?.[c] ?? 0),
  );
}

// Gives the cell, and all of its color that hang together with it by edges, another color.
export function flood(grid, row, col, color) {
  const from = grid[row][col];
  const flooded = copy(grid);
  const open = from === color ? [] : [[row, col]];
  while (open.length > 0) {
    const [r, c] = open.pop();
    if (flooded[r]?.[c] !== from) continue;
    flooded[r][c] = color;
    open.push([r - 1, c], [r + 1, c], [r, c - 1], [r, c + 1]);
  }
  return flooded;
}

// The cells between two of them, both included: a fast hand skips some.
export function line([r0, c0], [r1, c1]) {
  const steps = Math.max(Math.abs(r1 - r0), Math.abs(c1 - c0));
  return Array.from({ length: steps + 1 }, (_, i) => {
    const share = steps === 0 ? 0 : i / steps;
    return [Math.round(r0 + share * (r1 - r0)), Math.round(c0 + share * (c1 - c0))];
  });
}

export function verdict(grid, truth) {
  if (same(grid, truth)) return { right: true, text: "✓ right" };
  if (!sameShape(grid, truth)) return { right: false, text: "✗ wrong shape" };
  const cells = grid.length * grid[0].length;
  const wrong = grid.flat().filter((cell, i) => cell !== truth.flat()[i]).length;
  return { right: false, text: `✗ ${wrong} of ${cells} wrong` }; // 99.6 % would look like right
}

function sameShape(a, b) {
  return a.length === b.length && a[0].length === b[0].length;
}

// Throws one line that says what was expected, where, and what is there instead.
export function check(value, where) {
  if (!Array.isArray(value) || value.length < 1 || value.length > MAX_SIDE) {
    const got = Array.isArray(value) ? `${value.length} rows` : nameOf(value);
    throw new Error(`${where}: expected a list of 1..${MAX_SIDE} rows, got ${got}`);
  }
  value.forEach((row, r) => {
    if (!Array.isArray(row) || row.length < 1 || row.length > MAX_SIDE) {
      const got = Array.isArray(row) ? `${row.length} cells` : nameOf(row);
      throw new Error(`${where}[${r}]: expected a row of 1..${MAX_SIDE} cells, got ${got}`);
    }
    if (row.length !== value[0].length) {
      throw new Error(
        `${where}[${r}]: expected ${value[0].length} cells like row 0, got ${row.length}`,
      );
    }
    row.forEach((cell, c) => {
      if (!Number.isInteger(cell) || cell < 0 || cell > 9) {
        throw new Error(`${where}[${r}][${c}]: expected a color 0..9, got ${nameOf(cell)}`);
      }
    });
  });
  return copy(value);
}

export function nameOf(value) {
  if (value === undefined) return "nothing";
  const text = JSON.stringify(value);
  return text.length > 40 ? `${text.slice(0, 40)}…` : text;
}
