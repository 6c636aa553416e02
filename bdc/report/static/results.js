const usable = (value) => known(value) && known(value.mean);
const shown = (metric, value) => (metric.fraction ? percent(value) : fixed(value, 3));
const bare = (metric, value) => (metric.fraction ? fixed(100 * value, 1) : fixed(value, 3));
const bracket = (metric, v) =>
  known(v.low) && known(v.high) ? `[${bare(metric, v.low)}, ${bare(metric, v.high)}]` : "";
const labelOf = (system) => system.label || system.name;

// A difference of two shares is in percentage points.
function signed(metric, value) {
  const text = bare(metric, value);
  return `${value > 0 ? "+" : ""}${text}${metric.fraction ? " pp" : ""}`;
}

const PLOT = { width: 132, height: 16, pad: 5 };

// A whisker plot whose axis spans every value given, zero included for shares; `mark` draws a vertical rule.
function whiskers(values, fraction, mark) {
  const ends = values.filter(usable).flatMap((v) => [v.low ?? v.mean, v.high ?? v.mean, v.mean]);
  if (known(mark)) ends.push(mark);
  let [low, high] = [Math.min(...ends), Math.max(...ends)];
  if (fraction) [low, high] = [Math.min(0, low), Math.max(high, 0.05)];
  const x = (value) => PLOT.pad + ((PLOT.width - 2 * PLOT.pad) * (value - low)) / (high - low || 1);
  const draw = (v, label) =>
    s(
      "svg",
      { class: "whiskers", width: PLOT.width, height: PLOT.height, role: "img", "aria-label": label },
      s("line", { class: "axis", x1: PLOT.pad, x2: PLOT.width - PLOT.pad, y1: 8, y2: 8 }),
      known(mark) ? s("line", { class: "mark", x1: x(mark), x2: x(mark), y1: 0, y2: PLOT.height }) : null,
      known(v.low) && known(v.high)
        ? s("path", { class: "whisker", d: `M${x(v.low)} 8H${x(v.high)}M${x(v.low)} 4v8M${x(v.high)} 4v8` })
        : null,
      s("circle", { class: "mean", cx: x(v.mean), cy: 8, r: 4 }),
    );
  return { draw, low, high };
}

sections.results = (body, results) => {
  if (!results) return missing(body, "Nothing has been evaluated yet.", "evaluate");
  const systems = results.systems;
  body.append(
    h(
      "ul",
      { class: "verdicts" },
      results.verdicts.map((sentence) => h("li", {}, sentence)),
    ),
    resultTable(results, systems),
  );
  body.append(
    h(
      "p",
      { class: "note" },
      `${plural(results.problems, "held-out problem")}, seed ${results.seed ?? "–"}. Bold marks the best mean of` +
        " a column. Loss is cross-entropy in nats per token of a reference solution; AC is the share of problems whose private tests all pass.",
    ),
  );
  if (results.differences.length)
    body.append(
      h("h3", {}, "BDC minus each other system"),
      h(
        "p",
        { class: "note" },
        "Paired by problem: both systems are resampled together, so hard problems do not blur the comparison. An interval" +
          " that crosses the line at zero leaves the order open.",
      ),
      differenceTable(results, systems),
    );
  if (systems.some((system) => (system.per_problem || []).length))
    body.append(h("details", {}, h("summary", {}, "Problem by problem"), problemTable(systems)));
};

function resultTable(results, systems) {
  const plots = results.metrics.map((metric) =>
    whiskers(
      systems.map((system) => system[metric.key]),
      metric.fraction,
    ),
  );
  const best = results.metrics.map((metric) => {
    const means = systems
      .map((system) => system[metric.key])
      .filter(usable)
      .map((value) => value.mean);
    return metric.better === "lower" ? Math.min(...means) : Math.max(...means);
  });
  const cell = (system, metric, index) => {
    const value = system[metric.key];
    if (!usable(value)) return h("td", { class: "metric" }, "–");
    const text = `${shown(metric, value.mean)} ${bracket(metric, value)}`;
    return h(
      "td",
      { class: value.mean === best[index] ? "metric best" : "metric" },
      h("span", { class: "figure" }, h("b", {}, shown(metric, value.mean)), h("small", {}, bracket(metric, value))),
      plots[index].draw(value, text),
    );
  };
  const heads = results.metrics.map((metric, index) =>
    h(
      "th",
      { class: "metric", title: metric.meaning },
      metric.label,
      h("small", {}, `${metric.better} is better`),
      Number.isFinite(plots[index].low)
        ? h(
            "span",
            { class: "ends", "aria-hidden": "true" },
            h("i", {}, bare(metric, plots[index].low)),
            h("i", {}, bare(metric, plots[index].high)),
          )
        : null,
    ),
  );
  const tokens = (system) => (system.prompt_tokens || 0) + (system.completion_tokens || 0);
  const rows = systems.map((system) =>
    h(
      "tr",
      { class: system.name === results.ours ? "system ours" : "system" },
      h("th", {}, labelOf(system)),
      results.metrics.map((metric, index) => cell(system, metric, index)),
      h(
        "td",
        { title: `${count(system.prompt_tokens)} read, ${count(system.completion_tokens)} written` },
        count(tokens(system)),
      ),
      h("td", {}, known(system.seconds) ? seconds(system.seconds) : "–"),
    ),
  );
  return table("Results by system and metric", ["System", ...heads, "Tokens", "Seconds"], rows, "results");
}

const SIDES = { ahead: "BDC better", behind: "BDC worse", open: "not separated" };

function differenceTable(results, systems) {
  const of = (system, metric) => results.differences.find((d) => d.system === system.name && d.metric === metric.key);
  const others = systems.filter((system) => system.name !== results.ours);
  const metrics = results.metrics.filter((metric) => results.differences.some((d) => d.metric === metric.key));
  const plots = metrics.map((metric) =>
    whiskers(
      results.differences.filter((d) => d.metric === metric.key),
      false,
      0,
    ),
  );
  const cell = (system, metric, index) => {
    const value = of(system, metric);
    if (!usable(value)) return h("td", { class: "metric" }, "–");
    const text = `${signed(metric, value.mean)} ${bracket(metric, value)}`;
    return h(
      "td",
      { class: `metric difference ${value.favours || "open"}` },
      h("span", { class: "figure" }, h("b", {}, signed(metric, value.mean)), h("small", {}, bracket(metric, value))),
      plots[index].draw(value, text),
      h("small", { class: "side" }, SIDES[value.favours] || ""),
    );
  };
  const heads = metrics.map((metric) =>
    h(
      "th",
      { class: "metric" },
      metric.label,
      h("small", {}, `${metric.better === "lower" ? "left" : "right"} of zero: BDC better`),
    ),
  );
  return table(
    "Paired differences: BDC minus each other system",
    ["Against", ...heads],
    others.map((system) => [labelOf(system), ...metrics.map((metric, index) => cell(system, metric, index))]),
    "results",
  );
}

function problemTable(systems) {
  const ids = [...new Set(systems.flatMap((system) => (system.per_problem || []).map((row) => row.id)))];
  const found = systems.map((system) => new Map((system.per_problem || []).map((row) => [row.id, row])));
  const cell = (row) =>
    row
      ? withNumber(
          h(
            "td",
            { class: "share", title: known(row.loss) ? `loss ${fixed(row.loss, 3)}` : null },
            known(row.pass_rate) ? `${Math.round(100 * row.pass_rate)} %${row.solved ? " ✓" : ""}` : "–",
          ),
          "--t",
          row.pass_rate ?? 0,
        )
      : h("td", {}, "–");
  return table(
    "Pass rate by problem and system; a tick marks a solved problem",
    ["Problem", ...systems.map(labelOf)],
    ids.map((id) => [id, ...found.map((rows) => cell(rows.get(id)))]),
    "shares",
  );
}
