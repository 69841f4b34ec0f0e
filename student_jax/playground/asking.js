// Asks the student while a hand draws: one question is on its way at a time, and the newest is next.
import { changed, drawnBy, state, task } from "./state.js";
import { asksTheSame, blind } from "./task.js";
import { send, wait } from "./server.js";

const PAUSE = 60; // milliseconds from a change to the question: a stroke is not asked cell by cell
const SLOW = 800; // milliseconds after which the page says why it takes so long

let asked = null; // the task that was asked last
let origin = null; // where it came from
let leaving = new AbortController(); // takes back the question that is on its way

function look() {
  if (asked && asksTheSame(asked, task())) return;
  // It looks again when the answer is there; only another task altogether does not wait for that.
  if (state.asking && origin === state.origin) return;
  leaving.abort();
  leaving = new AbortController();
  origin = state.origin;
  ask(leaving.signal);
}

async function ask(signal) {
  state.trouble = null;
  state.asking = "now";
  const slow = setTimeout(() => {
    state.asking = "long";
    changed();
  }, SLOW);
  signal.addEventListener("abort", () => clearTimeout(slow));
  try {
    await wait(PAUSE);
    if (signal.aborted) return;
    asked = task();
    const answer = await send("solve?certainty=true", blind(asked), { signal });
    state.answer = { ...answer, task: asked };
  } catch (error) {
    if (signal.aborted) return;
    state.trouble = error;
    if (error.passes) setTimeout(() => signal.aborted || askAgain(), 1000 * (error.after ?? 5));
  }
  if (signal.aborted) return;
  clearTimeout(slow);
  state.asking = null;
  changed();
}

export function askAgain() {
  asked = null;
  changed();
}

export function startAsking() {
  drawnBy(look);
}
