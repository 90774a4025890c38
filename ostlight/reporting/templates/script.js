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

// Tabs: of several elements with the same data attribute, one is shown.
all("[data-tabs]").forEach((tabs) => {
  const name = tabs.dataset.tabs;
  const buttons = all("button", tabs);
  buttons.forEach((button) => button.addEventListener("click", () => {
    press(buttons, button);
    all(`[data-${name}]`, tabs.parentElement).forEach((tab) => { tab.hidden = tab.dataset[name] !== button.dataset.show; });
  }));
});

// Tables: a heading sorts (numbers in descending order first), a search field filters.
const valueOf = (row, column) => {
  const cell = row.cells[column];
  const text = cell.dataset.v ?? cell.textContent.trim();
  return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text;
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const sortable = (heading, sort) => {
  heading.tabIndex = 0;
  const toggle = () => {
    const before = heading.getAttribute("aria-sort");
    const descending = before ? before === "ascending" : heading.classList.contains("n");
    all("th", heading.parentElement).forEach((other) => other.removeAttribute("aria-sort"));
    heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
    sort(descending ? -1 : 1);
  };
  heading.addEventListener("click", toggle);
  heading.addEventListener("keydown", (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); toggle(); } });
};
all("table.sortable").forEach((table) => {
  const body = table.tBodies[0];
  all("thead th", table).forEach((heading, column) => sortable(heading, (sign) => {
    body.append(...[...body.rows].sort((a, b) => sign * compare(valueOf(a, column), valueOf(b, column))));
  }));
});
all("input[data-filter]").forEach((input) => input.addEventListener("input", () => {
  const query = input.value.toLowerCase();
  [...document.getElementById(input.dataset.filter).tBodies[0].rows].forEach((row) => {
    row.hidden = !row.textContent.toLowerCase().includes(query);
  });
}));

// Cards: filtered by list, search text and tag, then sorted.
const addOptions = (select, options) => options.forEach(([value, text]) => select.append(new Option(text, value)));
const cards = all(".card");
if (one("#cards")) {
  const tagsOf = new Map(cards.map((card) => [card, JSON.parse(card.dataset.tags)]));
  const texts = new Map(cards.map((card) => [card, card.textContent.toLowerCase()]));
  const listButtons = all("#lists button");
  let list = listButtons[0]?.dataset.list;
  const FIRST = 12;
  let most = FIRST;
  const listOrder = { useful: "rank", toxic: "-rank", lowest: "-rank" };
  const pairs = new Map();
  tagsOf.forEach((tags) => Object.entries(tags).forEach(([tag, value]) => {
    const key = JSON.stringify([tag, value]);
    pairs.set(key, [`${tag}: ${value}`.slice(0, 60), (pairs.get(key)?.[1] ?? 0) + 1]);
  }));
  const common = [...pairs].filter(([, [, count]]) => count > 1).sort((a, b) => a[1][0].localeCompare(b[1][0])).slice(0, 200);
  addOptions(one("#card-tag"), common.map(([key, [text]]) => [key, text]));
  const figure = (card, name) => Number(name.startsWith("group") ? card.getAttribute(`data-group-${name.slice(5)}`) : card.dataset[name]);
  const show = () => {
    const query = one("#card-search").value.toLowerCase();
    const tag = one("#card-tag").value;
    const [tagName, tagValue] = tag ? JSON.parse(tag) : [];
    const order = one("#card-sort").value || (listOrder[list] ?? list.replace("borderline", "margin"));
    const sign = order.startsWith("-") ? -1 : 1;
    const name = order.replace("-", "");
    const shown = cards.filter((card) => {
      const isShown = card.dataset.lists.includes(` ${list} `) && texts.get(card).includes(query)
        && (!tag || tagsOf.get(card)[tagName] === tagValue);
      card.hidden = !isShown;
      return isShown;
    });
    one("#cards").append(...shown.sort((a, b) => sign * (figure(a, name) - figure(b, name))));
    shown.slice(most).forEach((card) => { card.hidden = true; });
    one("#more-cards").hidden = shown.length <= most;
    one("#more-cards").textContent = `show ${shown.length - most} more`;
    one("#card-count").textContent = `${shown.length} samples`;
    one("#no-card").hidden = shown.length > 0;
  };
  const restart = () => { most = FIRST; show(); };
  one("#more-cards").addEventListener("click", () => { most = cards.length; show(); });
  listButtons.forEach((button) => button.addEventListener("click", () => {
    list = button.dataset.list;
    press(listButtons, button);
    restart();
  }));
  one("#card-search").addEventListener("input", restart);
  ["#card-sort", "#card-tag"].forEach((id) => one(id).addEventListener("change", restart));
  show();
}

// Images: the page holds each once.
const packed = one("#data") && JSON.parse(one("#data").textContent);
all("img[data-image]").forEach((img) => { img.src = packed.images[img.dataset.image]; });

// All samples: packed columns, a page of rows at a time.
const unpack = (text, Kind) => {
  const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  return new Kind(bytes.buffer);
};
if (packed && packed.count) {
  const PAGE = 25;
  const rank = unpack(packed.rank, Uint32Array);
  const toxic = unpack(packed.toxic, Uint8Array);
  const kept = packed.kept.map(([key, suffix, text]) => [key, suffix, unpack(text, Uint8Array)]);
  const group = packed.duplicateGroup && unpack(packed.duplicateGroup, Uint32Array);
  const numbers = packed.numbers.map(([name, text]) => [name, unpack(text, Float32Array)]);
  const tags = packed.tags.map(([name, values, codes]) => [name, values, unpack(codes, Uint16Array)]);
  const hasState = {
    "": () => true,
    toxic: (k) => toxic[k],
    duplicates: (k) => group && group[k] > 0,
  };
  kept.forEach(([key, , values]) => {
    hasState[`kept${key}`] = (k) => values[k];
    hasState[`dropped${key}`] = (k) => !values[k];
  });
  const allRows = [...rank.keys()];
  let matches = allRows;
  let order = null;
  let page = 0;
  const cell = (row, text, kind = "") => { const added = row.insertCell(); added.textContent = text; added.className = kind; };
  const showPage = () => {
    const body = one("#rows tbody");
    body.replaceChildren();
    const pages = Math.max(1, Math.ceil(matches.length / PAGE));
    page = Math.min(Math.max(0, page), pages - 1);
    matches.slice(page * PAGE, (page + 1) * PAGE).forEach((k) => {
      const row = body.insertRow();
      cell(row, rank[k].toLocaleString("en"), "n");
      cell(row, packed.ids[k], "id");
      numbers.forEach(([, values], n) => cell(row, values[k].toPrecision(3).replace("-", "\u2212"), n ? "n" : values[k] < 0 ? "n neg" : "n pos"));
      const outcomes = kept.map(([, suffix, values]) => (values[k] ? "kept" : "dropped") + suffix);
      const state = [outcomes.join("; "), toxic[k] ? "toxic" : "", group && group[k] ? `near-duplicates ${group[k]}` : ""];
      cell(row, state.filter(Boolean).join(", "));
      tags.forEach(([, values, codes]) => cell(row, values[codes[k]]));
    });
    one("#row-count").textContent = `${matches.length.toLocaleString("en")} rows`;
    one("#page").textContent = `page ${page + 1} of ${pages.toLocaleString("en")}`;
    one("#previous").disabled = page === 0;
    one("#next").disabled = page === pages - 1;
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
    const query = one("#row-search").value.toLowerCase();
    const state = hasState[one("#row-state").value];
    const chosen = tagSelects.filter(([select]) => select.value !== "").map(([select, codes]) => [Number(select.value), codes]);
    matches = allRows.filter((k) => state(k) && chosen.every(([value, codes]) => codes[k] === value)
      && (!query || packed.ids[k].toLowerCase().includes(query)));
    if (order) matches.sort(order);
    page = 0;
    showPage();
  };
  const headings = one("#rows thead").insertRow();
  const heading = (text, number, key) => {
    const th = document.createElement("th");
    th.textContent = text;
    if (number) th.className = "n";
    sortable(th, (sign) => { order = (a, b) => sign * compare(key(a), key(b)) || a - b; search(); });
    headings.append(th);
  };
  heading("rank", true, (k) => rank[k]);
  heading("id", false, (k) => packed.ids[k]);
  numbers.forEach(([name, values]) => heading(name, true, (k) => values[k]));
  heading("state", false, (k) => -2 * toxic[k] - (kept[0]?.[2][k] ?? 0));
  tags.forEach(([name, values, codes]) => heading(name, false, (k) => values[codes[k]]));
  one("#row-search").addEventListener("input", search);
  [one("#row-state"), ...tagSelects.map(([select]) => select)].forEach((select) => select.addEventListener("change", search));
  one("#previous").addEventListener("click", () => { page -= 1; showPage(); });
  one("#next").addEventListener("click", () => { page += 1; showPage(); });
  showPage();
}
document.documentElement.dataset.ready = "true";
