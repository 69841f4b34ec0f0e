// The bar of tools, the pen that boards are given, and the keys that work everywhere.
import { COLORS } from "./grid.js";
import { changed, drawnBy, gridAt, sameAt, state } from "./state.js";
import * as edits from "./edits.js";

const tools = document.getElementById("tools");
const selected = document.getElementById("selected");
const [rows, cols] = ["rows", "cols"].map((name) => selected.querySelector(`[name=${name}]`));
const button = (name) => tools.querySelector(`button[name=${name}]`);

const swatches = COLORS.map((name, color) => {
  const label = document.createElement("label");
  const input = document.createElement("input");
  Object.assign(input, { type: "radio", name: "color", value: color });
  input.setAttribute("aria-label", `${color} ${name}`);
  input.setAttribute("aria-keyshortcuts", color);
  label.title = `${color} ${name}`;
  label.className = `swatch k${color}`;
  label.append(input, String(color));
  tools.querySelector(".colors").append(label);
  return input;
});

export function titleOf([part, index, side], list) {
  if (part === "train") return `Example ${index + 1}, ${side}`;
  return list.length > 1 ? `Test input ${index + 1}` : "Test input";
}

// Makes the pen of one grid; `at` says which.
export function penFor(at) {
  return {
    begin(cell, pointer) {
      const first = !sameAt(state.selected, at);
      select(at);
      // A finger selects before it draws: until then it scrolls the page.
      if (pointer === "touch" && first) return false;
      if (state.tool === "fill") {
        edits.apply(at, [cell]);
        return false;
      }
      edits.beginStroke(at);
      edits.paint([cell]);
      return true;
    },
    paint: edits.paint,
    end: edits.endStroke,
    key(action, cells) {
      select(at);
      if (action === "pick") edits.pick(at, cells[0]);
      else edits.apply(at, cells);
    },
    select: () => select(at),
  };
}

function select(at) {
  state.selected = at;
  changed();
}

function draw() {
  const { history, selected: at, color, tool } = state;
  swatches[color].checked = true;
  tools.querySelector(`[name=tool][value=${tool}]`).checked = true;
  button("undo").disabled = !history.canUndo;
  button("redo").disabled = !history.canRedo;
  const grid = at && gridAt(at);
  selected.disabled = !grid;
  selected.querySelector("legend").textContent = grid
    ? titleOf(at, history.task.test)
    : "No grid selected";
  button("copy").hidden = at?.[2] !== "output";
  if (!grid) return;
  if (document.activeElement !== rows) rows.value = grid.length;
  if (document.activeElement !== cols) cols.value = grid[0].length;
}

const everywhere = { d: () => (state.tool = "draw"), f: () => (state.tool = "fill") };

function key(event) {
  if (event.target.closest?.("input:not([type=radio], [type=checkbox]), select, textarea")) return;
  const pressed = event.key.toLowerCase();
  if ((event.ctrlKey || event.metaKey) && !event.altKey) {
    if (pressed === "z" && event.shiftKey) edits.redo();
    else if (pressed === "z") edits.undo();
    else if (pressed === "y") edits.redo();
    else return;
  } else if (event.ctrlKey || event.metaKey || event.altKey) {
    return;
  } else if (/^[0-9]$/.test(pressed)) {
    state.color = Number(pressed);
  } else if (pressed in everywhere) {
    everywhere[pressed]();
  } else {
    return;
  }
  event.preventDefault();
  changed();
}

export function startTools() {
  tools.addEventListener("change", (event) => {
    const { name, value } = event.target;
    if (name === "color") state.color = Number(value);
    if (name === "tool") state.tool = value;
    changed();
  });
  selected.addEventListener("change", () => {
    if (rows.validity.valid && cols.validity.valid) {
      edits.resizeSelected(rows.valueAsNumber, cols.valueAsNumber);
    }
  });
  selected.addEventListener("focusout", changed); // what is no size gives way to the grid's
  const clicks = {
    undo: edits.undo,
    redo: edits.redo,
    clear: edits.clearSelected,
    copy: edits.copyInputToSelected,
  };
  for (const [name, act] of Object.entries(clicks)) button(name).addEventListener("click", act);
  document.addEventListener("keydown", key);
  drawnBy(draw);
}
