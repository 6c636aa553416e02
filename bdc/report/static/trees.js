sections.trees = (body, trees) => {
  if (!trees) return missing(body, "No problem has been searched yet", "boost");
  const target = h("div");
  const show = (index) => target.replaceChildren(treeView(trees.items[index]));
  const title = (tree) => `${tree.problem} (${tree.solved ? "solved" : `private ${percent(tree.private_pass_rate)}`}, ${tree.nodes.length} nodes)`;
  const left = trees.left_out ? `; ${trees.left_out} more are only in run.sqlite, this page would grow too large` : "";
  body.append(h("p", { class: "soft" }, `${trees.items.length} searched problems${left}. Nodes are coloured by agent and their size grows with visits; the ringed node gave the chosen program.`));
  body.append(picker("Problem", trees.items.map(title), show), target);
  show(0);
};

function treeView(tree) {
  const panel = h("div", { class: "panel", "aria-live": "polite" });
  const agents = [...new Set(tree.nodes.map((node) => node.agent))];
  const groups = new Map();
  const colour = (node) => (node.agent ? clusterClass(agents.indexOf(node.agent)) : "none");
  const choose = (node) => {
    for (const [id, group] of groups) group.classList.toggle("chosen", id === node.node);
    panel.replaceChildren(nodePanel(node));
  };
  const { places, width, height } = layout(tree.nodes);
  const top = Math.max(1, ...tree.nodes.map((node) => node.visits));
  const edges = tree.nodes.filter((node) => places.has(node.parent) && places.has(node.node)).map((node) => {
    const [a, b] = [places.get(node.parent), places.get(node.node)];
    return s("path", { class: "edge", d: `M${a.x} ${a.y}C${a.x} ${a.y + 30} ${b.x} ${b.y - 30} ${b.x} ${b.y}` });
  });
  for (const node of tree.nodes.filter((item) => places.has(item.node))) {
    const { x, y } = places.get(node.node);
    const text = `node ${node.node}, ${node.agent || "no agent"}, Q ${fixed(node.q, 3)}, ${node.visits} visits`;
    const group = s("g", { class: node.node === tree.best_node ? "node best" : "node", tabindex: 0, role: "button", "aria-label": text },
      s("circle", { class: colour(node), cx: x, cy: y, r: (6 + 8 * Math.sqrt(node.visits / top)).toFixed(1) }), s("title", {}, text),
      s("text", { x, y: y + 28, "text-anchor": "middle" }, fixed(node.q, 2)));
    group.addEventListener("click", () => choose(node));
    group.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      choose(node);
    });
    groups.set(node.node, group);
  }
  const first = tree.nodes.find((node) => node.node === tree.best_node) || tree.nodes[0];
  if (first) choose(first);
  const named = agents.filter(Boolean);
  return h("div", {},
    definitions([["Family", tree.family], ["Split", tree.split], ["Rollouts", tree.rollouts], ["Stopped", tree.stop], ["Public tests", percent(tree.public_pass_rate)], ["Private tests", percent(tree.private_pass_rate)]]),
    h("pre", {}, tree.statement),
    h("ul", { class: "legend" }, named.map((agent) => h("li", {}, s("svg", { width: 12, height: 12 }, s("circle", { class: clusterClass(agents.indexOf(agent)), cx: 6, cy: 6, r: 5 })), agent))),
    h("div", { class: "split" }, h("div", { class: "scroll" }, s("svg", { width, height }, edges, [...groups.values()])), panel));
}

// Leaves take the next free column; a parent stands above the middle of its children.
function layout(nodes) {
  const children = new Map(nodes.map((node) => [node.node, []]));
  const roots = [];
  for (const node of nodes) (node.parent !== node.node && children.get(node.parent) || roots).push(node);
  const places = new Map();
  let [column, deepest] = [0, 0];
  const place = (node, depth) => {
    deepest = Math.max(deepest, depth);
    const xs = children.get(node.node).map((child) => place(child, depth + 1));
    const x = xs.length ? (xs[0] + xs[xs.length - 1]) / 2 : 30 + 46 * column++;
    places.set(node.node, { x, y: 26 + 76 * depth });
    return x;
  };
  roots.forEach((root) => place(root, 0));
  return { places, width: 60 + 46 * Math.max(0, column - 1), height: 66 + 76 * deepest };
}

function nodePanel(node) {
  const text = (title, value) => (value ? [h("h3", {}, title), h("pre", {}, value)] : []);
  return h("div", {},
    definitions([["Node", node.node], ["Agent", node.agent], ["State", node.state], ["Q", fixed(node.q, 4)], ["Value", fixed(node.value, 4)], ["Visits", node.visits], ["Prior", fixed(node.prior, 3)], ["Pass rate", percent(node.pass_rate)]]),
    text("Thought", node.thought), text("Reflection", node.reason), text("Program", node.program));
}
