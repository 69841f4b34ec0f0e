// The test inputs with what each student answers, the truth where it is known, and verdicts.
import { Board, fit } from "./board.js";
import { verdict } from "./grid.js";
import { changed, drawnBy, sameAt, state, task } from "./state.js";
import { asksTheSame } from "./task.js";
import { penFor, titleOf } from "./tools.js";
import * as edits from "./edits.js";
import { cellFor } from "./sizes.js";
import { isOutdated } from "./learning.js";

export const TRUTH = "the right answer";
const TIERS = {
  weights: "Learnt first, the weights that answer",
  tokens: "Learnt first, the task’s tokens",
  joint: "Learnt first, with the other tasks",
};
const list = document.getElementById("tests");
const said = document.getElementById("said");
const template = (id) => document.getElementById(id).content.firstElementChild;
const items = []; // per test input: {element, board, blocks}
let saying = null;
let last = {}; // the answers that were said last

// Heading, facts and grids of one student.
class Block {
  #boards = [];

  constructor() {
    this.element = template("student").cloneNode(true);
    [this.title, this.facts] = this.element.querySelectorAll("b, .facts");
    this.pair = this.element.querySelector(".pair");
  }

  show({ title, facts, grids, isOld, isBusy }) {
    this.title.textContent = title;
    this.facts.textContent = facts;
    this.element.classList.toggle("old", Boolean(isOld));
    this.element.setAttribute("aria-busy", Boolean(isBusy));
    fit(this.#boards, grids.length, () => new Board(), this.pair);
    this.#boards.forEach((board, i) => {
      const { truth, ...how } = grids[i];
      const found = truth && verdict(how.grid, truth);
      board.element.classList.toggle("solved", Boolean(found?.right));
      board.element.classList.toggle("failed", Boolean(found && !found.right));
      const caption = found ? `${how.name}\n${found.text}` : how.name;
      board.show({
        ...how,
        caption,
        label: `${title}: ${caption.replace("\n", ", ")}`,
        cell: cellFor("test", how.grid),
        truth: state.shown.diff && found && !found.right ? truth : undefined,
        certainty: state.shown.doubt ? how.certainty : undefined,
      });
    });
  }
}

function makeItem(index) {
  const element = template("test").cloneNode(true);
  const board = new Board(penFor(["test", index, "input"]));
  const arrow = document.createElement("span");
  arrow.textContent = "→";
  arrow.ariaHidden = "true";
  element.querySelector(".pair").append(board.element, arrow);
  element.querySelector(".remove").addEventListener("click", () => edits.remove("test", index));
  return { element, board, blocks: [] };
}

function duration(milliseconds) {
  return milliseconds < 1000 ? `${milliseconds.toFixed(1)}\u00a0ms` : `${(milliseconds / 1e3).toFixed(1)}\u00a0s`;
}

function percent(share) {
  return `${Math.floor(100 * share)}\u00a0%`; // 99.6 % would look like certain
}

// All that is known of a test input: [{title, facts, grids: [{name, grid, truth, certainty}]}, ...].
export function blocksFor(index) {
  const { answer, learning, compared, asking, shown, origin } = state;
  const whole = task();
  const truth = shown.truth ? whole.test[index].output : undefined;
  const attempts = ({ attempts, certainty }) =>
    attempts.map((grid, i) => {
      const name = `attempt ${i + 1}`;
      return { name, grid, truth, certainty: i === 0 ? certainty : undefined };
    });
  const blocks = [];
  const given = answer?.answers[index];
  if (given) {
    const facts = `${duration(answer.milliseconds)}, confidence ${percent(given.confidence)}`;
    const isOld = !asksTheSame(answer.task, whole) && state.trouble;
    const title = capital(answer.tier);
    blocks.push({ title, facts, grids: attempts(given), isBusy: asking, isOld });
  } else if (asking) {
    blocks.push({ title: "Student", facts: "is asked …", grids: [], isBusy: true });
  }
  if (truth) blocks.push({ title: "Truth", facts: "", grids: [{ name: TRUTH, grid: truth }] });
  const learnt = learning?.answers?.[index];
  if (learnt) {
    const isOld = isOutdated();
    const facts = [
      `${learning.step} steps`,
      `${learning.seconds.toFixed(1)} s`,
      `confidence ${percent(learnt.confidence)}`,
      ...(isOld ? ["of the task before it was changed"] : []),
    ].join(", ");
    blocks.push({ title: TIERS[learning.tier], facts, grids: attempts(learnt), isOld });
  }
  for (const { name, tier, answers } of compared) {
    const isOld = !origin.task || !asksTheSame(origin.task, whole);
    const facts = isOld ? "of the task before it was changed" : "";
    if (!answers[index]) continue;
    blocks.push({ title: `${name}, ${tier}`, facts, grids: attempts(answers[index]), isOld });
  }
  return blocks;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function draw() {
  const tests = task().test;
  fit(items, tests.length, makeItem, list);
  items.forEach(({ element, board, blocks }, i) => {
    const at = ["test", i, "input"];
    const { input } = tests[i];
    const label = titleOf(at, tests);
    const selected = sameAt(state.selected, at);
    board.show({
      grid: input,
      label,
      caption: label.toLowerCase(),
      cell: cellFor("test", input, selected),
      selected,
    });
    const remove = element.querySelector(".remove");
    remove.hidden = tests.length === 1;
    remove.setAttribute("aria-label", `Remove test input ${i + 1}`);
    const wanted = blocksFor(i);
    fit(blocks, wanted.length, () => new Block(), element.querySelector(".row"));
    blocks.forEach((block, j) => block.show(wanted[j]));
  });
  drawTrouble();
  say();
}

function drawTrouble() {
  const place = document.getElementById("trouble");
  const { trouble, asking } = state;
  place.hidden = !trouble && asking !== "long";
  place.classList.toggle("waits", !trouble);
  place.querySelector("button").hidden = !trouble?.passes;
  const slow = "The student is at it. The first question of a size is compiled, which takes seconds.";
  const text = place.hidden ? "" : (trouble?.message ?? slow);
  const line = place.querySelector("span");
  if (line.textContent !== text) line.textContent = text;
}

// Tells a new answer once the hand rests.
function say() {
  const { answer, learning } = state;
  const learnt = learning?.answers?.length > 0 ? learning : null;
  const news = learnt !== last.learnt ? learnt : answer !== last.answer ? answer : null;
  last = { answer, learnt };
  if (!news) return;
  clearTimeout(saying);
  saying = setTimeout(() => {
    const parts = news.answers.map(({ attempts: [grid] }, i) => {
      const truth = state.shown.truth && task().test[i]?.output;
      const found = truth ? `, ${verdict(grid, truth).text}` : "";
      return `attempt 1, ${grid.length} by ${grid[0].length} cells${found}`;
    });
    said.textContent = `${TIERS[news.tier] ?? capital(news.tier)} answers: ${parts.join("; ")}.`;
  }, 600);
}

export function startAnswers() {
  document.getElementById("shown").addEventListener("change", (event) => {
    state.shown = { ...state.shown, [event.target.name]: event.target.checked };
    changed();
  });
  document.getElementById("add-test").addEventListener("click", () => edits.add("test"));
  drawnBy(draw);
}
