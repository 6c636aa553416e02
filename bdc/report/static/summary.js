sections.header = (body, header) => {
  const splits = Object.entries(header.splits).map(([name, n]) => `${name} ${n}`).join(", ");
  body.append(definitions([
    ["Started", header.started], ["Last result", header.ended], ["Machine", header.machine], ["Device", header.device],
    ["Version", `bdc ${header.version}`], ["Models", header.models.join(", ")], ["Agents", header.agents.join(", ")],
    ["Problems", `${count(header.problems)}${splits ? ` (${splits})` : ""}`],
    ["Searched", `${count(header.trees)} trees, ${count(header.solved)} pass every private test`],
    ["Traces", header.traces === null ? null : `${count(header.traces)} from ${count(header.traced_problems)} problems`],
    ["Tokens", count(header.tokens)], ["Time in stages", duration(header.seconds)],
  ]));
};

const shown = (metric, value) => (metric.fraction ? percent(value) : fixed(value, 3));
// A difference of two shares is in percentage points.
const gap = (metric, value) => {
  if (value === null || value === undefined) return "–";
  const text = metric.fraction ? `${(100 * value).toFixed(1)} points` : value.toFixed(3);
  return value > 0 ? `+${text}` : text;
};
const usable = (value) => value && value.mean !== null && value.mean !== undefined;

// One axis per metric, over every system, so that whiskers of a column compare by eye.
function whiskers(metric, systems) {
  const values = systems.map((system) => system[metric.key]).filter(usable);
  const ends = values.flatMap((v) => [v.low ?? v.mean, v.high ?? v.mean, v.mean]);
  const low = metric.fraction ? 0 : Math.min(...ends);
  const high = metric.fraction ? 1 : Math.max(...ends);
  const x = (value) => 4 + (112 * (value - low)) / (high - low || 1);
  return (v) => s("svg", { width: 120, height: 14, viewBox: "0 0 120 14", role: "img", "aria-label": `${shown(metric, v.mean)}, interval ${shown(metric, v.low)} to ${shown(metric, v.high)}` },
    s("line", { class: "axis", x1: 4, x2: 116, y1: 13, y2: 13 }),
    v.low == null || v.high == null ? null : s("path", { class: "whisker", d: `M${x(v.low)} 7H${x(v.high)}M${x(v.low)} 3v8M${x(v.high)} 3v8` }),
    s("circle", { class: "mean", cx: x(v.mean), cy: 7, r: 3 }));
}

sections.results = (body, results) => {
  if (!results) return missing(body, "Nothing has been evaluated yet", "evaluate");
  body.append(h("p", { class: "soft" }, `${results.problems} problems held out, 95 % bootstrap intervals, seed ${results.seed ?? "–"}.`));
  const draw = results.metrics.map((metric) => whiskers(metric, results.systems));
  const best = results.metrics.map((metric) => {
    const means = results.systems.map((system) => system[metric.key]).filter(usable).map((value) => value.mean);
    return metric.better === "lower" ? Math.min(...means) : Math.max(...means);
  });
  const cell = (system, metric, index) => {
    const value = system[metric.key];
    if (!usable(value)) return h("td", {}, "–");
    return h("td", { class: value.mean === best[index] ? "best" : null }, shown(metric, value.mean),
      h("small", {}, `[${shown(metric, value.low)}, ${shown(metric, value.high)}]`), draw[index](value));
  };
  const rows = results.systems.map((system) => h("tr", { class: system.name === results.ours ? "system ours" : "system" },
    h("td", {}, system.label || system.name), results.metrics.map((metric, index) => cell(system, metric, index))));
  body.append(table(["System", ...results.metrics.map((metric) => `${metric.label} (${metric.better} is better)`)], rows));
  body.append(...results.verdicts.map((sentence) => h("p", {}, sentence)));
  const labels = Object.fromEntries(results.systems.map((system) => [system.name, system.label || system.name]));
  const metrics = Object.fromEntries(results.metrics.map((metric) => [metric.key, metric]));
  const sides = { ahead: "BDC ahead", behind: "BDC behind", open: "not separated" };
  if (results.differences.length) {
    body.append(h("h3", {}, "BDC minus the other system, paired by problem"));
    body.append(table(["Other system", "Metric", "Difference", "95 % interval", "Reading"], results.differences.map((d) => {
      const metric = metrics[d.metric];
      return [labels[d.system] || d.system, metric.label, gap(metric, d.mean), `[${gap(metric, d.low)}, ${gap(metric, d.high)}]`, sides[d.favours] || "–"];
    })));
  }
};

sections.costs = (body, costs) => {
  const cost = (row) => [count(row.prompt_tokens), count(row.completion_tokens), duration(row.seconds)];
  body.append(h("p", {}, `${count(costs.tokens)} tokens, ${duration(costs.seconds)} in finished stages.`));
  body.append(table(["Stage", "Time", "Finished"], costs.stages.map((stage) => [stage.name, duration(stage.seconds), stage.when || "not yet"])));
  body.append(h("h3", {}, "Model calls"));
  if (costs.calls.length) {
    body.append(table(["Stage", "Role", "Agent", "Calls", "Prompt tokens", "Completion tokens", "Time"],
      costs.calls.map((row) => h("tr", { class: "call" }, [row.stage, row.role, row.agent, count(row.calls), ...cost(row)].map((text) => h("td", {}, text))))));
  } else {
    missing(body, "No model has been called yet", "boost");
  }
  if (costs.systems.length) {
    body.append(h("h3", {}, "Evaluated systems"));
    body.append(table(["System", "Prompt tokens", "Completion tokens", "Time"], costs.systems.map((row) => [row.name, ...cost(row)])));
  }
};

sections.reproduce = (body, reproduce) => {
  if (reproduce.config === null) {
    body.append(h("p", { class: "missing" }, "This run has no config.toml; ", h("code", {}, "bdc run CONFIG"), " writes one."));
    return;
  }
  body.append(h("p", {}, "Repeat with ", h("code", {}, reproduce.command), "."), h("pre", {}, reproduce.config));
};
