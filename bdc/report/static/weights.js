sections.weights = (body, weights) => {
  const rows = weights
    ? weights.clusters
        .map((layers, cluster) => ({ cluster, layers }))
        .filter((row) => row.layers.some((layer) => layer.length))
    : [];
  if (!rows.length || !weights.layers.length)
    return missing(body, "Rank weights have not been measured yet.", "evaluate");
  const size = weights.experts * weights.rank;
  const all = rows.flatMap((row) => row.layers.flat());
  const centre = sum(all) / all.length;
  const peak = all.reduce((top, value) => Math.max(top, Math.abs(value - centre)), 0);
  const averaged = rows.map((row) =>
    range(size).map((rank) => sum(row.layers.map((layer) => layer[rank])) / row.layers.length),
  );
  const target = h("div", {
    class: "scroll heat",
    tabindex: 0,
    role: "region",
    "aria-label": "Heat map of rank weights",
  });
  const means = h("div");
  const show = (index) => {
    const values = index === 0 ? averaged : rows.map((row) => row.layers[index - 1]);
    target.replaceChildren(heatMap(weights, rows, values, centre, peak));
    means.replaceChildren(expertTable(weights, rows, values));
    for (const [at, bar] of bars.entries()) bar.classList.toggle("chosen", at === index - 1);
  };
  const control = picker("Layer", ["mean of all layers", ...weights.layers], show);
  const choose = (index) => {
    control.select.value = String(index);
    show(index);
  };
  const [strip, bars] = spreadStrip(weights, rows, (layer) => choose(layer + 1));
  const empty = weights.clusters.length - rows.length;
  body.append(
    h("div", { class: "controls" }, control.label),
    target,
    scaleLegend(centre, peak),
    empty
      ? h(
          "p",
          { class: "note" },
          `${plural(empty, "cluster")} without a held-out problem ${empty === 1 ? "is" : "are"} left out.`,
        )
      : "",
    strip,
    h("details", {}, h("summary", {}, "Mean weight per expert"), means),
  );
  show(0);
};

function heatMap(weights, rows, values, centre, peak) {
  const columns = weights.experts * weights.rank;
  const width = Math.max(13, Math.min(38, Math.floor(920 / columns)));
  const [height, left, top, gap] = [38, 78, 44, 12];
  const x = (rank) => left + rank * width + Math.floor(rank / weights.rank) * gap;
  const heads = range(weights.experts).map((expert) =>
    s(
      "text",
      { class: "head", x: x(expert * weights.rank) + (weights.rank * width) / 2, y: 16, "text-anchor": "middle" },
      `Expert ${expert}`,
    ),
  );
  const ranks =
    width < 18
      ? []
      : range(columns).map((rank) =>
          s("text", { x: x(rank) + width / 2, y: 36, "text-anchor": "middle" }, (rank % weights.rank) + 1),
        );
  const cells = rows.flatMap((row, at) =>
    values[at].map((value, rank) => {
      const shift = peak >= 1e-6 ? (value - centre) / peak : 0;
      const place = { x: x(rank), y: top + at * height };
      const rect = s(
        "rect",
        { class: `cell ${shift < 0 ? "below" : "above"}`, ...place, width: width - 2, height: height - 2, rx: 3 },
        s(
          "title",
          {},
          `cluster ${row.cluster}, expert ${Math.floor(rank / weights.rank)}, rank ${(rank % weights.rank) + 1}: ${fixed(value, 4)}`,
        ),
      );
      withNumber(rect, "--t", Math.abs(shift).toFixed(4));
      return [
        rect,
        width >= 34
          ? s(
              "text",
              { class: "number", x: place.x + width / 2 - 1, y: place.y + height / 2 + 3, "text-anchor": "middle" },
              fixed(value, 2),
            )
          : null,
      ];
    }),
  );
  const names = rows.map((row, at) =>
    s(
      "text",
      { class: "head", x: left - 10, y: top + at * height + height / 2 + 4, "text-anchor": "end" },
      `Cluster ${row.cluster}`,
    ),
  );
  const full = x(columns - 1) + width;
  return s(
    "svg",
    {
      width: full,
      height: top + rows.length * height,
      viewBox: `0 0 ${full} ${top + rows.length * height}`,
      role: "img",
      "aria-label": `Rank weights: ${plural(rows.length, "cluster")} by ${weights.experts} experts of rank ${weights.rank}; the table of mean weights below holds the same data in short`,
    },
    heads,
    ranks,
    names,
    cells,
  );
}

function scaleLegend(centre, peak) {
  if (peak < 1e-6) return h("p", { class: "note" }, `Every weight is ${fixed(centre, 3)}.`);
  const steps = [-1, -0.75, -0.5, -0.25, 0, 0.25, 0.5, 0.75, 1];
  const boxes = steps.map((t, index) =>
    withNumber(
      s("rect", { class: `step ${t < 0 ? "below" : "above"}`, x: index * 18, y: 0, width: 18, height: 12 }),
      "--t",
      Math.abs(t),
    ),
  );
  return h(
    "p",
    { class: "scale note" },
    fixed(centre - peak, 3),
    s("svg", { width: 162, height: 12, "aria-hidden": "true" }, boxes),
    fixed(centre + peak, 3),
    h("span", {}, `centred on the mean weight ${fixed(centre, 3)}; one scale for all layers`),
  );
}

// How far the clusters differ in each layer: mean over ranks of the range across clusters.
function spreadStrip(weights, rows, pick) {
  const spread = weights.layers.map(
    (_, layer) =>
      sum(
        range(weights.experts * weights.rank).map((rank) => {
          const values = rows.map((row) => row.layers[layer][rank]);
          return Math.max(...values) - Math.min(...values);
        }),
      ) /
      (weights.experts * weights.rank),
  );
  const top = Math.max(...spread);
  if (rows.length < 2 || !(top > 0) || weights.layers.length < 2) return ["", []];
  const [width, height] = [Math.max(3, 960 / weights.layers.length), 56];
  const bars = spread.map((value, layer) => {
    const tall = Math.max(1, (height * value) / top);
    return s(
      "g",
      { class: "layer", click: () => pick(layer) },
      s("rect", { class: "reach", x: layer * width, y: 0, width, height }),
      s("rect", { class: "bar", x: layer * width, y: height - tall, width: Math.max(1, width * 0.8), height: tall }),
      s("title", {}, `${weights.layers[layer]}: ${fixed(value, 4)}`),
    );
  });
  const full = width * weights.layers.length;
  const peak = spread.indexOf(top);
  return [
    h(
      "figure",
      { class: "strip" },
      h(
        "figcaption",
        {},
        h("b", {}, "Spread between clusters"),
        ` layer by layer, first to last. Largest: ${weights.layers[peak]} (${fixed(top, 3)}). Choose a bar to see its layer.`,
      ),
      s(
        "svg",
        {
          viewBox: `0 0 ${full} ${height}`,
          preserveAspectRatio: "none",
          height,
          role: "img",
          "aria-label": `Spread of rank weights between clusters for ${weights.layers.length} layers, largest in ${weights.layers[peak]}`,
        },
        bars,
      ),
    ),
    bars,
  ];
}

function expertTable(weights, rows, values) {
  const mean = (row, expert) => sum(row.slice(expert * weights.rank, (expert + 1) * weights.rank)) / weights.rank;
  return table(
    "Mean weight of each expert by cluster",
    ["Cluster", ...range(weights.experts).map((expert) => `expert ${expert}`)],
    rows.map((row, at) => [
      `cluster ${row.cluster}`,
      ...range(weights.experts).map((expert) => fixed(mean(values[at], expert), 4)),
    ]),
    "narrow",
  );
}
