const STATES = { root: "the problem", open: "open", refined: "refined", pruned: "pruned" };
const treeLink = (problem) => `#tree=${encodeURIComponent(problem)}`;

function linkedProblem() {
  try {
    return location.hash.startsWith("#tree=") ? decodeURIComponent(location.hash.slice(6)) : null;
  } catch {
    return null; // a hand-written link that is no valid escape
  }
}

sections.trees = (body, trees) => {
  if (!trees) return missing(body, "No problem has been searched yet.", "boost");
  const items = trees.items;
  const solved = items.filter((tree) => tree.solved).length;
  const view = h("div", { class: "tree-view" });
  const select = h("select", { change: () => show(select.value) });
  const position = h("span", { class: "position" });
  const step = (by) => {
    const next = (select.selectedIndex + by + select.options.length) % select.options.length;
    if (next >= 0) show(select.options[next].value);
  };
  const title = (tree) =>
    `${tree.problem} · ${tree.solved ? "solved" : percent(tree.private_pass_rate)} · ${plural(tree.nodes.length, "node")}`;
  let filter = "all";
  const listed = () => items.filter((tree) => filter === "all" || tree.solved === (filter === "solved"));
  const list = () => {
    select.replaceChildren(...listed().map((tree) => h("option", { value: items.indexOf(tree) }, title(tree))));
    select.disabled = !select.options.length;
    if (select.options.length) show(select.options[0].value);
    else view.replaceChildren(h("p", { class: "notice" }, "No searched problem is of this kind."));
    if (!select.options.length) position.textContent = "0 of 0";
  };
  const show = (value) => {
    select.value = value;
    position.textContent = `${select.selectedIndex + 1} of ${select.options.length}`;
    view.replaceChildren(...treeView(items[Number(value)]));
  };
  const filters = choice(
    "Show",
    [
      ["all", `all ${items.length}`],
      ["solved", `solved ${solved}`],
      ["unsolved", `unsolved ${items.length - solved}`],
    ],
    "all",
    (value) => {
      filter = value;
      list();
    },
  );
  const follow = () => {
    const index = items.findIndex((tree) => tree.problem === linkedProblem());
    if (index < 0) return false;
    filter = "all";
    filters.querySelector("input").checked = true;
    list();
    show(String(index));
    return true;
  };
  window.addEventListener("hashchange", () => {
    if (follow()) body.parentNode.scrollIntoView();
  });
  body.append(
    h(
      "div",
      { class: "controls" },
      filters,
      h("label", { class: "picker" }, h("span", {}, "Problem"), select),
      h(
        "span",
        { class: "stepper" },
        h("button", { type: "button", "aria-label": "Previous problem", click: () => step(-1) }, "‹"),
        position,
        h("button", { type: "button", "aria-label": "Next problem", click: () => step(1) }, "›"),
      ),
    ),
    view,
  );
  if (trees.left_out)
    body.append(
      h(
        "p",
        { class: "note" },
        `${plural(trees.left_out, "more tree")} would make this page too large; they are in run.sqlite.`,
      ),
    );
  if (!follow()) list();
};

function treeView(tree) {
  const panel = h("div", { class: "panel node-panel", "aria-live": "polite" });
  const scroller = h("div", { class: "tree-scroll" });
  const best = tree.nodes.find((node) => node.node === tree.best_node) || tree.nodes[0];
  let selected = best ? best.node : null;
  const draw = (mode) =>
    scroller.replaceChildren(
      drawTree(tree, mode, selected, (node) => {
        selected = node.node;
        panel.replaceChildren(...nodePanel(tree, node));
      }),
    );
  const roomy = tree.nodes.length <= 30 && window.innerWidth > 760;
  const mode = roomy ? "cards" : "lines";
  const modes = choice(
    "Nodes as",
    [
      ["cards", "cards"],
      ["lines", "lines"],
      ["dots", "dots"],
    ],
    mode,
    draw,
  );
  if (best) panel.replaceChildren(...nodePanel(tree, best));
  draw(mode);
  requestAnimationFrame(() => {
    const shown = scroller.querySelector(".node.chosen");
    if (!shown) return;
    const [box, place] = [scroller.getBoundingClientRect(), shown.getBoundingClientRect()];
    scroller.scrollTop += place.top - box.top - box.height / 2;
    scroller.scrollLeft += Math.max(0, place.right - box.right + 16);
  });
  return [
    treeFacts(tree),
    tree.statement
      ? h(
          "details",
          { class: "statement" },
          h("summary", {}, "Problem statement"),
          h("pre", { tabindex: 0 }, tree.statement),
        )
      : "",
    h("div", { class: "controls" }, modes, h("span", { class: "note keys" }, "Arrow keys move between nodes.")),
    h("div", { class: "side-by-side tree" }, h("div", {}, scroller, stateLegend(tree)), panel),
  ];
}

function treeFacts(tree) {
  const states = tree.nodes.reduce((n, node) => ({ ...n, [node.state]: (n[node.state] || 0) + 1 }), {});
  const extra = Object.entries(tree.extra).map(([name, value]) => [name.replaceAll("_", " "), plain(value)]);
  return h(
    "div",
    { class: "facts" },
    h("span", { class: `badge ${tree.solved ? "yes" : "no"}` }, tree.solved ? "solved" : "not solved"),
    definitions([
      ["Public tests", percent(tree.public_pass_rate)],
      ["Private tests", percent(tree.private_pass_rate)],
      ["Rollouts", tree.rollouts],
      ["Stopped by", tree.stop],
      ["Refined", states.refined || 0],
      ["Pruned", states.pruned || 0],
      ["Family", tree.family],
      ["Split", tree.split],
      ...extra,
    ]),
  );
}

function plain(value) {
  if (Array.isArray(value)) return value.length ? value.map(plain).join(", ") : "none";
  return known(value) && typeof value === "object" ? JSON.stringify(value) : String(value);
}

function stateLegend(tree) {
  const icon = (state, best) =>
    s(
      "svg",
      { width: 20, height: 20, "aria-hidden": "true", class: "tree" },
      s("g", { class: `node ${state}${best ? " best" : ""}` }, nodeMark(state, 10, 10, 6, best)),
    );
  const used = Object.keys(STATES).filter((state) => tree.nodes.some((node) => node.state === state));
  return h(
    "ul",
    { class: "state-legend" },
    used.map((state) => h("li", {}, icon(state), STATES[state])),
    h("li", {}, icon("open", true), "best program"),
  );
}

function lineage(tree, node) {
  const byId = new Map(tree.nodes.map((item) => [item.node, item]));
  const path = [];
  for (let at = node; at && !path.includes(at); at = byId.get(at.parent)) path.unshift(at);
  return path;
}

function nodePanel(tree, node) {
  const path = lineage(tree, node).filter((item) => item.state !== "root");
  const root = node.state === "root";
  const best = node.node === tree.best_node;
  const name = root ? `Problem ${tree.problem}` : `Node ${node.node}`;
  const program = node.program || (best ? tree.program : "");
  return [
    h(
      "h3",
      {},
      name,
      root ? null : h("span", { class: `tag ${node.state}` }, node.state),
      best ? h("span", { class: "tag best" }, "best program") : null,
    ),
    h("p", { class: "thought" }, root ? tree.statement : node.thought),
    node.reason ? h("p", { class: "reason" }, node.reason[0].toUpperCase() + node.reason.slice(1)) : "",
    definitions([
      ["Agent", root ? null : node.agent],
      ["Prior", root ? null : fixed(node.prior, 3)],
      ["Value", fixed(node.value, 3)],
      ["Q", root ? null : fixed(node.q, 3)],
      ["Visits", count(node.visits)],
      ["Depth", node.depth],
      ["Program passes", program ? percent(node.pass_rate) : null],
    ]),
    path.length > 1
      ? h(
          "details",
          {},
          h("summary", {}, `Line of thought (${path.length} steps)`),
          h(
            "ol",
            {},
            path.map((item) => h("li", {}, item.thought)),
          ),
        )
      : "",
    program
      ? h("div", {}, h("h4", {}, "Best program of this node"), copyable(program))
      : h("p", { class: "note" }, root ? "" : "No program was written from this node."),
  ];
}
