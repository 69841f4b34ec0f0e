// A task that the student learns first: the job on the server, and the panel that watches it.
import { changed, drawnBy, state, task } from "./state.js";
import { asksTheSame, blind } from "./task.js";
import { call, send, wait } from "./server.js";
import { drawCurve } from "./curve.js";

const EVERY = 300; // milliseconds between two looks at a job
const VIEWS = 8; // of the task, to learn and to vote on: turned and mirrored
const RUNS = ["sending", "queued", "learning"];

const form = document.getElementById("learn");
const { tier, seconds, stop } = form.elements;
const submit = form.querySelector("[type=submit]");
const trouble = document.getElementById("learn-trouble");
const panel = document.getElementById("progress");
const bar = panel.querySelector("progress");
const words = document.getElementById("learnt");
const figure = panel.querySelector("figure");
let drawn = null;

function isLearning() {
  return RUNS.includes(state.learning?.state);
}

// Whether the task was changed since the student learnt it.
export function isOutdated() {
  return state.learning !== null && !asksTheSame(state.learning.task, task());
}

async function learn() {
  const asked = new URLSearchParams({ tier: tier.value, seconds: seconds.value, views: VIEWS });
  const mine = { task: task(), state: "sending", progress: 0, curve: [] };
  state.learning = mine;
  changed();
  try {
    Object.assign(mine, await send(`adapt?${asked}`, blind(mine.task)));
    while (RUNS.includes(mine.state)) {
      if (state.learning !== mine) end(mine); // another task was loaded meanwhile
      changed();
      await wait(EVERY);
      Object.assign(mine, await call(`adapt/${mine.job}`));
    }
  } catch (error) {
    Object.assign(mine, { state: "failed", error: error.message });
  }
  changed();
}

// Ends the learning; what is learnt by then answers.
function end(learning) {
  learning.isEnding = true;
  changed();
  call(`adapt/${learning.job}`, { method: "DELETE", keepalive: true }).catch(() => {}); // or it was over
}

function endThis() {
  if (isLearning() && state.learning.job) end(state.learning);
}

function draw() {
  const { learning } = state;
  const runs = isLearning();
  submit.disabled = runs;
  stop.hidden = !runs || !learning.job;
  stop.disabled = Boolean(learning?.isEnding);
  panel.hidden = !learning || learning.state === "failed";
  trouble.hidden = learning?.state !== "failed";
  trouble.textContent = trouble.hidden ? "" : `Nothing was learnt: ${learning.error}`;
  if (panel.hidden) return;
  bar.value = learning.progress;
  words.textContent = wordsFor(learning);
  if (learning.curve === drawn) return;
  drawn = learning.curve;
  if (drawn.length > 0) drawCurve(figure, drawn);
  else figure.replaceChildren();
}

function wordsFor({ state: stage, step, seconds: spent, loss, fit }) {
  if (stage === "sending" || stage === "queued") return "Waiting for its turn.";
  if (stage === "learning" && !step) return "Getting ready: a task of a new size is compiled first.";
  const parts = [`step ${step}`, `${spent.toFixed(1)} s`];
  if (Number.isFinite(loss)) parts.push(`loss ${loss.toPrecision(2)} nats a cell`);
  if (Number.isFinite(fit)) parts.push(`fit ${(100 * fit).toFixed(1)} % of the examples’ cells`);
  const stages = { learning: "Learning", done: "Learnt", cancelled: "Stopped" };
  return `${stages[stage] ?? stage}: ${parts.join(", ")}.`;
}

export function startLearning() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    learn();
  });
  stop.addEventListener("click", endThis);
  addEventListener("pagehide", endThis); // nobody waits for it any more
  drawnBy(draw);
}
