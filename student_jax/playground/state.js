// What the page shows. Actions change it and say so; everything is then drawn from it, once a frame.
import { History, emptyTask, withGrid } from "./task.js";

export const state = {
  history: new History(emptyTask()),
  stroke: null, // {at, grid} while a hand draws
  // As it was loaded: {name, source, trainedOn, task}; without a task nothing is open yet.
  origin: { name: "my_task", task: null },
  reads: Infinity, // examples that the student reads in one look
  color: 1,
  tool: "draw",
  selected: null, // the `at` of the grid that the tools work on
  answer: null, // of the student as it is: {task, tier, views, milliseconds, answers}
  asking: null, // "now", or "long" where the answer takes its time
  trouble: null, // why there is no answer: server.js' Refusal
  learning: null, // {task, job, state, ...}: as the server tells it
  compared: [], // what other students answered to the task as it was loaded
  shown: { doubt: true, truth: true, diff: false },
};

const drawers = [];
let frame = 0;

export function drawnBy(drawer) {
  drawers.push(drawer);
}

export function changed() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    // Before a task is open, the empty one would be answered, and take the place of the address.
    if (state.origin.task) for (const draw of drawers) draw();
  });
}

export function task() {
  const { history, stroke } = state;
  return stroke ? withGrid(history.task, stroke.at, stroke.grid) : history.task;
}

export function gridAt([part, index, side], whole = task()) {
  return whole[part][index]?.[side];
}

export function sameAt(a, b) {
  return Boolean(a && b && a.every((item, i) => item === b[i]));
}

export function isEdited() {
  return task() !== state.origin.task;
}
