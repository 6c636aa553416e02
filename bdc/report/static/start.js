for (const [name, draw] of Object.entries(sections)) {
  const section = document.getElementById(name);
  const body = section.querySelector(".body");
  try {
    draw(body, data[name]);
    if (body.childElementCount > 0) section.dataset.drawn = "1";
  } catch (error) {
    section.dataset.error = String(error);
    body.append(h("p", { class: "notice" }, `This section could not be drawn: ${error}`));
    report(error);
  }
}
