"use strict";
const one = (selector) => document.querySelector(selector);
const all = (selector, within = document) => [...within.querySelectorAll(selector)];
const press = (buttons, pressed) => buttons.forEach((b) => b.setAttribute("aria-pressed", String(b === pressed)));

// Light and dark: the system's choice until the button is pressed.
one("#theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.style.colorScheme ? root.style.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.style.colorScheme = dark ? "light" : "dark";
});

// Tabs: of several parts with the same data attribute, one is shown.
all("[data-tabs]").forEach((tabs) => {
  const name = tabs.dataset.tabs;
  const buttons = all("button", tabs);
  buttons.forEach((button) => button.addEventListener("click", () => {
    press(buttons, button);
    all(`[data-${name}]`, tabs.parentElement).forEach((part) => { part.hidden = part.dataset[name] !== button.dataset.show; });
  }));
});

// Tables: a heading sorts (numbers downwards first), a search field filters.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const said = cell.dataset.v ?? cell.textContent.trim();
  return said !== "" && !Number.isNaN(Number(said)) ? Number(said) : said;
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const sortable = (heading, sort) => {
  heading.tabIndex = 0;
  const act = () => {
    const before = heading.getAttribute("aria-sort");
    const downwards = before ? before === "ascending" : heading.classList.contains("n");
    all("th", heading.parentElement).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", downwards ? "descending" : "ascending");
    sort(downwards ? -1 : 1);
  };
  heading.addEventListener("click", act);
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); } });
};
all("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  all("thead th", table).forEach((heading, column) => sortable(heading, (sign) => {
    body.append(...[...body.rows].sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column))));
  }));
});
all("input[data-filter]").forEach((input) => input.addEventListener("input", () => {
  const wanted = input.value.toLowerCase();
  [...document.getElementById(input.dataset.filter).tBodies[0].rows].forEach((row) => {
    row.hidden = !row.textContent.toLowerCase().includes(wanted);
  });
}));

// Cards: a list, a search, a tag, an order.
const addOptions = (select, options) => options.forEach(([value, text]) => select.append(new Option(text, value)));
const cards = all(".card");
if (one("#cards")) {
  const tagsOf = new Map(cards.map((card) => [card, JSON.parse(card.dataset.tags)]));
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const listButtons = all("#lists button");
  let list = listButtons[0]?.dataset.list;
  const FIRST = 12;
  let most = FIRST;
  const natural = { useful: "place", toxic: "-place", lowest: "-place" };
  const pairs = new Map();
  tagsOf.forEach((tags) => Object.entries(tags).forEach(([tag, value]) => {
    const key = JSON.stringify([tag, value]);
    pairs.set(key, [`${tag}: ${value}`.slice(0, 60), (pairs.get(key)?.[1] ?? 0) + 1]);
  }));
  const common = [...pairs].filter(([, [, count]]) => count > 1).sort((a, b) => a[1][0].localeCompare(b[1][0])).slice(0, 200);
  addOptions(one("#card-tag"), common.map(([key, [text]]) => [key, text]));
  const figure = (card, name) => Number(name.startsWith("group") ? card.getAttribute(`data-group-${name.slice(5)}`) : card.dataset[name]);
  const show = () => {
    const wanted = one("#card-search").value.toLowerCase();
    const tag = one("#card-tag").value;
    const [tagName, tagValue] = tag ? JSON.parse(tag) : [];
    const order = one("#card-sort").value || (natural[list] ?? list.replace("borderline", "margin"));
    const sign = order.startsWith("-") ? -1 : 1;
    const name = order.replace("-", "");
    const shown = cards.filter((card) => {
      const fits = card.dataset.lists.includes(` ${list} `) && texts.get(card).includes(wanted)
        && (!tag || tagsOf.get(card)[tagName] === tagValue);
      card.hidden = !fits;
      return fits;
    });
    one("#cards").append(...shown.sort((a, b) => sign * (figure(a, name) - figure(b, name))));
    shown.slice(most).forEach((card) => { card.hidden = true; });
    one("#more-cards").hidden = shown.length <= most;
    one("#more-cards").textContent = `show ${shown.length - most} more`;
    one("#card-count").textContent = `${shown.length} samples`;
    one("#no-card").hidden = shown.length > 0;
  };
  const anew = () => { most = FIRST; show(); };
  one("#more-cards").addEventListener("click", () => { most = cards.length; show(); });
  listButtons.forEach((button) => button.addEventListener("click", () => {
    list = button.dataset.list;
    press(listButtons, button);
    anew();
  }));
  one("#card-search").addEventListener("input", anew);
  ["#card-sort", "#card-tag"].forEach((id) => one(id).addEventListener("change", anew));
  show();
}

// Pictures: each is carried once.
const packed = one("#data") && JSON.parse(one("#data").textContent);
all("img[data-picture]").forEach((img) => { img.src = packed.pictures[img.dataset.picture]; });

// Every sample: packed columns, a page of rows at a time.
const unpack = (text, Kind) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Kind(bytes.buffer);
};
if (packed && packed.count) {
  const PAGE = 25;
  const place = unpack(packed.place, Uint32Array);
  const toxic = unpack(packed.toxic, Uint8Array);
  const kept = packed.kept.map(([mark, suffix, text]) => [mark, suffix, unpack(text, Uint8Array)]);
  const family = packed.family && unpack(packed.family, Uint32Array);
  const numbers = packed.numbers.map(([name, text]) => [name, unpack(text, Float32Array)]);
  const tags = packed.tags.map(([name, values, codes]) => [name, values, unpack(codes, Uint16Array)]);
  const fits = {
    "": () => true,
    toxic: (k) => toxic[k],
    family: (k) => family && family[k] > 0,
  };
  kept.forEach(([mark, , values]) => {
    fits[`kept${mark}`] = (k) => values[k];
    fits[`dropped${mark}`] = (k) => !values[k];
  });
  const everything = [...place.keys()];
  let found = everything;
  let order = null;
  let page = 0;
  const cell = (row, text, kind = "") => { const made = row.insertCell(); made.textContent = text; made.className = kind; };
  const draw = () => {
    const body = one("#rows tbody");
    body.replaceChildren();
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(Math.max(0, page), pages - 1);
    found.slice(page * PAGE, (page + 1) * PAGE).forEach((k) => {
      const row = body.insertRow();
      cell(row, place[k].toLocaleString("en"), "n");
      cell(row, packed.ids[k], "id");
      numbers.forEach(([, values], n) => cell(row, values[k].toPrecision(3).replace("-", "\u2212"), n ? "n" : values[k] < 0 ? "n neg" : "n pos"));
      const became = kept.map(([, suffix, values]) => (values[k] ? "kept" : "dropped") + suffix);
      const state = [became.join("; "), toxic[k] ? "toxic" : "", family && family[k] ? `family ${family[k]}` : ""];
      cell(row, state.filter(Boolean).join(", "));
      tags.forEach(([, values, codes]) => cell(row, values[codes[k]]));
    });
    one("#row-count").textContent = `${found.length.toLocaleString("en")} rows`;
    one("#page").textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
    one("#back").disabled = page === 0;
    one("#on").disabled = page === pages - 1;
  };
  const tagSelects = tags.map(([name, values, codes]) => {
    const label = document.createElement("label");
    const select = document.createElement("select");
    addOptions(select, [["", "any"], ...values.slice(0, 200).map((value, k) => [String(k), value || "(none)"])]);
    label.append(`${name} `, select);
    one("#row-tags").append(label, " ");
    return [select, codes];
  });
  const search = () => {
    const wanted = one("#row-search").value.toLowerCase();
    const state = fits[one("#row-state").value];
    const chosen = tagSelects.filter(([select]) => select.value !== "").map(([select, codes]) => [Number(select.value), codes]);
    found = everything.filter((k) => state(k) && chosen.every(([value, codes]) => codes[k] === value)
      && (!wanted || packed.ids[k].toLowerCase().includes(wanted)));
    if (order) found.sort(order);
    page = 0;
    draw();
  };
  const headings = one("#rows thead").insertRow();
  const heading = (text, number, key) => {
    const made = document.createElement("th");
    made.textContent = text;
    if (number) made.className = "n";
    sortable(made, (sign) => { order = (a, b) => sign * compare(key(a), key(b)) || a - b; search(); });
    headings.append(made);
  };
  heading("place", true, (k) => place[k]);
  heading("id", false, (k) => packed.ids[k]);
  numbers.forEach(([name, values]) => heading(name, true, (k) => values[k]));
  heading("state", false, (k) => -2 * toxic[k] - (kept[0]?.[2][k] ?? 0));
  tags.forEach(([name, values, codes]) => heading(name, false, (k) => values[codes[k]]));
  one("#row-search").addEventListener("input", search);
  [one("#row-state"), ...tagSelects.map(([select]) => select)].forEach((select) => select.addEventListener("change", search));
  one("#back").addEventListener("click", () => { page -= 1; draw(); });
  one("#on").addEventListener("click", () => { page += 1; draw(); });
  draw();
}
document.documentElement.dataset.ready = "true";
