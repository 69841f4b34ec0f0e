// The loss and the fit of a task that is learnt, step by step, as one SVG with two scales.

const [WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM] = [480, 210, 52, 60, 12, 42];

function make(name, attributes = {}, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.textContent = text;
  return node;
}

// The next short number: where an axis ends.
function covering(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  const short = [1, 1.2, 1.6, 2, 3, 4, 6, 8, 10].map((each) => Number((each * power).toPrecision(2)));
  return short.find((each) => each >= value) ?? 10 * power;
}

// curve: [[step, loss in nats a cell, fit 0..1], ...], in order.
export function drawCurve(figure, curve) {
  const last = curve.at(-1);
  const steps = covering(Math.max(last[0], 10));
  // The first losses can be many times the rest: they would flatten everything.
  const losses = curve.map(([, loss]) => loss).sort((a, b) => a - b);
  const most = covering(Math.max(losses[Math.floor(0.95 * (losses.length - 1))], 1e-3));
  const across = (step) => LEFT + (step / steps) * (WIDTH - LEFT - RIGHT);
  const down = (share) => HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP);
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  const [loss, fit] = [last[1].toPrecision(2), `${(100 * last[2]).toFixed(1)} %`];
  svg.setAttribute(
    "aria-label",
    `Loss and fit by step; the last at step ${last[0]}: loss ${loss} nats a cell, fit ${fit}`,
  );
  for (const share of [0, 0.5, 1]) {
    const line = `M${LEFT} ${down(share)}H${WIDTH - RIGHT}M${across(share * steps)} ${down(0)}V${TOP}`;
    svg.append(
      make("path", { class: "axis", d: line }),
      make("text", { x: LEFT - 6, y: down(share) + 4, "text-anchor": "end" }, `${share * most}`),
      make("text", { x: WIDTH - RIGHT + 6, y: down(share) + 4 }, `${100 * share} %`),
      make("text", { x: across(share * steps), y: HEIGHT - 23, "text-anchor": "middle" }, `${share * steps}`),
    );
  }
  svg.append(make("text", { x: WIDTH / 2, y: HEIGHT - 4, "text-anchor": "middle" }, "step"));
  const drawn = { s0: ([, value]) => Math.min(value / most, 1), s1: ([, , value]) => value };
  for (const [style, share] of Object.entries(drawn)) {
    const points = curve.map((point) => `${across(point[0]).toFixed(1)},${down(share(point)).toFixed(1)}`);
    const group = make("g", { class: style });
    group.append(make("polyline", { points: points.join(" ") }));
    svg.append(group);
  }
  const legend = document.createElement("ul");
  legend.className = "legend";
  legend.append(
    entry("s0", `loss ${loss} nats a cell (left)`),
    entry("s1", `fit ${fit} of the examples’ cells right (right)`),
  );
  if (curve.some(falls)) {
    const note = document.createElement("li");
    note.textContent = "Where the fit falls, a new round begins from other weights; all vote.";
    legend.append(note);
  }
  figure.replaceChildren(svg, legend);
}

function falls([, , fit], i, curve) {
  return i > 0 && fit < curve[i - 1][2] - 0.25;
}

function entry(style, text) {
  const item = document.createElement("li");
  const svg = make("svg", { viewBox: "0 0 24 10", width: 24, height: 10, "aria-hidden": "true" });
  svg.append(make("polyline", { points: "0,5 24,5" }));
  item.className = style;
  item.append(svg, ` ${text}`);
  return item;
}
