// Filters the gallery and moves through it. The page's address holds the state after its #.
"use strict";
{
  const form = document.getElementById("filters");
  const output = form.querySelector("output");
  const nothing = document.getElementById("nothing");
  const choices = [...form.querySelectorAll("select")];
  const chosen = document.head.appendChild(document.createElement("style"));
  const groups = [...document.querySelectorAll(".group")];
  const kindsOf = Object.fromEntries(
    [...form.elements.result.options].map((o) => [o.value, o.dataset.kinds]),
  );
  const tasks = [...document.querySelectorAll(".gallery > li")].map((item) => ({
    item,
    id: item.id.slice("task=".length),
    kinds: item.dataset.kinds, // one digit a student, 0 the best kind
    size: item.dataset.size,
    output: item.dataset.output,
    group: item.dataset.group,
  }));
  for (const option of choices.flatMap((select) => [...select.options])) {
    option.dataset.text = option.textContent;
  }
  const near = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => fill(e.target)),
    { rootMargin: "800px 0px" },
  );
  let current = ""; // the task that was last gone to

  function wanted() {
    return Object.fromEntries(new FormData(form));
  }

  function fits(task, want) {
    const kind = want.student === "" ? [...task.kinds].sort()[0] : task.kinds[want.student];
    return (
      kindsOf[want.result].includes(kind) &&
      ["size", "output", "group"].every((name) => ["", task[name]].includes(want[name])) &&
      task.id.toLowerCase().includes(want.task_id.trim().toLowerCase())
    );
  }

  function show() {
    const want = wanted();
    for (const task of tasks) task.item.hidden = !fits(task, want);
    chosen.textContent =
      want.student && `.student:not([data-student="${want.student}"]) { display: none }`;
    for (const group of groups) group.hidden = !group.querySelector(".gallery > li:not([hidden])");
    const count = shown().length;
    output.textContent = `${count} of ${tasks.length} tasks`;
    nothing.hidden = count > 0;
    for (const select of choices) {
      // Beside each choice, what it would show with everything else as it is.
      for (const option of select.options) {
        const then = { ...want, [select.name]: option.value };
        const number = tasks.filter((task) => fits(task, then)).length;
        option.textContent = `${option.dataset.text} (${number})`;
      }
    }
    keepClearOfBar(); // whose lines break elsewhere with other counts
  }

  function shown() {
    return tasks.filter((task) => !task.item.hidden);
  }

  let saving;
  function save() {
    clearTimeout(saving); // browsers refuse an address that changes at every key
    saving = setTimeout(() => {
      const set = Object.entries({ ...wanted(), task: current }).filter(([, value]) => value);
      history.replaceState(null, "", `#${new URLSearchParams(set)}`);
    }, 150);
  }

  function load() {
    const state = new URLSearchParams(location.hash.slice(1));
    const names = ["task_id", "task", ...choices.map((select) => select.name)];
    const ours = names.some((name) => state.has(name));
    if (ours) {
      form.elements.task_id.value = state.get("task_id") ?? "";
      for (const select of choices) {
        const value = state.get(select.name) ?? "";
        const known = [...select.options].some((option) => option.value === value);
        select.value = known ? value : ""; // an address made by hand, or for another page
      }
    }
    show();
    if (!ours) return;
    const task = shown().find((each) => each.id === state.get("task"));
    if (task) goTo(task);
    else document.getElementById("tasks").scrollIntoView();
  }

  // A task's pictures come into being when it comes near the window.
  function fill(item) {
    const waiting = item.querySelector("noscript");
    if (waiting) waiting.outerHTML = waiting.textContent;
    near.unobserve(item);
  }

  function goTo(task) {
    fill(task.item);
    current = task.id;
    task.item.querySelector(".link").focus({ preventScroll: true });
    task.item.scrollIntoView();
    save();
  }

  function move(step) {
    const list = shown();
    if (list.length === 0) return;
    const focused = document.activeElement.closest(".gallery > li");
    const bar = bottomOfBar();
    let at = list.findIndex((task) => task.item === focused);
    const box = focused?.getBoundingClientRect();
    if (at < 0 || box.bottom < bar || box.top > innerHeight) {
      // Scrolled away by hand: go on from what is at the top of the window.
      at = list.findLastIndex((task) => task.item.getBoundingClientRect().top <= bar + 2);
    }
    goTo(list[Math.min(Math.max(at + step, 0), list.length - 1)]);
  }

  function bottomOfBar() {
    return getComputedStyle(form).position === "sticky" ? form.offsetHeight : 0;
  }

  function keepClearOfBar() {
    document.documentElement.style.setProperty("--bar", `${bottomOfBar() + 8}px`);
  }

  const moves = { j: 1, ArrowRight: 1, k: -1, ArrowLeft: -1 };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const search = form.elements.task_id;
    const typing = event.target.closest?.("input, select, textarea");
    if (event.key === "Escape" && event.target === search) {
      search.value = "";
      search.blur();
      show();
      save();
    } else if (typing || event.target.closest?.(".scroll")) {
      return; // there, arrows and letters have their own meaning
    } else if (event.key === "/") {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key in moves) {
      event.preventDefault();
      move(moves[event.key]);
    }
  });
  form.addEventListener("input", () => {
    show();
    save();
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => {
    current = "";
    setTimeout(() => {
      show(); // after the controls have their first values again
      save();
    });
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[href]");
    if (link?.matches(".link")) {
      event.preventDefault(); // as a plain address it would drop the filters
      goTo(tasks.find((task) => task.item.contains(link)));
    } else if (link?.hash === location.hash) {
      load(); // no hashchange comes of an address that is there already
    }
  });
  addEventListener("hashchange", load);
  addEventListener("beforeprint", () => tasks.forEach((task) => fill(task.item)));
  addEventListener("resize", keepClearOfBar);
  form.hidden = false;
  load();
  for (const task of tasks) near.observe(task.item);
}
