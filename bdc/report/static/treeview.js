// Sizes of one node by drawing mode; `lines` and `dots` keep trees of a few hundred nodes in reach.
const MODES = {
  cards: { column: 256, row: 78, width: 224, height: 66 },
  lines: { column: 224, row: 26, width: 196, height: 20 },
  dots: { column: 54, row: 15, width: 14, height: 14 },
};

// Leaves take the next free row; a parent stands beside the middle of its children. Nodes that no root reaches become roots.
function layout(nodes) {
  const children = new Map(nodes.map((node) => [node.node, []]));
  const roots = [];
  for (const node of nodes) ((node.parent !== node.node && children.get(node.parent)) || roots).push(node);
  const places = new Map();
  let [rows, columns] = [0, 0];
  const place = (node, depth) => {
    places.set(node.node, { row: 0, depth });
    columns = Math.max(columns, depth + 1);
    const below = children
      .get(node.node)
      .filter((child) => !places.has(child.node))
      .map((child) => place(child, depth + 1));
    const row = below.length ? (below[0] + below[below.length - 1]) / 2 : rows++;
    places.get(node.node).row = row;
    return row;
  };
  for (const root of roots) place(root, 0);
  for (const node of nodes) if (!places.has(node.node)) place(node, 0);
  return { places, children, rows, columns };
}

// The mark tells the state by shape as well as by colour: square root, plain circle, double ring, crossed circle, halo for the best.
function nodeMark(state, x, y, r, best) {
  return [
    best ? s("circle", { class: "halo", cx: x, cy: y, r: r + 3.5 }) : null,
    state === "root"
      ? s("rect", { class: "mark", x: x - r, y: y - r, width: 2 * r, height: 2 * r, rx: 2 })
      : s("circle", { class: "mark", cx: x, cy: y, r }),
    state === "refined" ? s("circle", { class: "inner", cx: x, cy: y, r: r - 3 }) : null,
    state === "pruned"
      ? s("path", { class: "inner", d: `M${x - r * 0.6} ${y + r * 0.6}L${x + r * 0.6} ${y - r * 0.6}` })
      : null,
  ];
}

const pen = document.createElement("canvas").getContext("2d");
const textWidth = (text) => pen.measureText(text).width;

// The longest beginning of a text that is at most `width` pixels wide in the font that `pen` holds.
function fit(text, width) {
  if (textWidth(text) <= width) return text;
  let [low, high] = [0, Math.min(text.length, 400)];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (textWidth(`${text.slice(0, middle).trimEnd()}…`) <= width) low = middle;
    else high = middle - 1;
  }
  return `${text.slice(0, low).trimEnd()}…`;
}

function wrap(text, width, lines) {
  const words = text.slice(0, 400).split(/\s+/).filter(Boolean);
  const out = [];
  while (words.length && out.length < lines) {
    let line = words.shift();
    if (out.length === lines - 1) line = [line, ...words].join(" ");
    else while (words.length && textWidth(`${line} ${words[0]}`) <= width) line += ` ${words.shift()}`;
    out.push(fit(line, width));
  }
  return out;
}

function drawTree(tree, mode, selected, choose) {
  const size = MODES[mode];
  pen.font = `12.5px ${getComputedStyle(document.body).fontFamily}`;
  const { places, children, rows, columns } = layout(tree.nodes);
  const pad = 12;
  const at = (node) => ({
    x: pad + places.get(node.node).depth * size.column,
    y: pad + places.get(node.node).row * size.row + size.height / 2,
  });
  const byId = new Map(tree.nodes.map((node) => [node.node, node]));
  const busiest = Math.max(1, ...tree.nodes.map((node) => node.visits));
  const edges = tree.nodes
    .filter((node) => byId.has(node.parent) && places.get(node.node).depth > 0)
    .map((node) => {
      const [a, b] = [at(byId.get(node.parent)), at(node)];
      const [from, middle] = [a.x + size.width, (a.x + size.width + b.x) / 2];
      return s("path", {
        class: `edge ${node.state}`,
        d: `M${from} ${a.y}C${middle} ${a.y} ${middle} ${b.y} ${b.x} ${b.y}`,
        "stroke-width": (1 + 2.5 * Math.sqrt(node.visits / busiest)).toFixed(1),
      });
    });
  const groups = new Map();
  const select = (node, focus) => {
    for (const [id, group] of groups) {
      group.classList.toggle("chosen", id === node.node);
      group.setAttribute("aria-selected", String(id === node.node));
      group.setAttribute("tabindex", id === node.node ? 0 : -1);
    }
    if (focus) groups.get(node.node).focus();
    choose(node);
  };
  for (const node of tree.nodes) {
    const { x, y } = at(node);
    const name = node.state === "root" ? tree.problem : node.thought || "(no thought)";
    const spoken = `${STATES[node.state] || node.state}: ${clip(name, 160)}. ${node.agent ? `Agent ${node.agent}, ` : ""}value ${fixed(node.value, 2)}, Q ${fixed(node.q, 2)}, ${plural(node.visits, "visit")}`;
    const group = s(
      "g",
      {
        class: `node ${mode} ${node.state}${node.node === tree.best_node ? " best" : ""}`,
        role: "treeitem",
        tabindex: node.node === selected ? 0 : -1,
        "aria-level": places.get(node.node).depth + 1,
        "aria-label": spoken,
        "aria-selected": String(node.node === selected),
        click: () => select(node, true),
        keydown: (event) => move(event, node),
      },
      s("title", {}, spoken),
      nodeShape(node, name, mode, size, x, y, node.node === tree.best_node),
    );
    if (node.node === selected) group.classList.add("chosen");
    withNumber(group, "--t", Math.max(0, Math.min(1, node.value ?? 0)).toFixed(3));
    groups.set(node.node, group);
  }
  const move = (event, node) => {
    const family = children.get(node.parent) || [];
    const peers = tree.nodes
      .filter((other) => places.get(other.node).depth === places.get(node.node).depth)
      .sort((a, b) => places.get(a.node).row - places.get(b.node).row);
    const place = peers.indexOf(node);
    const targets = {
      ArrowLeft: byId.get(node.parent),
      ArrowRight: (children.get(node.node) || [])[0],
      ArrowUp: peers[place - 1],
      ArrowDown: peers[place + 1],
      Home: tree.nodes[0],
      End: family[family.length - 1],
      Enter: node,
      " ": node,
    };
    if (!(event.key in targets)) return;
    event.preventDefault();
    if (targets[event.key]) select(targets[event.key], true);
  };
  const width = 2 * pad + (columns - 1) * size.column + size.width;
  const height = 2 * pad + (rows - 1) * size.row + size.height;
  return s(
    "svg",
    {
      class: "tree",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      role: "tree",
      "aria-label": `Search tree of ${tree.problem}, ${plural(tree.nodes.length, "node")}`,
    },
    s("g", { "aria-hidden": "true" }, edges),
    [...groups.values()],
  );
}

function nodeShape(node, name, mode, size, x, y, best) {
  if (mode === "dots")
    return [s("rect", { class: "reach", x, y: y - 7, width: 14, height: 14 }), nodeMark(node.state, x + 7, y, 5, best)];
  if (mode === "lines")
    return [
      s("rect", {
        class: "reach",
        x: x - 2,
        y: y - size.height / 2,
        width: size.width + 4,
        height: size.height,
        rx: 4,
      }),
      nodeMark(node.state, x + 8, y, 6, best),
      s("text", { class: "thought", x: x + 22, y: y + 4 }, wrap(name, size.width - 30, 1)[0]),
    ];
  const facts =
    node.state === "root"
      ? `value ${fixed(node.value, 2)} · ${plural(node.visits, "visit")}`
      : `${clip(node.agent, 12)} · v ${fixed(node.value, 2)} · Q ${fixed(node.q, 2)} · ${count(node.visits)}×`;
  return [
    s("rect", { class: "box", x, y: y - size.height / 2, width: size.width, height: size.height, rx: 8 }),
    nodeMark(node.state, x + 17, y - 15, 6, best),
    wrap(name, size.width - 44, 2).map((line, index) =>
      s("text", { class: "thought", x: x + 32, y: y - 11 + 15 * index }, line),
    ),
    s("text", { class: "facts", x: x + 32, y: y + 24 }, fit(facts, ((size.width - 40) * 12.5) / 11.5)),
  ];
}
