sections.costs = (body, costs) => {
  const { calls, stages, systems } = costs;
  const done = stages.filter((stage) => known(stage.seconds));
  if (!calls.length && !done.length && !systems.length) return missing(body, "Nothing has been spent yet.", "boost");
  const longest = Math.max(0, ...done.map((stage) => stage.seconds));
  body.append(
    h(
      "div",
      { class: "cost-grid" },
      h(
        "div",
        {},
        h("h3", {}, "Time by stage"),
        table(
          "Wall-clock time by stage",
          ["Stage", "Time", noHead(), "Finished"],
          stages.map((stage) => [
            stage.name,
            duration(stage.seconds),
            bar(stage.seconds, longest),
            stage.when || "not run",
          ]),
          "narrow",
        ),
      ),
      ["stage", "role", "agent"].map((key) => costTable(calls, key)),
    ),
  );
  if (systems.length) {
    const most = Math.max(...systems.map((system) => system.prompt_tokens + system.completion_tokens));
    body.append(
      h("h3", {}, "Evaluation by system"),
      table(
        "Tokens and seconds by evaluated system",
        ["System", "Read", "Written", "Tokens", noHead(), "Seconds"],
        systems.map((row) => [
          row.name,
          count(row.prompt_tokens),
          count(row.completion_tokens),
          count(row.prompt_tokens + row.completion_tokens),
          bar(row.prompt_tokens + row.completion_tokens, most),
          seconds(row.seconds),
        ]),
      ),
    );
  }
  if (calls.length)
    body.append(h("details", {}, h("summary", {}, "All calls, by stage, role and agent"), callTable(calls)));
};

const noHead = () => h("td", { class: "bar-cell", "aria-hidden": "true" });

function bar(value, most) {
  return h(
    "td",
    { class: "bar-cell", "aria-hidden": "true" },
    withNumber(h("i", { class: "bar" }), "--t", most > 0 ? ((value || 0) / most).toFixed(4) : 0),
  );
}

const tokensOf = (row) => row.prompt_tokens + row.completion_tokens;

function costTable(calls, key) {
  if (!calls.length) return null;
  const groups = new Map();
  for (const call of calls) groups.set(call[key], [...(groups.get(call[key]) || []), call]);
  const rows = [...groups].map(([name, group]) => ({
    name,
    tokens: sum(group.map(tokensOf)),
    calls: sum(group.map((row) => row.calls)),
    seconds: sum(group.map((row) => row.seconds)),
  }));
  const most = Math.max(...rows.map((row) => row.tokens));
  rows.sort((a, b) => b.tokens - a.tokens);
  return h(
    "div",
    {},
    h("h3", {}, `Calls by ${key}`),
    table(
      `Calls, tokens and seconds by ${key}`,
      [key[0].toUpperCase() + key.slice(1), "Calls", "Tokens", noHead(), "Seconds"],
      rows.map((row) => [row.name, count(row.calls), count(row.tokens), bar(row.tokens, most), seconds(row.seconds)]),
      "narrow",
    ),
  );
}

function callTable(calls) {
  const line = (row) => [
    count(row.calls),
    count(row.prompt_tokens),
    count(row.completion_tokens),
    seconds(row.seconds),
  ];
  const total = {
    calls: sum(calls.map((row) => row.calls)),
    prompt_tokens: sum(calls.map((row) => row.prompt_tokens)),
    completion_tokens: sum(calls.map((row) => row.completion_tokens)),
    seconds: sum(calls.map((row) => row.seconds)),
  };
  const rows = calls.map((row) =>
    h(
      "tr",
      { class: "call" },
      [row.stage, row.role, row.agent].map((text, index) => h(index ? "td" : "th", { class: "text" }, text)),
      line(row).map((text) => h("td", {}, text)),
    ),
  );
  const foot = h(
    "tr",
    { class: "total" },
    h("th", { class: "text" }, "total"),
    h("td", {}),
    h("td", {}),
    line(total).map((text) => h("td", {}, text)),
  );
  const text = (name) => h("th", { class: "text" }, name);
  return table(
    "All calls",
    [text("Stage"), text("Role"), text("Agent"), "Calls", "Read", "Written", "Seconds"],
    [...rows, foot],
  );
}

sections.reproduce = (body, reproduce) => {
  if (!known(reproduce.config)) {
    body.parentNode.dataset.missing = "1";
    body.append(
      h(
        "p",
        { class: "notice" },
        "This run keeps no config.toml. This command starts one that does: ",
        h("code", {}, "bdc run CONFIG.toml"),
      ),
    );
    return;
  }
  body.append(
    h("h3", {}, "Command"),
    copyable(reproduce.command),
    h("h3", {}, "config.toml"),
    copyable(reproduce.config),
  );
};
