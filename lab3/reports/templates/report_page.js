"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const words = data.words;
const cards = [...document.querySelectorAll(".card")];
const served = data.token !== "" && location.protocol.startsWith("http");
const shelf = `lab3 overrides ${data.report}`;
let overrides = data.overrides;
let current = -1;

// --- what was decided -----------------------------------------------------------------------------------------------

function onShelf() {
  try {
    return JSON.parse(localStorage.getItem(shelf) || "{}");
  } catch {
    return {};
  }
}

// Opened from a disk, this browser may know decisions that the file does not: the later one counts.
function takeFromShelf() {
  const found = onShelf();
  for (const card of cards) {
    const here = found[card.dataset.id];
    const there = overrides[card.dataset.id];
    if (here && here.at && (!there || here.at > there.at)) overrides[card.dataset.id] = here;
  }
}

async function decide(card, change) {
  const id = card.dataset.id;
  const known = overrides[id] || {};
  const asked = change === null ? null : {
    status: change.status !== undefined ? change.status : (known.status ?? null),
    accepted: change.status !== undefined ? Boolean(change.accepted) : Boolean(known.accepted),
    note: change.note !== undefined ? change.note : (known.note || ""),
  };
  if (served) {
    try {
      const answer = await fetch("override", {
        method: "POST",
        headers: {"Content-Type": "application/json", "X-Lab3-Token": data.token},
        body: JSON.stringify(asked === null ? {id, action: "clear"} : {id, ...asked}),
      });
      const told = await answer.json();
      if (!answer.ok) throw new Error(told.error || answer.statusText);
      overrides = told.overrides;
    } catch (error) {
      complain(`${words.not_kept} ${error.message}`);
      return;
    }
  } else {
    const found = onShelf();
    if (asked === null) {
      delete overrides[id];
      delete found[id];
    } else {
      const at = new Date().toISOString();
      overrides[id] = {...asked, was_status: card.dataset.status, was_reason: card.dataset.reason, at};
      found[id] = overrides[id];
    }
    try {
      localStorage.setItem(shelf, JSON.stringify(found));
    } catch (error) {
      complain(`${words.not_kept} ${error.message}`);
    }
  }
  show(card);
  score();
}

function complain(text) {
  const place = document.getElementById("not-kept");
  place.textContent = text;
  place.hidden = false;
}

function show(card) {
  const known = overrides[card.dataset.id];
  const decided = Boolean(known && known.status);
  const status = decided ? known.status : card.dataset.status;
  const pill = card.querySelector(".now");
  pill.textContent = words[status];
  pill.className = `pill ${status} now`;
  card.classList.toggle("decided", decided);
  card.querySelector(".points").textContent = `${points(card)} / ${card.dataset.most}`;
  const told = [];
  if (decided && known.accepted) told.push(words.accepted);
  else if (decided) told.push(`${words.set_to} ${words[status]} (${words.lab3_says}: ${words[card.dataset.status]})`);
  if (known && known.note) told.push(`${words.note}: ${known.note}`);
  const line = card.querySelector(".decision");
  line.textContent = told.join(". ");
  line.hidden = told.length === 0;
  const same = decided && known.was_status === card.dataset.status && known.was_reason === card.dataset.reason;
  card.querySelector(".changed").hidden = !decided || !known.was_status || same;
}

function points(card) {
  const known = overrides[card.dataset.id];
  if (!known || !known.status || known.status === card.dataset.status) return Number(card.dataset.points);
  return known.status === "pass" ? Number(card.dataset.most) : 0;
}

function score() {
  document.getElementById("score").textContent = cards.reduce((sum, card) => sum + points(card), 0);
}

function download() {
  const told = {schema: "lab3-report-overrides/1", report: data.report, overrides};
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(told, null, 2)], {type: "application/json"}));
  link.download = "override.json";
  link.click();
}

// --- where it stands ------------------------------------------------------------------------------------------------

function go(index, {scroll = true} = {}) {
  if (index < 0 || index >= cards.length) return;
  cards[current]?.classList.remove("current");
  current = index;
  cards[current].classList.add("current");
  if (scroll) cards[current].scrollIntoView({block: "nearest"});
  lead(cards[current].querySelector(".places a"));
}

function lead(link) {
  for (const each of document.querySelectorAll(".lit, .places a.current")) each.classList.remove("lit", "current");
  if (window.CSS && CSS.highlights) CSS.highlights.delete("place");
  if (!link) return;
  link.classList.add("current");
  const block = document.getElementById(`b${link.dataset.block}`);
  const target = document.getElementById(link.getAttribute("href").slice(1)) || block;
  if (!target) return;
  target.classList.add("lit");
  const range = target === block ? quoted(block, link.dataset.quote) : null;
  if (range && window.CSS && CSS.highlights) CSS.highlights.set("place", new Highlight(range));
  target.scrollIntoView({block: "center"});
}

// The quote in the block's text, whatever spaces and line breaks stand between its words.
function quoted(block, quote) {
  const places = [];
  let text = "";
  const walker = document.createTreeWalker(block, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    for (let at = 0; at < node.data.length; at++) {
      if (/\s/.test(node.data[at])) continue;
      text += node.data[at];
      places.push([node, at]);
    }
  }
  const sought = (quote || "").replace(/\s+/g, "").replace(/…$/, "");
  const start = sought ? text.indexOf(sought) : -1;
  if (start < 0) return null;
  const range = document.createRange();
  range.setStart(...places[start]);
  const [node, at] = places[start + sought.length - 1];
  range.setEnd(node, at + 1);
  return range;
}

function nextPlace() {
  const links = [...(cards[current]?.querySelectorAll(".places a") || [])];
  if (links.length) lead(links[(links.findIndex((link) => link.classList.contains("current")) + 1) % links.length]);
}

function nextAsked() {
  const order = cards.map((_, index) => (current + 1 + index) % cards.length);
  const asks = (card) => card.classList.contains("asks") && !(overrides[card.dataset.id] || {}).status;
  const found = order.find((index) => asks(cards[index]) || !cards[index].querySelector(".changed").hidden);
  if (found !== undefined) go(found);
}

// --- keys and clicks ------------------------------------------------------------------------------------------------

function act(what) {
  const card = cards[current];
  if (!card) return;
  if (what === "accept") decide(card, {status: card.dataset.status, accepted: true});
  else if (what === "clear") decide(card, null);
  else if (what === "note") note(card);
  else decide(card, {status: what, accepted: false});
}

function note(card) {
  const dialog = document.getElementById("note");
  const field = document.getElementById("note-text");
  field.value = (overrides[card.dataset.id] || {}).note || "";
  dialog.returnValue = "";
  dialog.onclose = () => {
    if (dialog.returnValue === "keep") decide(card, {note: field.value});
  };
  dialog.showModal();
}

const keys = {
  j: () => go(current + 1), ArrowDown: () => go(current + 1),
  k: () => go(current - 1), ArrowUp: () => go(current - 1),
  r: nextAsked, Enter: nextPlace, ArrowRight: nextPlace,
  a: () => act("accept"), p: () => act("pass"), f: () => act("fail"), u: () => act("unknown"),
  n: () => act("note"), x: () => act("clear"),
  "?": () => document.getElementById("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("button, textarea, a") && event.key === "Enter") return;
  const act = keys[event.key];
  if (act) {
    event.preventDefault();
    act();
  }
});

cards.forEach((card, index) => {
  card.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-block]");
    const button = event.target.closest("button");
    if (index !== current) go(index, {scroll: false});
    if (link) {
      event.preventDefault();
      lead(link);
    }
    if (button) act(button.dataset.do);
  });
});
for (const link of document.querySelectorAll("#verdicts > .places a[data-block]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    lead(link);
  });
}
document.getElementById("help-button").addEventListener("click", keys["?"]);
document.getElementById("download").addEventListener("click", download);
document.getElementById("kept").textContent = served ? words.kept_server : words.kept_here;

if (!served) takeFromShelf();
cards.forEach(show);
score();
if (cards.length) go(0);
