sections.map = (body, map) => {
  if (!map) return missing(body, "The problems have not been clustered yet", "disentangle");
  const [width, height, pad] = [640, 420, 16];
  const scale = (values, size) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return (value) => (high > low ? pad + ((size - 2 * pad) * (value - low)) / (high - low) : size / 2);
  };
  const x = scale(map.points.map((point) => point.x), width);
  const y = scale(map.points.map((point) => -point.y), height);
  const dots = map.points.map((point) => s("circle", { class: `point ${clusterClass(point.cluster)}${point.split === "validation" ? " validation" : ""}`, cx: x(point.x).toFixed(1), cy: y(-point.y).toFixed(1), r: 5 },
    s("title", {}, [point.problem, point.family, `cluster ${point.cluster ?? "–"}`, point.split].filter(Boolean).join(" · "))));
  const sizes = new Map();
  for (const point of map.points) sizes.set(point.cluster ?? null, (sizes.get(point.cluster ?? null) || 0) + 1);
  const order = [...sizes.keys()].sort((a, b) => (a ?? 1e9) - (b ?? 1e9));
  body.append(h("p", { class: "soft" }, `t-SNE of ${map.points.length} statements, K = ${map.k ?? "–"}; hollow points are the validation split. Distances between far groups mean little.`));
  body.append(s("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "t-SNE map of problems by cluster" }, dots));
  body.append(h("ul", { class: "legend" }, order.map((index) => h("li", {},
    s("svg", { width: 12, height: 12 }, s("circle", { class: clusterClass(index), cx: 6, cy: 6, r: 5 })),
    `${index === null ? "no cluster" : `cluster ${index}`} (${sizes.get(index)})${(map.terms[index] || []).length ? `: ${map.terms[index].join(", ")}` : ""}`))));
  if (map.scores.length) {
    body.append(table(["K", "SSE", "Silhouette"], map.scores.map((score) => [`${score.k}${score.k === map.k ? " (used)" : ""}`, fixed(score.sse, 3), fixed(score.silhouette, 3)])));
  }
};

sections.weights = (body, weights) => {
  if (!weights || !weights.layers.length || !weights.clusters.length) return missing(body, "Rank weights have not been measured yet", "evaluate");
  const target = h("div", { class: "scroll" });
  const show = (layer) => target.replaceChildren(heatMap(weights, layer));
  body.append(h("p", { class: "soft" }, `Mean weight of each rank-1 part (${weights.experts} experts of rank ${weights.rank}) for the problems of a cluster; stronger colour is a larger magnitude, orange is negative.`));
  body.append(picker("Layer", weights.layers, show), target);
  show(0);
};

function heatMap(weights, layer) {
  const rows = weights.clusters.map((cluster) => cluster[layer]);
  const columns = Math.max(...rows.map((row) => row.length));
  const size = Math.max(8, Math.min(26, 900 / columns));
  const [left, top, gap] = [76, 22, 6];
  const x = (rank) => left + rank * size + Math.floor(rank / weights.rank) * gap;
  const peak = Math.max(...rows.flat().map((value) => Math.abs(value ?? 0))) || 1;
  const experts = Array.from({ length: weights.experts }, (_, e) => s("text", { x: x(e * weights.rank), y: 14 }, `E${e}`));
  const cells = rows.flatMap((row, cluster) => row.map((value, rank) => s("rect", {
    class: `cell ${value < 0 ? "negative" : "positive"}`, x: x(rank), y: top + cluster * 28, width: size - 1, height: 26, "fill-opacity": (Math.abs(value ?? 0) / peak).toFixed(3),
  }, s("title", {}, `cluster ${cluster}, expert ${Math.floor(rank / weights.rank)}, rank ${rank % weights.rank}: ${fixed(value, 4)}`))));
  const names = rows.map((_, cluster) => s("text", { x: 0, y: top + cluster * 28 + 17 }, `cluster ${cluster}`));
  const width = x(columns) + 4;
  const foot = s("text", { x: left, y: top + rows.length * 28 + 16 }, `largest magnitude ${fixed(peak, 4)}`);
  return s("svg", { width, height: top + rows.length * 28 + 22, role: "img", "aria-label": "rank weights by cluster" }, experts, names, cells, foot);
}
