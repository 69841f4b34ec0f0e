// A grid on the page: drawn on a canvas, gone through with the arrow keys, painted on if it may be.
import { COLORS, line } from "./grid.js";
import { drawGrid } from "./drawing.js";

let made = 0;

export class Board {
  #name = `board${++made}`;
  #caption = document.createElement("figcaption");
  #box = document.createElement("div");
  #canvas = document.createElement("canvas");
  #row = document.createElement("div");
  #cell = document.createElement("div");
  #at = [0, 0]; // the cursor
  #drawn = {};
  #size = 1; // of a cell, CSS pixels
  #corner = [0, 0]; // of the canvas on the page, when a hand began to draw

  // pen: what draws on it, see tools.js; none: to be read.
  constructor(pen) {
    this.pen = pen;
    this.element = document.createElement("figure");
    this.element.className = "board";
    this.#box.tabIndex = 0;
    this.#box.setAttribute("role", "grid");
    if (!pen) this.#box.setAttribute("aria-readonly", "true");
    this.#row.setAttribute("role", "row");
    this.#cell.setAttribute("role", "gridcell");
    this.#cell.className = "cursor";
    this.#row.append(this.#cell);
    this.#box.append(this.#canvas, this.#row);
    this.element.append(this.#caption, this.#box);
    this.#box.addEventListener("keydown", (event) => this.#key(event));
    this.#box.addEventListener("focus", () => {
      this.#goTo(this.#at);
      pen?.select();
    });
    this.#box.addEventListener("pointermove", (event) => this.#hover(event));
    if (pen) this.#listen();
  }

  // how: {grid, label, caption, cell: CSS pixels, truth?: draw a diff, certainty?, selected?}
  show(how) {
    const was = this.#drawn;
    const keys = ["grid", "label", "caption", "cell", "truth", "certainty", "selected"];
    const ratio = window.devicePixelRatio;
    if (keys.every((key) => was[key] === how[key]) && was.ratio === ratio) return;
    this.#drawn = { ...how, ratio };
    const px = Math.max(1, Math.round(how.cell * ratio));
    const rows = Math.max(how.grid.length, how.truth?.length ?? 0);
    const cols = Math.max(how.grid[0].length, how.truth?.[0].length ?? 0);
    if (this.#canvas.width !== cols * px || this.#canvas.height !== rows * px) {
      this.#canvas.width = cols * px;
      this.#canvas.height = rows * px;
    }
    this.#size = px / ratio;
    this.#box.style.setProperty("--cell", `${this.#size}px`);
    this.#canvas.style.width = `${cols * this.#size}px`;
    drawGrid(this.#canvas.getContext("2d"), how.grid, px, how);
    if (was.caption !== how.caption) this.#caption.textContent = how.caption;
    this.element.classList.toggle("selected", Boolean(how.selected));
    const size = `${how.grid.length} by ${how.grid[0].length} cells`;
    this.#box.setAttribute("aria-label", `${how.label}, ${size}`);
    this.#box.setAttribute("aria-rowcount", rows);
    this.#box.setAttribute("aria-colcount", cols);
    if (document.activeElement === this.#box) this.#goTo(this.#at);
  }

  // What a cell holds, in words.
  #describe(row, col) {
    const { grid, truth, certainty } = this.#drawn;
    const color = grid[row]?.[col];
    const parts = [color === undefined ? "outside" : `${color} ${COLORS[color]}`];
    const p = certainty?.[row]?.[col];
    if (p !== undefined) parts.push(`${Math.floor(100 * p)} % certain`);
    const right = truth?.[row]?.[col];
    if (truth && right !== color) parts.push(`wrong, ${COLORS[right] ?? "outside"} is right`);
    return parts.join(", ");
  }

  #goTo([row, col]) {
    const { grid, truth } = this.#drawn;
    const rows = Math.max(grid.length, truth?.length ?? 0);
    const cols = Math.max(grid[0].length, truth?.[0].length ?? 0);
    row = Math.min(Math.max(row, 0), rows - 1);
    col = Math.min(Math.max(col, 0), cols - 1);
    this.#at = [row, col];
    this.#box.style.setProperty("--row", row);
    this.#box.style.setProperty("--col", col);
    this.#row.setAttribute("aria-rowindex", row + 1);
    this.#cell.setAttribute("aria-colindex", col + 1);
    this.#cell.textContent = `row ${row + 1}, column ${col + 1}: ${this.#describe(row, col)}`;
    this.#cell.id = `${this.#name}-${row}-${col}`; // another id, so that it is read out
    this.#box.setAttribute("aria-activedescendant", this.#cell.id);
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const [row, col] = this.#at;
    const to = {
      ArrowUp: [row - 1, col],
      ArrowDown: [row + 1, col],
      ArrowLeft: [row, col - 1],
      ArrowRight: [row, col + 1],
      Home: [row, 0],
      End: [row, Infinity],
    }[event.key];
    const action = { " ": "paint", Enter: "paint", p: "pick" }[event.key];
    if (!to && !(action && this.pen)) return;
    event.preventDefault();
    event.stopPropagation();
    this.#box.classList.add("by-key");
    if (to) this.#goTo(to);
    if (this.pen && to && event.shiftKey) this.pen.key("paint", line([row, col], this.#at));
    if (action) this.pen.key(action, [this.#at]);
  }

  #listen() {
    this.#canvas.addEventListener("pointerdown", (event) => {
      const box = this.#canvas.getBoundingClientRect();
      this.#corner = [box.top + scrollY, box.left + scrollX];
      this.#box.classList.remove("by-key");
      this.#at = this.#cellAt(event);
      if (event.button === 2) this.pen.key("pick", [this.#at]);
      if (event.button !== 0 || !this.pen.begin(this.#at, event.pointerType)) return;
      this.#canvas.setPointerCapture(event.pointerId);
      this.#canvas.addEventListener("pointermove", this.#draw);
    });
    for (const kind of ["pointerup", "pointercancel", "lostpointercapture"]) {
      this.#canvas.addEventListener(kind, () => {
        this.#canvas.removeEventListener("pointermove", this.#draw);
        this.pen.end();
      });
    }
    this.#canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  }

  #draw = (event) => {
    const events = event.getCoalescedEvents?.() ?? []; // all that came since the last frame
    for (const each of events.length > 0 ? events : [event]) {
      const cell = this.#cellAt(each);
      this.pen.paint(line(this.#at, cell));
      this.#at = cell;
    }
  };

  // A hand that draws may leave the grid: such cells are outside of it.
  #cellAt(event) {
    const [top, left] = this.#corner;
    return [event.pageY - top, event.pageX - left].map((far) => Math.floor(far / this.#size));
  }

  // A cell's number and words under a pointer that rests.
  #hover(event) {
    if (event.buttons || event.target !== this.#canvas) return;
    const [row, col] = [event.offsetY, event.offsetX].map((far) => Math.floor(far / this.#size));
    this.#box.title = this.#describe(Math.max(row, 0), Math.max(col, 0));
  }
}

// Makes or removes so many parts at the end of a list and of its place on the page.
export function fit(parts, count, make, place) {
  while (parts.length > count) parts.pop().element.remove();
  while (parts.length < count) {
    const part = make(parts.length);
    place.append(part.element);
    parts.push(part);
  }
}
