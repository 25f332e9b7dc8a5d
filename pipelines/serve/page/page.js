"use strict";
// One subject (words, an image that was sent, or one of those here), asked of one adapter or of two.

const $ = (id) => document.getElementById(id);
const TOP = 24;
let subject = null; // { text } | { image: name } | { file }
let latest = 0; // answers to earlier questions are dropped
let open = null; // the match in the dialog
let entering = null; // while the token is asked for, by whichever calls need it

function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

function say(text, bad = false) {
  $("said").textContent = text;
  $("said").classList.toggle("bad", bad);
}

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error("the server does not answer: is it still running?");
  }
  if (answer.status === 401 && path !== "/v1/session") {
    entering ??= enter().finally(() => entering = null);
    await entering;
    return call(path, options);
  }
  const value = await answer.json();
  if (!answer.ok) throw new Error(value.error);
  return value;
}

const json = (value) => ({ method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(value) });

function enter() { // resolved once the server has taken the token
  const door = $("door");
  if (!door.open) door.showModal();
  return new Promise((resolve) => {
    door.onclose = async () => {
      try {
        await call("/v1/session", json({ token: $("token").value }));
        $("token").value = $("wrong").textContent = "";
        resolve();
      } catch (error) {
        $("wrong").textContent = error.message;
        door.showModal();
      }
    };
  });
}

async function start() {
  const about = await call("/v1/adapters");
  $("count").textContent = `· ${about.images.toLocaleString("en")} images`;
  const finders = about.adapters.filter((one) => one.task === "retrieval").map((one) => one.name);
  const chosen = $("first").value;
  $("first").replaceChildren(...finders.map((name) => new Option(name)));
  $("second").replaceChildren(new Option("nothing", ""), ...finders.map((name) => new Option(name)));
  $("first").value = finders.includes(chosen) ? chosen : finders[Math.min(1, finders.length - 1)];
  $("filters").replaceChildren(...about.fields.flatMap(filter));
  $("filters").hidden = !$("filters").children.length;
}

function filter(field) {
  if (field.values.length > 1) {
    const select = make("select", "", { "data-field": field.name });
    select.append(new Option("all", ""), ...field.values.map((value) => new Option(value)));
    return [labelled(field.name, select)];
  }
  if (/^(u?int|float|double)/.test(field.type)) {
    const bound = (name) => make("input", "", { type: "number", step: "any", "data-field": field.name, "data-bound": name, placeholder: name, "aria-label": `${field.name} ${name}` });
    return [labelled(field.name, bound("from"), bound("to"))];
  }
  return [];
}

function labelled(name, ...nodes) {
  const label = make("label", name);
  label.append(...nodes);
  return label;
}

function where() {
  const found = {};
  for (const node of $("filters").querySelectorAll("[data-field]")) {
    if (node.value === "") continue;
    const { field, bound } = node.dataset;
    if (bound) found[field] = { ...found[field], [bound]: Number(node.value) };
    else found[field] = node.value;
  }
  return found;
}

async function search() {
  if (!subject) return;
  const asked = ++latest;
  const adapters = [$("first").value, $("second").value].filter(Boolean);
  say("…");
  try {
    const began = performance.now();
    const answers = await Promise.all(adapters.map(ask));
    if (asked !== latest) return;
    $("results").replaceChildren(...answers.map(shown));
    const many = answers[0].matches.length;
    say(`${many ? "" : "nothing left by the filters · "}${title()} · ${Math.round(performance.now() - began)} ms`);
  } catch (error) {
    if (asked === latest) say(error.message, true);
  }
}

function ask(adapter) {
  if (!subject.file) return call("/v1/search", json({ adapter, top: TOP, where: where(), ...subject }));
  const flags = new URLSearchParams({ adapter, top: TOP, where: JSON.stringify(where()) });
  return call(`/v1/search/image?${flags}`, { method: "POST", headers: { "content-type": "application/octet-stream" }, body: subject.file });
}

function title() {
  if (subject.text !== undefined) return `“${subject.text}”`;
  return subject.file ? `images like ${subject.file.name}` : `images like ${subject.image}`;
}

const picture = (name, side) => `/v1/images/${name.split("/").map(encodeURIComponent).join("/")}?side=${side}`;

function shown(answer) {
  const section = make("section");
  const head = make("h2", answer.adapter);
  const grid = make("ol", "", { class: "grid" });
  grid.append(...answer.matches.map((match, place) => {
    const button = make("button", "", { type: "button", title: match.name });
    const image = make("img", "", { src: picture(match.name, 256), alt: match.name, loading: "lazy" });
    image.onerror = () => image.replaceWith(make("span", "", { class: "blank" }));
    const name = make("span", "", { class: "name" });
    name.append(make("b", String(place + 1)), match.name.split("/").pop());
    button.append(image, name);
    button.onclick = () => enlarge(match);
    const item = make("li");
    item.append(button);
    return item;
  }));
  section.append(head, grid);
  return section;
}

function enlarge(match) {
  open = match;
  const large = $("large");
  const image = large.querySelector("img");
  image.src = picture(match.name, 1024);
  image.alt = match.name;
  const said = { image: match.name, cosine: match.cosine.toFixed(4), ...match.fields };
  large.querySelector("dl").replaceChildren(
    ...Object.entries(said).filter(([, value]) => value !== null).flatMap(([name, value]) => [make("dt", name), make("dd", String(value))]),
  );
  large.showModal();
}

function like(name) {
  $("large").close();
  $("words").value = "";
  subject = { image: name };
  search();
}

function move(key) { // among the images, as they stand on the screen
  const all = [...document.querySelectorAll(".grid button")];
  const at = all.indexOf(document.activeElement);
  if (at < 0) return all[0]?.focus();
  const here = all[at].getBoundingClientRect();
  const rows = all.filter((one) => one.closest(".grid") === all[at].closest(".grid") && Math.abs(one.getBoundingClientRect().left - here.left) < 4);
  const next = { ArrowRight: all[at + 1], ArrowLeft: all[at - 1], ArrowDown: rows[rows.indexOf(all[at]) + 1], ArrowUp: rows[rows.indexOf(all[at]) - 1] }[key];
  if (next) next.focus();
  else if (key === "ArrowUp") $("words").focus();
  return undefined;
}

document.addEventListener("keydown", (event) => {
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
  if (event.ctrlKey || event.metaKey || event.altKey || $("door").open) return;
  if (event.key.startsWith("Arrow") && !$("large").open && (!typing || (event.key === "ArrowDown" && document.activeElement === $("words")))) {
    event.preventDefault();
    move(event.key);
  } else if (!typing && event.key === "/") {
    event.preventDefault();
    $("words").select();
  } else if (!typing && event.key === "m") {
    if ($("large").open) like(open.name);
    else if (document.activeElement.closest(".grid")) like(document.activeElement.title);
  } else if (!typing && event.key === "s" && $("second").value && !$("large").open) {
    [$("first").value, $("second").value] = [$("second").value, $("first").value];
    search();
  }
});

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("words").value.trim();
  if (text) subject = { text };
  search();
});
$("words").addEventListener("search", () => $("upload").value = "");
for (const id of ["first", "second", "filters"]) $(id).addEventListener("change", search);
$("filters").addEventListener("submit", (event) => { event.preventDefault(); search(); });
$("upload").addEventListener("change", () => {
  const [file] = $("upload").files;
  if (!file) return;
  $("words").value = "";
  subject = { file };
  search();
  $("upload").value = "";
});
$("more").addEventListener("click", () => like(open.name));
$("close").addEventListener("click", () => $("large").close());
start().catch((error) => say(error.message, true));
