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
  common.forEach(([key, [text]]) => one("#card-tag").append(new Option(text, key)));
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

document.documentElement.dataset.ready = "true";
