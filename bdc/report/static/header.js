sections.header = (body, header) => {
  const splits = Object.entries(header.splits)
    .map(([name, n]) => `${name} ${n}`)
    .join(", ");
  const stat = (value, name, note) =>
    h("li", {}, h("strong", {}, value), h("span", {}, name), note ? h("small", {}, note) : null);
  const traces = known(header.traces)
    ? stat(count(header.traces), "training pairs", `from verified traces of ${plural(header.traced_problems, "problem")}`)
    : null;
  body.append(
    h(
      "ul",
      { class: "stats" },
      stat(count(header.problems), "problems", splits),
      header.trees
        ? stat(`${count(header.solved)} / ${count(header.trees)}`, "searched and solved", "all private tests passed")
        : null,
      traces,
      stat(count(header.tokens), "tokens", "read and written"),
      stat(duration(header.seconds), "in stages", "wall clock"),
    ),
    definitions([
      ["Started", header.started],
      ["Last result", header.ended],
      ["Models", header.models.join(", ")],
      ["Agents", header.agents.join(", ")],
      ["Machine", header.machine],
      ["Device", header.device],
      ["Version", `bdc ${header.version}`],
    ]),
  );
};
