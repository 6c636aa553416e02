const MAP = { width: 720, height: 480, pad: 22 };

sections.map = (body, map) => {
  if (!map) return missing(body, "The traces have not been clustered yet.", "disentangle");
  const plot = mapPlot(map);
  const sizes = new Map();
  for (const point of map.points) sizes.set(point.cluster ?? null, (sizes.get(point.cluster ?? null) || 0) + 1);
  const order = [...sizes.keys()].sort((a, b) => (a ?? 1e9) - (b ?? 1e9));
  const legend = order.map((index) => {
    const button = h(
      "button",
      {
        type: "button",
        "aria-pressed": "false",
        click: () => {
          const on = button.getAttribute("aria-pressed") !== "true";
          for (const other of legend) other.setAttribute("aria-pressed", String(other === button && on));
          plot.highlight(on ? index : undefined);
        },
      },
      h("i", { class: `swatch ${clusterClass(index)}` }),
      h(
        "span",
        {},
        h("b", {}, index === null ? "no cluster" : `Cluster ${index}`),
        ` ${plural(sizes.get(index), "problem")}`,
        (map.terms[index] || []).length ? h("small", {}, map.terms[index].join(", ")) : null,
      ),
    );
    return button;
  });
  const hollow = map.points.some((point) => point.split === "validation");
  body.append(
    h(
      "div",
      { class: "side-by-side map" },
      h("div", { class: "plot" }, plot.svg),
      h(
        "div",
        { class: "aside" },
        h("div", { class: "legend", role: "group", "aria-label": "Show one cluster" }, legend),
        plot.panel,
        hollow
          ? h("p", { class: "note" }, "Hollow points belong to the validation split; they joined the nearest centroid.")
          : null,
      ),
    ),
  );
  if (map.scores.length) body.append(scoreCharts(map));
  body.append(h("details", {}, h("summary", {}, "Families by cluster"), familyTable(map, order)));
};

function mapPlot(map) {
  const points = map.points;
  const scale = (values, size) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (value) => (high > low ? MAP.pad + ((size - 2 * MAP.pad) * (value - low)) / (high - low) : size / 2);
  };
  const x = scale(
    points.map((point) => point.x),
    MAP.width,
  );
  const y = scale(
    points.map((point) => -point.y),
    MAP.height,
  );
  const places = points.map((point) => [x(point.x), y(-point.y)]);
  const text = (point) =>
    [point.problem, point.family, known(point.cluster) ? `cluster ${point.cluster}` : "", point.split]
      .filter(Boolean)
      .join(" · ");
  const radius = Math.max(3.5, Math.min(7, 90 / Math.sqrt(points.length || 1)));
  const dots = points.map((point, index) =>
    s(
      "circle",
      {
        class: `point ${clusterClass(point.cluster)}${point.split === "validation" ? " validation" : ""}`,
        cx: places[index][0].toFixed(1),
        cy: places[index][1].toFixed(1),
        r: radius.toFixed(1),
      },
      s("title", {}, text(point)),
    ),
  );
  const ring = s("circle", { class: "ring", r: radius + 4, visibility: "hidden" });
  const panel = h(
    "div",
    { class: "panel point-panel", "aria-live": "polite" },
    h("p", { class: "note" }, "Point at a dot, or focus the map and use the arrow keys."),
  );
  let current = -1;

  const choose = (index) => {
    if (index < 0 || index === current) return;
    current = index;
    const point = points[index];
    fill(ring, { cx: places[index][0], cy: places[index][1], visibility: "visible" }, []);
    const known_tree = data.trees && data.trees.items.some((tree) => tree.problem === point.problem);
    panel.replaceChildren(
      h("h3", {}, point.problem),
      definitions([
        ["Family", point.family],
        ["Cluster", known(point.cluster) ? String(point.cluster) : "–"],
        ["Split", point.split],
        ["Traces", known(point.traces) ? count(point.traces) : null],
      ]),
      known_tree ? h("a", { href: treeLink(point.problem) }, "Open its search tree") : "",
    );
  };
  const nearest = (px, py, keep) =>
    places.reduce(
      (best, [ax, ay], index) => {
        const distance = keep(ax - px, ay - py) ? Math.hypot(ax - px, ay - py) : Infinity;
        return distance < best[1] ? [index, distance] : best;
      },
      [-1, Infinity],
    );
  const KEYS = {
    ArrowRight: (dx, dy) => dx > 0 && dx >= Math.abs(dy),
    ArrowLeft: (dx, dy) => dx < 0 && -dx >= Math.abs(dy),
    ArrowDown: (dx, dy) => dy > 0 && dy >= Math.abs(dx),
    ArrowUp: (dx, dy) => dy < 0 && -dy >= Math.abs(dx),
  };
  const at = (event) => {
    const box = svg.getBoundingClientRect();
    const found = nearest(
      ((event.clientX - box.left) * MAP.width) / box.width,
      ((event.clientY - box.top) * MAP.height) / box.height,
      () => true,
    );
    if (found[1] < 40) choose(found[0]);
  };
  const svg = s(
    "svg",
    {
      viewBox: `0 0 ${MAP.width} ${MAP.height}`,
      tabindex: 0,
      role: "application",
      "aria-label": `t-SNE map of ${plural(points.length, "problem")} by cluster; arrow keys move between points`,
      pointermove: at,
      click: at,
      keydown: (event) => {
        if (!KEYS[event.key]) return;
        event.preventDefault();
        choose(current < 0 ? 0 : nearest(places[current][0], places[current][1], KEYS[event.key])[0]);
      },
    },
    dots,
    ring,
  );
  const highlight = (cluster) =>
    dots.forEach((dot, index) =>
      dot.classList.toggle("faint", cluster !== undefined && (points[index].cluster ?? null) !== cluster),
    );
  return { svg, panel, highlight };
}

function scoreCharts(map) {
  const chart = (key, title, note) => {
    const rows = map.scores.filter((score) => known(score[key]));
    if (!rows.length) return null;
    const [width, height, left, bottom, top] = [300, 150, 46, 24, 12];
    const values = rows.map((row) => row[key]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const ks = rows.map((row) => row.k);
    const x = (k) => left + ((width - left - 14) * (k - ks[0])) / (ks[ks.length - 1] - ks[0] || 1);
    const y = (value) =>
      high > low ? height - bottom - ((height - bottom - top) * (value - low)) / (high - low) : height / 2;
    const ticks = high > low ? [low, high] : [low];
    return h(
      "figure",
      {},
      h("figcaption", {}, h("b", {}, title), ` ${note}`),
      s(
        "svg",
        {
          class: "line-chart",
          viewBox: `0 0 ${width} ${height}`,
          role: "img",
          "aria-label": `${title} by K: ${rows.map((row) => `${row.k}: ${fixed(row[key], 3)}`).join(", ")}`,
        },
        ticks.map((value) => [
          s("line", { class: "axis", x1: left, x2: width - 8, y1: y(value), y2: y(value) }),
          s("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end" }, fixed(value, high >= 100 ? 0 : 2)),
        ]),
        s("path", { class: "line", d: `M${rows.map((row) => `${x(row.k)} ${y(row[key])}`).join("L")}` }),
        rows.map((row) => [
          s(
            "circle",
            {
              class: row.k === map.k ? "knot used" : "knot",
              cx: x(row.k),
              cy: y(row[key]),
              r: row.k === map.k ? 6 : 3.5,
            },
            s("title", {}, `K = ${row.k}: ${fixed(row[key], 4)}`),
          ),
          s(
            "text",
            { x: x(row.k), y: height - 6, "text-anchor": "middle", class: row.k === map.k ? "used" : null },
            row.k,
          ),
        ]),
      ),
    );
  };
  return h(
    "div",
    { class: "score-charts" },
    h("h3", {}, `Number of clusters: K = ${map.k ?? "–"}`),
    h(
      "div",
      { class: "pair" },
      chart("sse", "Squared error", "within clusters, by K; look for the bend"),
      chart("silhouette", "Silhouette", "by K; higher separates better"),
    ),
  );
}

function familyTable(map, order) {
  const families = [...new Set(map.points.map((point) => point.family || "none"))].sort();
  const n = (family, cluster) =>
    map.points.filter((point) => (point.family || "none") === family && (point.cluster ?? null) === cluster).length;
  return table(
    "Number of problems by family and cluster",
    ["Family", ...order.map((index) => (index === null ? "no cluster" : `cluster ${index}`))],
    families.map((family) => [family, ...order.map((index) => count(n(family, index)))]),
    "narrow",
  );
}
