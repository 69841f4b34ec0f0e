// The demonstrations, each an input and its output, both to be drawn on.
import { Board, fit } from "./board.js";
import { drawnBy, sameAt, state, task } from "./state.js";
import { penFor, titleOf } from "./tools.js";
import * as edits from "./edits.js";
import { cellFor } from "./sizes.js";

const list = document.getElementById("examples");
const read = document.getElementById("read");
const template = document.getElementById("example").content.firstElementChild;
const items = [];

function makeItem(index) {
  const element = template.cloneNode(true);
  const boards = ["input", "output"].map((side) => {
    const at = ["train", index, side];
    return { at, board: new Board(penFor(at)) };
  });
  const arrow = document.createElement("span");
  arrow.textContent = "→";
  arrow.ariaHidden = "true";
  const [input, output] = boards.map(({ board }) => board.element);
  element.querySelector(".pair").append(input, arrow, output);
  element.querySelector(".remove").addEventListener("click", () => edits.remove("train", index));
  return { element, boards };
}

function draw() {
  const { train } = task();
  read.hidden = train.length <= state.reads;
  read.textContent = `In one look, the student reads the first ${state.reads}; learning takes all.`;
  fit(items, train.length, makeItem, list);
  items.forEach(({ element, boards }, i) => {
    for (const { at, board } of boards) {
      const grid = train[i][at[2]];
      const selected = sameAt(state.selected, at);
      const [label, caption] = [titleOf(at), `${at[2]} ${i + 1}`];
      board.show({ grid, label, caption, cell: cellFor("train", grid, selected), selected });
    }
    const remove = element.querySelector(".remove");
    remove.hidden = train.length === 1;
    remove.setAttribute("aria-label", `Remove example ${i + 1}`);
  });
}

export function startExamples() {
  document.getElementById("add-example").addEventListener("click", () => edits.add("train"));
  drawnBy(draw);
}
