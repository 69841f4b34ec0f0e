// What can be taken along: a link, a picture, the task, the attempts as Kaggle wants them.
import { drawSheet } from "./drawing.js";
import { MAX_LINK, encode, asksTheSame } from "./task.js";
import { drawnBy, isEdited, state, task } from "./state.js";
import { TRUTH, blocksFor } from "./answers.js";
import { titleOf } from "./tools.js";

const buttons = document.getElementById("keep");
const button = (name) => buttons.querySelector(`[name=${name}]`);
const kept = document.getElementById("kept");

function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  kept.textContent = `${name} is saved where this browser keeps downloads.`;
}

function saveJson(value, name) {
  save(new Blob([JSON.stringify(value)], { type: "application/json" }), name);
}

async function link() {
  const { name, source } = state.origin;
  const parts = { [source ? "task" : "name"]: name };
  if (isEdited() || !source) parts.t = await encode(task());
  if (parts.t?.length > MAX_LINK) {
    kept.textContent = "This task is too large for a link. Task (JSON) holds it all.";
    return;
  }
  const address = new URL(`#${new URLSearchParams(parts)}`, location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    kept.textContent = "The link is on the clipboard. It holds the task, and opens on this server.";
  } catch {
    kept.textContent = "The address bar holds the link: this browser lets no page write the clipboard.";
  }
}

function picture() {
  const whole = task();
  const rows = whole.train.map(({ input, output }, i) => [
    { label: `example ${i + 1} input`, grid: input },
    { label: "output", grid: output },
  ]);
  const lines = [];
  whole.test.forEach(({ input }, i) => {
    const number = titleOf(["test", i, "input"], whole.test).toLowerCase();
    const asked = [{ label: number, grid: input }];
    rows.push(asked);
    for (const { title, facts, grids } of blocksFor(i)) {
      if (facts) lines.push(`${whole.test.length > 1 ? `${number}: ` : ""}${title}: ${facts}`);
      const tiles = grids.map(({ name, grid, truth }) => ({
        label: name === TRUTH ? name : `${title}, ${name}`,
        grid,
        truth,
      }));
      if (title === "Truth") asked.push(...tiles);
      else if (tiles.length > 0) rows.push(tiles);
    }
  });
  lines.push("Confidence is the student's own estimate, not correctness.");
  const { name, trainedOn } = state.origin;
  const notes = [name, ...(isEdited() ? ["changed"] : []), ...(trainedOn ? ["trained on"] : [])];
  drawSheet(notes.join(", "), lines, rows).toBlob((blob) => save(blob, `${name}.png`));
}

// The attempts to hand in: of the student that learnt the task, where it has.
function best() {
  const { learning, answer } = state;
  const learnt = learning?.answers?.length > 0 && asksTheSame(learning.task, task()) && learning;
  return learnt || (answer && asksTheSame(answer.task, task()) ? answer : null);
}

function submission() {
  const attempts = best().answers.map(({ attempts: [first, second] }) => ({
    attempt_1: first,
    attempt_2: second,
  }));
  saveJson({ [state.origin.name]: attempts }, "submission.json");
}

function draw() {
  const given = best();
  button("submission").disabled = !given;
  button("submission").title = given ? `the attempts in Kaggle's form, ${given.tier}` : "";
}

export function startKeeping() {
  const clicks = {
    link,
    picture,
    json: () => saveJson(task(), `${state.origin.name}.json`),
    submission,
  };
  for (const [name, act] of Object.entries(clicks)) button(name).addEventListener("click", act);
  drawnBy(draw);
}
