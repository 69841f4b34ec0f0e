// Tasks as ARC's files have them: {train: [{input, output}], test: [{input, output?}]}.
import { blank, check, nameOf } from "./grid.js";

export const MAX_LINK = 8000; // characters of an encoded task; longer addresses get lost on the way

export function emptyTask() {
  return {
    train: [{ input: blank(3, 3), output: blank(3, 3) }],
    test: [{ input: blank(3, 3) }],
  };
}

// Throws one line on the first fault.
export function parseTask(text) {
  let value;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new Error(`expected a task as JSON: ${error.message}`);
  }
  return checkTask(value);
}

export function checkTask(value) {
  if (value?.train === undefined || value?.test === undefined) {
    const keys = value && typeof value === "object" ? Object.keys(value).slice(0, 4) : [];
    const got = keys.length > 0 ? `the keys ${keys.join(", ")}` : nameOf(value);
    throw new Error(`expected one task with the keys train and test, got ${got}`);
  }
  const train = pairs(value, "train").map((pair, i) => ({
    input: check(pair?.input, `train[${i}].input`),
    output: check(pair?.output, `train[${i}].output`),
  }));
  const test = pairs(value, "test").map((pair, i) => {
    const item = { input: check(pair?.input, `test[${i}].input`) };
    if (pair.output != null) item.output = check(pair.output, `test[${i}].output`);
    return item;
  });
  return { train, test };
}

function pairs(value, key) {
  const list = value[key];
  if (!Array.isArray(list) || list.length === 0) {
    throw new Error(`${key}: expected a list of pairs, got ${nameOf(list)}`);
  }
  return list;
}

// All that the student may see: test outputs never leave this page.
export function blind(task) {
  return { train: task.train, test: task.test.map(({ input }) => ({ input })) };
}

// Whether the student is asked the same. No grid is changed in place: the same one is the same object.
export function asksTheSame(a, b) {
  return (
    a.train === b.train &&
    a.test.length === b.test.length &&
    a.test.every(({ input }, i) => input === b.test[i].input)
  );
}

// `at` is ["train" or "test", index, "input" or "output"]. A test input that is drawn on is another
// question: its answer is not known any more.
export function withGrid(task, [part, index, side], grid) {
  const changed = (pair) => (part === "test" ? { input: grid } : { ...pair, [side]: grid });
  return { ...task, [part]: task[part].map((pair, i) => (i === index ? changed(pair) : pair)) };
}

// The states of a task, so that every step can be taken back. Grids that did not change are shared.
export class History {
  #states;
  #at = 0;

  constructor(task) {
    this.#states = [task];
  }

  get task() {
    return this.#states[this.#at];
  }

  get canUndo() {
    return this.#at > 0;
  }

  get canRedo() {
    return this.#at < this.#states.length - 1;
  }

  add(task) {
    this.#states.splice(this.#at + 1, Infinity, task);
    this.#at += 1;
  }

  undo() {
    if (this.canUndo) this.#at -= 1;
  }

  redo() {
    if (this.canRedo) this.#at += 1;
  }
}

// A task as text for an address: rows as digits, deflated, base64 with - and _.
export async function encode(task) {
  const short = JSON.stringify(task, (key, value) =>
    Array.isArray(value?.[0]) ? value.map((row) => row.join("")).join(" ") : value,
  );
  const bytes = await through(new CompressionStream("deflate-raw"), new TextEncoder().encode(short));
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  return btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
}

// Throws where the text is no task, or was cut.
export async function decode(text) {
  const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
  const bytes = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
  const short = await through(new DecompressionStream("deflate-raw"), bytes);
  const value = JSON.parse(new TextDecoder().decode(short), (key, item) =>
    typeof item === "string" ? item.split(" ").map((row) => Array.from(row, Number)) : item,
  );
  return checkTask(value);
}

async function through(transform, bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(transform);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}
