// Which task is on the page: from the server by its id, from a file, the clipboard, or the address.
import { History, MAX_LINK, checkTask, decode, emptyTask, encode, parseTask } from "./task.js";
import { changed, drawnBy, isEdited, state, task } from "./state.js";
import { call } from "./server.js";

const LARGEST_FILE = 2 ** 20; // bytes
const FIRST = "b1948b0a"; // what is shown before anyone asks: it fits a glance
const form = document.getElementById("pick");
const { id: field, source, file } = form.elements;
const trouble = document.getElementById("pick-trouble");
let sources = {}; // name -> ids
let wanted = 0; // counts loads: only the newest one counts
let written = ""; // the address' part behind #, as this page wrote it last
let saving = null;
let saved = null; // the task that the address holds

function listed() {
  return source.value ? sources[source.value] : Object.values(sources).flat();
}

function put(origin, edited = origin.task) {
  state.origin = origin;
  state.history = new History(origin.task);
  if (edited !== origin.task) state.history.add(edited);
  Object.assign(state, { stroke: null, selected: null, answer: null, learning: null, compared: [] });
  field.value = origin.source ? origin.name : "";
  saved = edited;
  tell("");
  changed();
}

function tell(line) {
  trouble.hidden = !line;
  trouble.textContent = line;
}

function write(parts, how) {
  written = new URLSearchParams(parts).toString();
  history[how](null, "", `#${written}`);
}

// Shows a task of the server; `edited`, from a link, is what was made of it.
async function load(id, { edited, keep } = {}) {
  const [mine, path] = [++wanted, encodeURIComponent(id)];
  try {
    const { source: of, trained_on: trainedOn, ...pairs } = await call(`tasks/${path}`);
    if (mine !== wanted) return;
    put({ name: id, source: of, trainedOn, task: checkTask(pairs) }, edited);
    if (!keep) write({ task: id }, "pushState");
    const compared = await call(`tasks/${path}/compared`);
    if (mine !== wanted) return;
    state.compared = compared;
    changed();
  } catch (error) {
    if (mine === wanted) fail(`Task ${id}: ${error.message}`);
  }
}

// Says why a task is not shown. The address stays as it is, so that a reload tries again.
function fail(line) {
  if (!state.origin.task) put({ ...state.origin, task: emptyTask() });
  tell(line);
}

// Shows a task that is not the server's.
function open(name, value) {
  wanted += 1;
  const clean = name.replace(/[^\w.-]|^\./g, "_").slice(0, 80); // it names files and a submission's task
  put({ name: clean || "my_task", task: value });
  saved = null; // so that the address comes to hold it
  written = "";
}

function openText(text, name = "my_task") {
  try {
    open(name, parseTask(text));
  } catch (error) {
    tell(`${name}: ${error.message}`);
  }
}

async function openFile(chosen) {
  if (chosen.size > LARGEST_FILE) tell(`${chosen.name}: expected at most 1 MB, a task has less`);
  else openText(await chosen.text(), chosen.name.replace(/\.json$/i, ""));
}

async function paste() {
  try {
    openText(await navigator.clipboard.readText());
  } catch {
    tell("The browser does not let this page read the clipboard: press Ctrl V here instead.");
  }
}

function begin() {
  const ids = listed();
  if (ids.length === 0) open("my_task", emptyTask());
  else load(ids.includes(FIRST) ? FIRST : ids[0], { keep: true });
}

async function openAddress() {
  written = location.hash.slice(1);
  const parts = new URLSearchParams(written);
  const [id, text] = [parts.get("task"), parts.get("t")];
  if (!text) return id ? load(id, { keep: true }) : begin();
  try {
    const edited = await decode(text);
    if (id) await load(id, { edited, keep: true });
    else open(parts.get("name") ?? "my_task", edited);
  } catch {
    fail("The link holds no whole task: it may have been cut on its way.");
  }
}

// The address follows what is drawn, so that a reload or a copied address loses nothing.
function save() {
  const whole = task();
  if (state.stroke || whole === saved) return;
  saved = whole;
  clearTimeout(saving);
  saving = setTimeout(async () => {
    const { name, source: of } = state.origin;
    const text = isEdited() || !of ? await encode(whole) : "";
    if (whole !== task()) return;
    const fits = text.length <= MAX_LINK;
    write({ [of ? "task" : "name"]: name, ...(text && fits ? { t: text } : {}) }, "replaceState");
  }, 300);
}

function move(step) {
  const ids = listed();
  if (ids.length === 0) return;
  const at = ids.indexOf(state.origin.name);
  const random = Math.floor(Math.random() * ids.length);
  load(ids[step === 0 ? random : (Math.max(at, step > 0 ? -1 : 0) + step + ids.length) % ids.length]);
}

function search(whole) {
  const text = field.value.trim().toLowerCase();
  const ids = listed();
  const found = ids.includes(text) ? text : whole && ids.find((id) => id.includes(text));
  if (found) {
    field.blur(); // so that the keys pick colors again
    load(found);
  }
  if (!found && whole) tell(`No task here has ${text} in its id.`);
}

const keys = { j: () => move(1), k: () => move(-1), r: () => move(0) };

function listen() {
  const clicks = {
    previous: keys.k,
    next: keys.j,
    random: keys.r,
    new: () => open("my_task", emptyTask()),
    open: () => file.click(),
    paste,
  };
  for (const [name, act] of Object.entries(clicks)) form.elements[name].addEventListener("click", act);
  file.addEventListener("change", () => {
    if (file.files[0]) openFile(file.files[0]);
    file.value = "";
  });
  field.addEventListener("input", () => search(false));
  source.addEventListener("change", fillList);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search(true);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest?.("input:not([type=radio], [type=checkbox]), select")) return;
    if (event.key === "/") field.select();
    else if (keys[event.key]) keys[event.key]();
    else return;
    event.preventDefault();
  });
  document.addEventListener("paste", (event) => {
    if (event.target.closest?.("input")) return;
    openText(event.clipboardData.getData("text"));
  });
  document.addEventListener("dragover", (event) => event.preventDefault());
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    const [dropped] = event.dataTransfer.files;
    if (dropped) openFile(dropped);
    else openText(event.dataTransfer.getData("text"));
  });
  addEventListener("popstate", () => location.hash.slice(1) !== written && openAddress());
}

function fillList() {
  const options = listed().map((id) => Object.assign(document.createElement("option"), { value: id }));
  document.getElementById("ids").replaceChildren(...options);
}

export async function startPicking() {
  listen();
  drawnBy(save);
  let trouble = "";
  try {
    sources = await call("tasks");
  } catch (error) {
    trouble = error.message;
  }
  openAddress();
  if (trouble) tell(trouble);
  for (const [name, ids] of Object.entries(sources)) {
    source.append(new Option(`${name} (${ids.length})`, name));
  }
  source.options[0].text = `all (${listed().length})`;
  fillList();
}
